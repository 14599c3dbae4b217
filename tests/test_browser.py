"""The explorers and a prediction in a real JupyterLab and a real Chromium: a key pressed on a
control changes the picture, and a guess is made and locked in by key.

Reports, cards, explorers and the page without code are opened with texts that would like to run.

A lesson runs as a copy, all its cells at once, as a learner would run them. Of what follows the
last explorer only the exercises are kept, whose errors must not stop the others; of what comes
before it lesson 03 keeps everything, and the others what the explorer needs. The rest runs with all
other lessons, and takes half of the time and more. Screenshots go to build/.
"""

import ast
import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import yaml

sync_api = pytest.importorskip(
    "playwright.sync_api", reason='no Playwright: pip install "playwright>=1.45"'
)

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"
BUILD = Path(__file__).parent.parent / "build"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
PREDICTION = [
    "import fairlab as fl",
    "guess = fl.predict('Which *word*?', ['white', 'tall'])",
    "guess.reveal('white')",
]
QUIET = 1500  # ms without work for the kernel: it has drawn all that the page fetches
FETCHING = 5000  # ms at most: thirty pictures of a tenth of a second, and some more
CHROMIUM = next(filter(None, map(shutil.which, BROWSERS)), None)
FOLDERS = [
    f"JUPYTER{name}_DIR"
    for name in ("_CONFIG", "_DATA", "_RUNTIME", "LAB_SETTINGS", "LAB_WORKSPACES")
]
SETTINGS = {
    "@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": False},
    "@jupyterlab/docmanager-extension:plugin": {"autosave": False},
    "@jupyterlab/notebook-extension:tracker": {
        "windowingMode": "none"
    },  # cells out of sight stay in the page
}

pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason=f"no Chromium: none of {', '.join(BROWSERS)} is installed"
)


def is_explorer(cell):
    return "nbval-ignore-output" in cell["metadata"].get("tags", [])


def is_exercise(cell):
    return "raises-exception" in cell["metadata"].get("tags", [])


def up_to_the_last_explorer(cells):
    """Leave out what follows the last explorer, but for the exercises."""
    explorers = [place for place, cell in enumerate(cells) if is_explorer(cell)]
    last = max(explorers, default=-1)
    return cells[: last + 1] + [cell for cell in cells[last + 1 :] if is_exercise(cell)]


def what_explorers_need(cells):
    """Leave out cells that define nothing that the explorers need, but for the exercises."""
    kept, needed = [], set()
    for cell in reversed(cells):
        if is_exercise(cell):
            kept.insert(0, cell)
            continue
        if cell["cell_type"] != "code" or "colab" in cell["metadata"].get("tags", []):
            continue
        defined, read = names_of("".join(cell["source"]))
        if is_explorer(cell) or defined & needed:
            kept.insert(0, cell)
            needed = (needed - defined) | read
    return kept


def names_of(code):
    """Return the names that a cell defines, and those that it reads."""
    defined, read = set(), set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Name):
            (read if isinstance(node.ctx, ast.Load) else defined).add(node.id)
        elif isinstance(node, ast.FunctionDef):
            defined.add(node.name)
        elif isinstance(node, ast.alias):
            defined.add((node.asname or node.name).split(".")[0])
    return defined, read


@pytest.fixture(scope="module")
def lab(kernel, tmp_path_factory):
    """Serve a copy of the notebooks, without their outputs, in a JupyterLab with no settings of the
    user's."""
    place = tmp_path_factory.mktemp("lab")
    folder = place / "notebooks"
    shutil.copytree(NOTEBOOKS, folder)
    for path in folder.glob("*.ipynb"):
        notebook = json.loads(path.read_text(encoding="utf-8"))
        notebook["cells"] = up_to_the_last_explorer(notebook["cells"])
        if not path.name.startswith("03"):
            notebook["cells"] = what_explorers_need(notebook["cells"])
        notebook["metadata"]["kernelspec"] = {"name": kernel, "display_name": kernel}
        for cell in notebook["cells"]:
            if cell["cell_type"] == "code":
                cell.update(outputs=[], execution_count=None)
        path.write_text(json.dumps(notebook), encoding="utf-8")
    cells = [nbformat.v4.new_code_cell(source) for source in PREDICTION]
    spec = {"kernelspec": {"name": kernel, "display_name": kernel}}
    notebook = nbformat.v4.new_notebook(cells=cells, metadata=spec)
    nbformat.write(notebook, folder / "prediction.ipynb")
    own = {name: str(place / name) for name in (*FOLDERS, "IPYTHONDIR")}
    overrides = Path(own["JUPYTER_CONFIG_DIR"]) / "labconfig" / "default_setting_overrides.json"
    overrides.parent.mkdir(parents=True)
    overrides.write_text(json.dumps(SETTINGS), encoding="utf-8")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token, log = secrets.token_hex(16), place / "lab.log"
    command = (
        "-m jupyter lab --no-browser --expose-app-in-browser --allow-root --ip=127.0.0.1 "
        f"--port={port} --ServerApp.port_retries=0 --IdentityProvider.token={token}"
    ).split()
    server = subprocess.Popen(
        [sys.executable, *command, f"--ServerApp.root_dir={folder}"],
        env=os.environ | own,
        stdout=log.open("w", encoding="utf-8"),
        stderr=subprocess.STDOUT,
    )
    try:
        for _ in range(240):
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except ConnectionRefusedError:
                time.sleep(0.25)
        else:
            pytest.fail(log.read_text(encoding="utf-8"))
        yield f"http://127.0.0.1:{port}/lab/tree/{{}}?reset&token={token}"
    finally:
        server.terminate()  # the server ends its kernels first
        server.wait(timeout=60)


@pytest.fixture(scope="module")
def context():
    """Start a browser; its pages share what they have loaded of JupyterLab."""
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser.new_context(viewport={"width": 1280, "height": 900})
        browser.close()


@pytest.fixture
def page(context):
    page = context.new_page()
    yield page
    # the next lesson needs the memory and the cores that this one's kernel holds
    page.evaluate("window.jupyterapp?.shell.currentWidget?.sessionContext?.shutdown()")
    page.close()


def run_all(page, url):
    """Open a notebook, run all its cells, and return them as JupyterLab would save them."""
    page.goto(url)
    kernel = "window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel"
    page.wait_for_function(f"{kernel}?.status === 'idle'", timeout=120_000)
    # the command settles at the first error, even an expected one; an empty request ends when all
    # before it have ended
    page.evaluate(
        """() => {
            const kernel = jupyterapp.shell.currentWidget.sessionContext.session.kernel;
            const empty = {code: "", silent: true, store_history: false};
            const last = () => kernel.requestExecute(empty).done;
            const end = () => { window.ended = true };
            jupyterapp.commands.execute("notebook:run-all-cells").then(last, last).then(end, end);
        }"""
    )
    page.wait_for_function("window.ended", timeout=900_000)
    return page.evaluate("jupyterapp.shell.currentWidget.content.model.toJSON()")["cells"]


def find_explorer(page, cells):
    """Return the output of the last cell that shows an explorer; no cell may have failed but those
    that were meant to."""
    boxes = []
    for place, cell in enumerate(cells):
        tags = cell["metadata"].get("tags", [])
        for output in cell.get("outputs", []):
            failed = output["output_type"] == "error" and "raises-exception" not in tags
            assert not failed, f"{output['ename']}: {output['evalue']} in\n{cell['source']}"
            if (
                "nbval-ignore-output" in tags
                and "application/vnd.jupyter.widget-view+json" in output.get("data", {})
            ):
                boxes.append(
                    page.locator(".jp-Notebook .jp-Cell").nth(place).locator(".jp-OutputArea")
                )
    idle = [
        cell["source"]
        for cell in cells
        if cell["cell_type"] == "code" and not cell["execution_count"]
    ]
    assert not idle, f"did not run:\n{idle[0]}"
    for box in boxes:
        box.locator(".fairlab-explorer").wait_for()
    assert any("raises-exception" in cell["metadata"].get("tags", []) for cell in cells)
    assert boxes, "no cell tagged nbval-ignore-output shows an explorer"
    return boxes[-1]


def wait_for_neighbours(page):
    """Wait until all pictures that are one move away are there, which the page fetches one after
    the other: until the kernel has had nothing to do for a while, or for long enough."""
    page.evaluate(
        """() => {
            const kernel = jupyterapp.shell.currentWidget.sessionContext.session.kernel;
            const start = performance.now();
            let last = start;
            kernel.statusChanged.connect(() => { last = performance.now() });
            const isQuiet = (ms) => kernel.status === "idle" && performance.now() - last > ms;
            window.isThere = (quiet, most) => isQuiet(quiet) || performance.now() - start > most;
        }"""
    )
    page.wait_for_function(f"window.isThere({QUIET}, {FETCHING})")


def picture(box):
    """Return the bytes that the explorer shows."""
    code = "async image => Array.from(new Uint8Array(await (await fetch(image.src)).arrayBuffer()))"
    return bytes(box.locator("img").evaluate(code))


@pytest.mark.slow
@pytest.mark.parametrize(("number", "label"), [("03", "layer"), ("04", "layer"), ("05", "scale")])
def test_a_key_on_a_control_changes_the_picture(number, label, lab, page, capsys):
    """Its neighbours were fetched before, so that the key needs no answer of the kernel."""
    (path,) = NOTEBOOKS.glob(f"{number}_*.ipynb")
    start = time.perf_counter()
    box = find_explorer(page, run_all(page, lab.format(path.name)))
    seconds = time.perf_counter() - start
    control = box.get_by_label(re.compile(f"^{label}"))
    control.wait_for()
    page.wait_for_function(
        "jupyterapp.shell.currentWidget.sessionContext.session.kernel.status === 'idle'"
    )
    wait_for_neighbours(page)
    box.locator("img").evaluate(
        """image => {
            image.scrollIntoView({block: "center"});
            const press = () => { window.pressed = performance.now() };
            image.addEventListener("load", () => { window.shown = performance.now() });
            document.addEventListener("keydown", press, true);
        }"""
    )
    before, text = picture(box), box.locator("img").get_attribute("alt")
    BUILD.mkdir(exist_ok=True)
    page.screenshot(path=BUILD / f"browser_{number}_before.png")
    control.press("ArrowRight" if label == "layer" else "ArrowDown")
    assert box.locator("img").get_attribute("alt") != text, "shown at once"
    page.wait_for_function("window.shown > window.pressed", timeout=10_000)
    page.screenshot(path=BUILD / f"browser_{number}_after.png")
    assert picture(box) != before
    wait = page.evaluate("window.shown - window.pressed")
    with capsys.disabled():
        print(
            f"\n{path.name}: ran in {seconds:.0f} s; {wait:.0f} ms from the key to the new picture"
        )


@pytest.mark.slow
def test_a_guess_is_locked_in_by_key(lab, page):
    cells = run_all(page, lab.format("prediction.ipynb"))
    assert cells[2]["outputs"][0]["text"] == "No guess was locked in. It is: white.\n"
    asked, revealed = [page.locator(".jp-Notebook .jp-Cell").nth(place) for place in (1, 2)]
    asked.get_by_text("Which word?").wait_for()
    asked.get_by_role("radio", name="tall").press("Space")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.innerText") == "That's my guess"
    page.keyboard.press("Space")
    compared = "You said: tall. It is: white. It turned out differently."
    asked.get_by_role("status").filter(has_text=compared).wait_for()
    BUILD.mkdir(exist_ok=True)
    page.screenshot(path=BUILD / "browser_prediction.png")
    assert asked.get_by_role("radio", name="white").is_disabled()
    assert asked.get_by_role("button", name="That's my guess").is_disabled()
    revealed.locator(".jp-InputArea-editor").click()
    page.keyboard.press("Control+Enter")
    revealed.get_by_text(compared).wait_for()


# ---- texts that would like to be more


# each would set window.x, open a dialog, fetch something or compute, if it was taken for code
HOSTILE = [
    "<img src=x onerror=window.x=1>",
    "</script><script>window.x=1;alert(1)</script>",
    '"><svg onload=window.x=1>',
    "' onmouseover='window.x=1",
    "${window.x=1} ${7*7} {{7*7}} {% raw %}",
    "<iframe src=http://127.0.0.1:9/x></iframe>",
    "<style>@import url(http://127.0.0.1:9/x.css);body{display:none}</style>",
    "\u202egnp.exe\u202c zero\u200bwidth\u200d\ufeffjoiner \u2028 line",
    "]]> --> &lt;b&gt; \\u003cb\\u003e",
]


@pytest.fixture
def watched(page):
    """Return a page in Chromium, and all that happens there and should not."""
    happened = []
    page.on("dialog", lambda dialog: (happened.append(dialog.message), dialog.dismiss()))
    page.on("pageerror", lambda error: happened.append(str(error)))
    page.on("request", lambda asked: happened.append(asked.url))
    return page, happened


# without what is code anyway
TEXT_OF_PAGE = """
() => {
    const body = document.body.cloneNode(true);
    body.querySelectorAll("script, style").forEach((part) => part.remove());
    return body.textContent;
}
"""


def check_nothing_ran(page, happened, texts):
    """Say that every text is there to be read, and that none of them did anything."""
    page.mouse.move(300, 300)
    page.wait_for_timeout(200)  # what loads a picture in vain is told a moment later
    own = (page.url, "data:", "blob:")
    assert [what for what in happened if not what.startswith(own)] == []
    assert page.evaluate("window.x") is None
    shown = page.evaluate(TEXT_OF_PAGE).replace("·", " ")
    for text in texts:
        assert text in shown, text
    assert page.evaluate("getComputedStyle(document.body).display") == "block"
    assert (
        page.evaluate("document.querySelectorAll('svg, iframe, object, embed, base').length") == 0
    )
    handlers = "[...document.querySelectorAll('*')].some((e) => e.onmouseover || e.onerror)"
    assert page.evaluate(handlers) is False


@pytest.fixture(scope="module")
def hostile_report(tmp_path_factory):
    """Write a report in which whatever has a name or a text has a hostile one."""
    import fairlab as fl
    from tiny_models import tiny_model

    model, tokenizer = tiny_model(), fl.load_tokenizer()
    sentences = [f"The {{}} cook said {text}, and" for text in HOSTILE]
    words = [("old", "young"), ("poor", "rich")]
    pairs = []
    for name in HOSTILE[:2]:
        pairs += fl.build_pairs(sentences, words, category=name, split="held_out")
    pairs = [replace(pair, attribute_a=HOSTILE[0]) for pair in pairs]
    neutral = fl.load_pairs("mood", kind="neutral")[:4]
    held_out = fl.HeldOut(pairs[:30], neutral, "The tide comes in. " * 9)
    cut = fl.NeuronSelection({0: (1, 5, 9)}, (3, 24), how=HOSTILE[1])
    comparison = fl.compare(model, tokenizer, {HOSTILE[2]: cut}, held_out, n_random=2, metric=False)
    path = tmp_path_factory.mktemp("hostile") / "report.html"
    fl.write_report(
        path,
        comparison,
        model=model,
        model_name=f"org/{HOSTILE[0]}",
        chosen_on=pairs[30:],
        method={text: text for text in HOSTILE},
        texts={text: {"before": text, HOSTILE[2]: text} for text in HOSTILE},
    )
    return path


def test_nothing_runs_in_a_report(hostile_report, watched):
    page, happened = watched
    page.goto(hostile_report.as_uri())
    check_nothing_ran(page, happened, HOSTILE)
    assert page.title() and page.evaluate("document.scripts.length") == 0


def test_nothing_runs_in_a_model_card(hostile_report, watched, tmp_path):
    """Its header is what it says, and its text, with HTML let through, is text."""
    from markdown_it import MarkdownIt

    import fairlab as fl

    with pytest.warns(UserWarning, match="No licence is stated"):
        card = str(fl.model_card(hostile_report.with_suffix(".json")))
    _, header, text = card.split("---\n", 2)
    header = yaml.safe_load(header)
    assert set(header) <= {"language", "library_name", "pipeline_tag", "tags"}
    assert header["tags"] == ["fairlab", "pruned"]
    page, happened = watched
    path = tmp_path / "card.html"
    html = MarkdownIt("commonmark", {"html": True}).enable("table").render(text)
    path.write_text(f"<!doctype html><meta charset=utf-8><body>{html}", encoding="utf-8")
    page.goto(path.as_uri())
    check_nothing_ran(page, happened, [])
    shown = " ".join(page.evaluate("document.body.textContent").split())
    for text in HOSTILE[:3]:  # the model, how was chosen, the cut
        assert " ".join(text.split()) in shown, text
    assert page.evaluate("document.querySelectorAll('img, script, style').length") == 0


def hostile_explorers():
    """Make an explorer of each kind that a page can have, with hostile names, tokens and texts."""
    import fairlab as fl
    from tiny_models import tiny_model

    model, tokenizer = tiny_model(), fl.load_tokenizer()
    projections = {}
    for text in HOSTILE:
        pair = fl.PromptPair(f"The old {text} cook", f"The new {text} cook", text, text)
        projections[text] = [fl.project_pair(model, tokenizer, pair)]
    table = pd.DataFrame({"cut": HOSTILE, "gap": 0.1, "text_a": HOSTILE, "text_b": HOSTILE})
    return {
        "pca": fl.pca_explorer(projections, layer=1),
        "layer": fl.layer_explorer(projections),
        "surgery": fl.surgery_explorer(table, settings=["cut"], measures=["gap"]),
    }


def test_nothing_runs_in_an_explorer(watched, tmp_path):
    page, happened = watched
    for name, explorer in hostile_explorers().items():
        happened.clear()  # what was looked at before has another address
        page.goto(explorer.to_html(tmp_path / f"{name}.html").as_uri())
        page.wait_for_selector("img[src^='data:']")
        check_nothing_ran(page, happened, HOSTILE)
        choice = page.locator("select")
        for place in range(len(HOSTILE)):
            choice.select_option(index=place)
            assert page.locator("img").evaluate("image => image.complete && image.naturalWidth")
            if name == "surgery":
                chosen = choice.locator("option").nth(place).evaluate("e => e.textContent")
                texts = "all => all.map((e) => e.textContent)"
                assert page.locator("blockquote").evaluate_all(texts) == [chosen, chosen]
        check_nothing_ran(page, happened, HOSTILE)


# the page's own code with an offer and answers of ours in place of a kernel
PAGE = """
async ([code, offer]) => {
    const url = URL.createObjectURL(new Blob([code], {type: "text/javascript"}));
    const page = await import(url);
    const model = {
        get: () => offer, send: () => {}, on: (_, take) => { window.take = take; }, off: () => {},
    };
    page.default.render({model, el: document.body});
}
"""
ANSWER = "(answer) => window.take(answer, [new ArrayBuffer(1)])"


def test_nothing_runs_on_the_page_without_code(watched):
    from fairlab.files import template_text

    page, happened = watched
    some = [{"group": text, "label": text, "prompt_a": text, "prompt_b": text} for text in HOSTILE]
    start = {"prompt_a": HOSTILE[0], "prompt_b": HOSTILE[1], "point": HOSTILE[0], "layer": 0}
    start |= {"score": HOSTILE[0], "count": 1, "scale": 0.0, "n_random": 5}
    offer = {"pairs": some, "points": HOSTILE, "scores": HOSTILE, "steps": HOSTILE[:2]}
    offer |= {"layers": 2, "neurons": 3, "scales": [0.0], "cuts": [5], "start": start}
    page.evaluate(PAGE, [template_text("page.js"), offer])
    tokens = [[[text, True] for text in HOSTILE]] * 2
    checked = {"kind": "checked", "number": 1, "tokens": tokens, "good": False, "text": HOSTILE[0]}
    page.evaluate(ANSWER, checked)
    assert page.locator(".tokens mark").count() == 2 * len(HOSTILE)
    page.get_by_role("button", name="Run").click()
    page.evaluate(ANSWER, {"kind": "started"})
    texts = [{"label": text, "text": text} for text in HOSTILE]
    picture = {"title": HOSTILE[0], "text": HOSTILE[1]}
    step = {"title": HOSTILE[2], "sentences": HOSTILE, "texts": texts, "pictures": [picture]}
    page.evaluate(ANSWER, {"kind": "step", **step})
    blocks = page.locator("blockquote").evaluate_all("all => all.map((e) => e.textContent)")
    assert blocks == HOSTILE
    page.evaluate(ANSWER, {"kind": "failed", "text": HOSTILE[1]})
    assert HOSTILE[1] in page.get_by_role("alert").evaluate("e => e.textContent")
    check_nothing_ran(page, happened, HOSTILE)
