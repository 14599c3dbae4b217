"""The page without code: what it answers, and the page itself in a real Chromium.

Voilà serves notebooks/app.ipynb with a small random model in place of the default one, so that all
steps take seconds. Screenshots go to build/.
"""

import json
import subprocess
import sys
import threading
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace

import matplotlib.pyplot as plt
import nbformat
import pytest
from screenshots import BROWSERS, CHROMIUM, served

import fairlab as fl
from fairlab import page as page_module
from fairlab.choices import STEPS
from fairlab.files import template_text
from tiny_models import tiny_model

ROOT = Path(__file__).parent.parent
APP = ROOT / "notebooks" / "app.ipynb"
BUILD = ROOT / "build"
AXE = ROOT / "site" / "node_modules" / "axe-core" / "axe.min.js"
CHOICES = {
    "point": "mlp_output",
    "layer": 1,
    "score": "article",
    "count": 2,
    "scale": 0.0,
    "n_random": 2,
}
PROMPTS = {"prompt_a": "The nurse said that", "prompt_b": "The doctor said that"}
WIDTHS = [(1200, "light"), (1200, "dark"), (390, "light"), (390, "dark")]


# ---- what the kernel answers


@pytest.fixture(scope="module")
def asked(tokenizer):
    """Ask a page on a small model; return what it sends, and the pictures beside it."""
    model = tiny_model()
    page = fl.show_page(model, tokenizer)

    def ask(**content):
        sent = []

        def send(said, buffers=()):
            sent.append((json.loads(json.dumps(said)), list(buffers)))  # as it travels

        told = SimpleNamespace(send=send)
        page_module._answer(tokenizer, loading, told, content, [])
        return sent

    loading = Future()
    loading.set_result((model, tokenizer))
    ask.page = page
    return ask


def test_what_is_offered_can_be_chosen(asked, tokenizer):
    offer = asked.page.offer
    assert offer["layers"] == 3 and offer["neurons"] == 23
    assert set(offer["points"]) == set(fl.CAPTURE_POINTS)
    assert offer["start"]["prompt_a"] == fl.ARTICLE_PAIR.prompt_a
    assert offer["start"]["layer"] == 2, "the article's layer, or the last one"
    for name in ("point", "score"):
        assert offer["start"][name] in offer[name + "s"]
    assert offer["start"]["scale"] in offer["scales"]
    assert offer["start"]["n_random"] in offer["cuts"]
    groups = [pair["group"] for pair in offer["pairs"]]
    categories = {pair.category for pair in fl.load_pairs(split="train")}
    assert set(groups) == {"the article's", *categories} and groups == sorted(
        groups, key=groups.index
    )
    assert all(groups.count(name) == 2 for name in categories)
    for pair in offer["pairs"]:
        (answer, _), *_ = asked(kind="check", number=1, **prompts_of(pair))
        assert answer["good"], answer["text"]


def prompts_of(pair):
    return {"prompt_a": pair["prompt_a"], "prompt_b": pair["prompt_b"]}


def test_prompts_are_checked_as_they_are_typed(asked):
    ((answer, _),) = asked(kind="check", number=7, **PROMPTS)
    assert (answer["kind"], answer["number"], answer["good"]) == ("checked", 7, True)
    assert answer["text"].startswith("The prompts can be compared: 4 tokens each")
    assert answer["tokens"][0][:2] == [["The", False], [" nurse", True]]
    unequal = {**PROMPTS, "prompt_b": "The old doctor said that"}
    ((answer, _),) = asked(kind="check", number=8, **unequal)
    assert not answer["good"] and len(answer["tokens"][1]) == 5
    assert answer["text"].startswith("Second prompt: expected 4 tokens, as first prompt has; got 5")


def test_a_run_sends_each_step_with_its_pictures(asked):
    sent = asked(kind="run", choices=CHOICES, **PROMPTS)
    assert [said["kind"] for said, _ in sent] == ["started", *["step"] * 4, "done"]
    steps = sent[1:-1]
    assert [said["title"] for said, _ in steps] == list(STEPS)
    for said, buffers in steps:
        assert len(said["pictures"]) == len(buffers)
        assert all(picture.startswith(b"\x89PNG") for picture in buffers)
        assert all(picture["title"] and picture["text"] for picture in said["pictures"])
    assert [text["label"] for text in steps[2][0]["texts"]] == [
        "nurse, before the cut",
        "nurse, after the cut",
        "doctor, before the cut",
        "doctor, after the cut",
    ]
    assert plt.get_fignums() == []


def test_a_pair_of_the_course_keeps_its_sentence(asked, monkeypatch):
    taken = []

    def examine(model, tokenizer, pair, choices):
        taken.append(pair)
        return iter(())

    monkeypatch.setattr("fairlab.examination.examine", examine)
    asked(kind="run", choices=CHOICES, **prompts_of(asked.page.offer["pairs"][3]))
    asked(kind="run", choices=CHOICES, **PROMPTS)
    assert taken[0] in fl.load_pairs(split="train") and taken[1].category == "your pair"
    offered = [prompts_of(pair) for pair in asked.page.offer["pairs"]]
    for pair in fl.load_pairs("gender", split="validation"):  # typed, since they are not offered
        prompts = {"prompt_a": pair.prompt_a, "prompt_b": pair.prompt_b}
        assert prompts not in offered
        asked(kind="run", choices=CHOICES, **prompts)
        assert taken[-1] == pair


FAULTS = {
    "First prompt: expected a sentence; got ''.": {"prompt_a": ""},
    "The two prompts must differ; got 'The nurse said that' twice.": {
        "prompt_b": PROMPTS["prompt_a"]
    },
    "Layer: expected a whole number from 0 to 2; got 3.": {"choices": {**CHOICES, "layer": 3}},
    "Random cuts: expected a whole number from 1 to 100; got 0.": {
        "choices": {**CHOICES, "n_random": 0}
    },
    "Something went wrong: TypeError: ": {"choices": {"depth": 1}},
    "Something went wrong: KeyError: 'choices'": {"choices": None},
}


@pytest.mark.parametrize("text", FAULTS)
def test_whatever_goes_wrong_is_said_and_nothing_begins(text, asked):
    content = {"kind": "run", "choices": CHOICES, **PROMPTS, **FAULTS[text]}
    if content["choices"] is None:
        del content["choices"]
    ((said, _),) = asked(**content)
    assert said["kind"] == "failed" and said["text"].startswith(text)


def test_a_fault_in_the_middle_is_said_too(asked, monkeypatch):
    def examine(*_):
        yield from ()
        raise MemoryError("no room")

    monkeypatch.setattr("fairlab.examination.examine", examine)
    (_, (said, _)) = asked(kind="run", choices=CHOICES, **PROMPTS)
    assert said == {"kind": "failed", "text": "Something went wrong: MemoryError: no room"}


# ---- before the model is there

LIGHT = """
import sys
from fairlab import page
page._begin = lambda load: None
page.show_page()
heavy = {"torch", "pandas", "matplotlib", "transformers.configuration_utils"}
print(sorted(heavy & set(sys.modules)))
"""


def test_the_page_is_there_without_what_the_model_needs(tokenizer):  # so it was unpacked before
    command = [sys.executable, "-c", LIGHT]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_what_is_offered_beforehand_is_what_the_model_offers(default):
    model, tokenizer = default
    shape, points = page_module.DEFAULT_SHAPE, page_module.DEFAULT_POINTS
    ahead = page_module._offer(tokenizer, shape, points)
    assert ahead == page_module._offer_of(model, tokenizer)
    assert points == fl.CAPTURE_POINTS


def test_the_tokenizer_beforehand_is_that_of_the_model(loads, tokenizer):
    shape, points = page_module.DEFAULT_SHAPE, page_module.DEFAULT_POINTS
    assert loads.offer == page_module._offer(tokenizer, shape, points)
    for pair in loads.offer["pairs"]:
        loads.ask(kind="check", number=1, **prompts_of(pair))
        said = page_module._checked(tokenizer, {"number": 1, **pair})
        assert loads.sent.pop() == said


@pytest.fixture
def loads(monkeypatch, tokenizer):
    """Let a test say when the default model is there, and see how the page was made."""
    seen = SimpleNamespace(gate=threading.Event(), sent=[], fault=None)

    class View:
        def __init__(self, offer):
            seen.offer = offer

        def on_msg(self, answer):
            seen.ask = lambda **content: answer(seen, content, [])

    def load():
        assert seen.gate.wait(60)
        if seen.fault:
            raise seen.fault
        return tiny_model(), tokenizer

    seen.send = lambda content, buffers=(): seen.sent.append(content)
    monkeypatch.setattr(page_module, "_view_class", lambda: View)
    monkeypatch.setattr("fairlab.models.load_model", load)
    fl.show_page()
    yield seen
    seen.gate.set()


def until(condition):
    """Wait until another thread has done something."""
    for _ in range(600):
        if condition():
            return
        threading.Event().wait(0.05)
    raise TimeoutError


def test_prompts_are_checked_before_the_model_is_there(loads):
    loads.ask(kind="wait")
    loads.ask(kind="check", number=1, **PROMPTS)
    assert [said["kind"] for said in loads.sent] == ["checked"] and loads.sent[0]["good"]
    loads.gate.set()
    until(lambda: len(loads.sent) == 2)
    assert loads.sent[1] == {"kind": "loaded", "fault": ""}
    loads.ask(kind="wait")  # another view of the same page
    assert loads.sent[2] == loads.sent[1]
    loads.ask(kind="run", choices=CHOICES, **PROMPTS)
    assert loads.sent[3] == {"kind": "started"} and loads.sent[-1] == {"kind": "done"}


def test_a_model_that_can_not_be_loaded_is_said_and_said_again(loads):
    loads.fault = ValueError("name: no room")
    loads.gate.set()
    loads.ask(kind="wait")
    until(lambda: loads.sent)
    text = "The model could not be loaded. Name: no room."
    assert loads.sent == [{"kind": "loaded", "fault": text}]
    loads.ask(kind="run", choices=CHOICES, **PROMPTS)
    assert loads.sent[1:] == [{"kind": "failed", "text": "Name: no room."}]


def test_a_tokenizer_alone_makes_no_page(tokenizer):
    with pytest.raises(TypeError, match="model: expected the model of this tokenizer; got None"):
        fl.show_page(tokenizer=tokenizer)
    with pytest.raises(TypeError, match="tokenizer: expected the tokenizer"):
        fl.show_page(tiny_model())


def test_without_anywidget_the_message_says_what_to_install(monkeypatch, tokenizer):
    monkeypatch.setitem(sys.modules, "anywidget", None)
    page_module._view_class.cache_clear()
    with pytest.raises(ImportError, match='the page needs anywidget: pip install "anywidget>=0.9"'):
        fl.show_page(tiny_model(), tokenizer)
    page_module._view_class.cache_clear()


def test_the_notebook_is_thin_and_shows_the_page(monkeypatch, tokenizer):
    notebook = nbformat.read(APP, as_version=4)
    assert [cell.cell_type for cell in notebook.cells] == ["markdown", "code"]
    assert notebook.cells[1].outputs == [] and notebook.metadata.voila.template == "fairlab"
    monkeypatch.setattr("fairlab.models.load_model", lambda: (tiny_model(), tokenizer))
    monkeypatch.setenv("TQDM_DISABLE", "")
    *lines, last = notebook.cells[1].source.splitlines()
    names = {}
    exec("\n".join(lines), names)
    assert isinstance(eval(last, names), page_module._view_class())


# ---- the page in a browser

needs_browser = pytest.mark.skipif(
    CHROMIUM is None, reason=f"no Chromium: none of {', '.join(BROWSERS)} is installed"
)
SMALL = """\
import sys

sys.path[:0] = [{root!r}, {tests!r}]
import fairlab as fl
from tiny_models import tiny_model
import torch

torch.set_num_threads(1)
fl.show_page(tiny_model(num_hidden_layers=12), fl.load_tokenizer())
"""


@pytest.fixture(scope="module")
def address(tmp_path_factory, kernel):
    """Serve the notebook, with a small model, by Voilà and the template of the page."""
    pytest.importorskip("voila", reason='no Voilà: pip install "voila>=0.5.8"')
    place = tmp_path_factory.mktemp("app")
    notebook = nbformat.read(APP, as_version=4)
    notebook.cells[1].source = SMALL.format(root=str(ROOT), tests=str(ROOT / "tests"))
    notebook.metadata.kernelspec = {"name": kernel, "display_name": kernel}
    nbformat.write(notebook, place / "app.ipynb")
    with served(place / "app.ipynb") as (url, _):
        yield url


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip(
        "playwright.sync_api", reason='no Playwright: pip install "playwright>=1.45"'
    )
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def opened(browser, address):
    """The page, opened once, and what went wrong on it."""
    context = browser.new_context(viewport={"width": 1000, "height": 900})
    page, faults = context.new_page(), []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda said: faults.append(said.text) if said.type == "error" else None)
    inside = (address, address.replace("http", "ws"), "data:", "blob:")
    page.on("request", lambda asked: asked.url.startswith(inside) or faults.append(asked.url))
    hash_ = "#layer=4&cuts=10&scale=7&a=<b>A tall nurse</b>&b=<b>A kind nurse</b>"
    page.goto(address + hash_, timeout=120_000)
    page.wait_for_selector(".tokens li", timeout=120_000)
    yield page, faults
    context.close()


def take_loaded(page, fault=""):
    page.evaluate("fault => window.take({kind: 'loaded', fault})", fault)


def hash_of(page):
    script = "Object.fromEntries(new URLSearchParams(location.hash.slice(1)))"
    return page.evaluate(script)


@needs_browser
def test_the_link_sets_the_choices_that_are_offered(opened):
    page, faults = opened
    assert page.get_by_label("layer", exact=True).input_value() == "4"
    assert page.get_by_label("random cuts beside it").input_value() == "10"
    assert page.get_by_label("their activations times").input_value() == "0 (removes them)"
    assert "not offered (scale)" in page.get_by_role("alert").inner_text()
    assert page.get_by_label("first prompt", exact=True).input_value() == "<b>A tall nurse</b>"
    assert page.locator(".tokens b").count() == 0, "what somebody typed is text, not HTML"
    assert page.get_by_label("pair", exact=True).input_value() == "two prompts of your own"
    assert faults == []


@needs_browser
def test_each_control_is_seen_in_the_address(opened):
    page, faults = opened
    page.get_by_label("pair", exact=True).select_option(index=2)
    page.wait_for_selector(".note:has-text('✓')")
    assert hash_of(page)["a"] == page.get_by_label("first prompt", exact=True).input_value() != ""
    marked = page.locator("mark").all_inner_texts()
    assert len(marked) == 2 and marked[0] != marked[1]
    page.get_by_label("capture point").select_option("residual")
    page.get_by_label("score", exact=True).select_option("activation")
    page.get_by_label("their activations times").select_option("1.5")
    page.get_by_label("random cuts beside it").select_option("5")
    slider = page.get_by_label("neurons in each layer")
    slider.focus()
    page.keyboard.press("ArrowRight")
    layer = page.get_by_label("layer", exact=True)
    layer.focus()
    page.keyboard.press("ArrowLeft")
    said = hash_of(page)
    assert (said["point"], said["score"], said["scale"], said["cuts"]) == (
        *("residual", "activation"),
        *("1.5", "5"),
    )
    assert (said["neurons"], said["layer"]) == ("4", "3")
    assert page.locator("label.slider output").all_inner_texts() == ["3", "4"]
    assert page.get_by_role("link", name="Link to these choices").get_attribute("href") in page.url
    assert faults == []


@needs_browser
def test_a_run_shows_its_steps_and_a_bad_prompt_loses_nothing(opened):
    page, faults = opened
    page.evaluate(
        """() => {
            window.said = [];
            const status = document.querySelector(".fairlab-app .status");
            const note = () => window.said.push(status.textContent);
            new MutationObserver(note).observe(status, {childList: true});
        }"""
    )
    button = page.get_by_role("button", name="Run")
    button.click()
    assert button.is_disabled()
    page.wait_for_selector(".status:has-text('Done')", timeout=120_000)
    assert button.is_enabled()
    said = page.evaluate("window.said")
    for number, title in enumerate(STEPS, 1):
        assert f"Step {number} of 4: {title} …" in said
    results = page.get_by_role("region", name="Results")
    assert results.locator("h3").all_inner_texts() == list(STEPS)
    pictures = results.get_by_role("img")
    assert pictures.count() == 6
    assert all(picture.get_attribute("alt") for picture in pictures.all())
    drawn = "image => image.complete && image.naturalWidth > 300"
    assert all(picture.evaluate(drawn) for picture in pictures.all())
    chosen, text = hash_of(page), results.inner_text()
    scale = chosen["scale"]
    done = "are removed" if scale == "0" else f"are multiplied by {scale}"
    assert done in text and f"In layer {chosen['layer']} the difference" in text
    with page.expect_download() as download:
        results.get_by_role("link", name="Download the picture: Score plane").click()
    assert download.value.suggested_filename == "score-plane.png"
    assert Path(download.value.path()).read_bytes().startswith(b"\x89PNG")

    before = results.inner_text()
    second = page.get_by_label("second prompt", exact=True)
    second.fill("<img src=x onerror=alert(1)> and much longer than the other")
    page.wait_for_selector(".note:has-text('✗')")
    assert second.get_attribute("aria-invalid") == "true"
    button.click()
    page.wait_for_selector(".alert:not(:empty)")
    assert "Second prompt: expected" in page.get_by_role("alert").inner_text()
    assert results.inner_text() == before and button.is_enabled()
    assert second.input_value().startswith("<img") and hash_of(page)["b"].startswith("<img")
    assert faults == []


ALONE = """
async ([code, offer]) => {
    const url = URL.createObjectURL(new Blob([code], {type: "text/javascript"}));
    const page = await import(url);
    window.sent = [];
    const model = {
        get: () => offer, send: (content) => window.sent.push(content),
        on: (_, take) => { window.take = take; }, off: () => {},
    };
    page.default.render({model, el: document.body});
}
"""


@pytest.fixture
def alone(browser, asked):
    """The browser's part by itself: what it sends is kept, and the test answers."""
    page = browser.new_page()
    page.clock.install()
    page.evaluate(ALONE, [template_text("page.js"), asked.page.offer])
    yield page
    page.close()


RUNS = "window.sent.filter((content) => content.kind === 'run')"


@needs_browser
def test_a_press_before_the_model_is_there_waits_for_it(alone):
    assert alone.evaluate("window.sent.map((content) => content.kind)") == ["check", "wait"]
    button, status = alone.get_by_role("button"), alone.locator(".status")
    assert button.inner_text() == "Run when the model is loaded"
    assert status.inner_text() == "The model is being loaded: choose meanwhile."
    count = alone.get_by_label("neurons in each layer")
    count.fill("7")
    button.click()
    assert button.is_disabled() and "then it runs" in status.inner_text()
    count.fill("9")
    assert alone.evaluate(RUNS) == []
    take_loaded(alone)
    take_loaded(alone)  # another view asked, too
    (run,) = alone.evaluate(RUNS)
    assert run["choices"]["count"] == 7, "as it was when the button was pressed"
    assert button.is_disabled() and button.inner_text() == "Run"


@needs_browser
def test_a_model_that_is_not_there_is_an_alert_and_loses_nothing(alone):
    button = alone.get_by_role("button")
    first = alone.get_by_label("first prompt", exact=True)
    first.fill("The nurse said that")
    button.click()
    take_loaded(alone, "The model could not be loaded. No room.")
    assert alone.get_by_role("alert").inner_text() == "The model could not be loaded. No room."
    assert first.input_value() == "The nurse said that" and button.is_enabled()
    assert alone.evaluate(RUNS) == []
    button.click()  # the kernel says what is wrong
    assert len(alone.evaluate(RUNS)) == 1


@needs_browser
def test_an_answer_that_is_late_stands_below_what_was_asked(alone):
    """Half a minute without an answer is said, and nothing else can be asked until it is there."""
    page = alone
    take_loaded(page)
    assert page.locator(".status").inner_text() == "The model is loaded."
    count = page.get_by_label("neurons in each layer")
    count.fill("7")
    button, alert = page.get_by_role("button", name="Run"), page.get_by_role("alert")
    button.click()
    page.clock.fast_forward(31_000)
    assert alert.inner_text().startswith("The server does not answer")
    assert button.is_disabled()
    count.fill("9")
    (run,) = page.evaluate(RUNS)
    assert run["choices"]["count"] == 7
    page.evaluate("window.take({kind: 'started'})")
    assert alert.inner_text() == "" and "neurons 7" in page.locator(".chosen").inner_text()
    page.evaluate("window.take({kind: 'done'})")
    assert button.is_enabled()


@needs_browser
def test_the_page_is_accessible_in_every_width_and_colour(opened):
    page, faults = opened
    BUILD.mkdir(exist_ok=True)
    axe = AXE.read_text(encoding="utf-8") if AXE.is_file() else ""
    for width, scheme in WIDTHS:
        page.set_viewport_size({"width": width, "height": 900})
        page.emulate_media(color_scheme=scheme)
        page.wait_for_timeout(100)
        wider = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
        assert wider <= 0, f"scrolls sideways at {width}"
        page.screenshot(path=BUILD / f"page_{width}_{scheme}.png", full_page=True)
        if axe:
            page.evaluate(axe)
            found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
            serious = [
                f"{each['id']}: {each['nodes'][0]['html']}"
                for each in found["violations"]
                if each["impact"] in ("serious", "critical")
            ]
            assert serious == [], (width, scheme)
    ground = "getComputedStyle(document.body).backgroundColor"
    assert page.evaluate(ground) != "rgb(255, 255, 255)", "dark"
    assert faults == []
