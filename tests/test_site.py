"""The built course site in a real Chromium: links, search, formulas, explorers, light and dark.

`make site` builds it and runs this; without build/site there is nothing to test.
"""

import functools
import http.server
import re
import shutil
import threading
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

sync_api = pytest.importorskip(
    "playwright.sync_api", reason='no Playwright: pip install "playwright>=1.45"'
)

ROOT = Path(__file__).parent.parent
SITE = ROOT / "build" / "site"
AXE = ROOT / "site" / "node_modules" / "axe-core" / "axe.min.js"
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
LESSONS = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))
OPENED = [
    "index.html",
    "README.html",
    "search.html",
    "api/evaluation.compare.html",
    "notebooks/00_quickstart.html",
    "notebooks/03_pca_layers.html",
    "notebooks/06_did_it_work.html",
    "notebooks/glossary.html",
    "notebooks/cluster.html",
    "notebooks/solutions/03_solutions.html",
]
MOST = 30e6  # bytes

pytestmark = [
    pytest.mark.skipif(not (SITE / "index.html").is_file(), reason="no site: run `make site`"),
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed"),
]


class Links(HTMLParser):
    """The addresses that a page leads to, and the places in it that others can lead to."""

    def __init__(self, text):
        super().__init__()
        self.to, self.ids, self.pictures = [], set(), []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.ids.add(values.get("id"))
        self.to += [values[name] for name in ("href", "src") if values.get(name)]
        if tag == "img":
            self.pictures.append(values)


@functools.cache
def links(path):
    return Links(path.read_text(encoding="utf-8"))


PAGES = sorted(path for path in SITE.rglob("*.html") if "_static" not in path.parts)


def test_every_lesson_and_solution_is_there():
    for path in [*LESSONS, *(ROOT / "notebooks" / "solutions").glob("*.ipynb")]:
        assert (SITE / path.relative_to(ROOT)).with_suffix(".html").is_file()
    assert sum(path.stat().st_size for path in SITE.rglob("*") if path.is_file()) < MOST


def test_links_inside_the_site_hold():
    broken = []
    for page in PAGES:
        for address in links(page).to:
            parts = urlsplit(address)
            if parts.scheme or not (parts.path or parts.fragment):
                continue
            target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            found = target.is_file()
            if found and parts.fragment and target.suffix == ".html":
                found = unquote(parts.fragment) in links(target).ids
            if not found:
                broken.append(f"{page.relative_to(SITE)}: {address}")
    assert broken == []


def test_pictures_have_a_text_and_stubs_no_traceback():
    for page in PAGES:
        without = [picture["src"] for picture in links(page).pictures if not picture.get("alt")]
        assert without == [], page
        if "solutions" not in page.parts:
            text = page.read_text(encoding="utf-8")
            assert "NotImplementedError</span>: your code here" not in text, page
            assert "On Colab, install the package" not in text, page


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def address():
    handler = functools.partial(Quiet, directory=SITE)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def opened(browser, address, request):
    """A page of this width and scheme, and what went wrong on it."""
    width, scheme = getattr(request, "param", (1200, "light"))
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page, faults = context.new_page(), []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda said: faults.append(said.text) if said.type == "error" else None)
    inside = (address, "data:", "blob:")
    page.on("request", lambda asked: asked.url.startswith(inside) or faults.append(asked.url))
    yield page, faults
    context.close()


@pytest.mark.parametrize(
    "opened",
    [(1200, "light"), (1200, "dark"), (390, "light"), (390, "dark")],
    indirect=True,
    ids=lambda value: "-".join(map(str, value)),
)
def test_pages_are_accessible_and_ask_no_other_host(opened, address, request):
    page, faults = opened
    for name in OPENED:
        page.goto(address + name, wait_until="networkidle")
        wider = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
        assert wider <= 0, f"{name} scrolls sideways"
        page.evaluate(AXE.read_text(encoding="utf-8"))
        found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]
        serious = [f"{each['id']}: {each['nodes'][0]['html']}" for each in found]
        serious = [
            text
            for text, each in zip(serious, found, strict=True)
            if each["impact"] in ("serious", "critical")
        ]
        assert serious == [], name
        file = name.replace("/", "_").removesuffix(".html")
        page.screenshot(path=ROOT / "build" / f"site_{file}_{request.node.callspec.id}.png")
    assert faults == []


def test_formulas_are_drawn_and_search_finds(opened, address):
    page, faults = opened
    page.goto(f"{address}notebooks/02_activation_differences.html", wait_until="networkidle")
    page.wait_for_selector("mjx-container svg")
    page.goto(f"{address}search.html?q=perplexity", wait_until="networkidle")
    page.wait_for_selector("ul.search li a")
    assert "glossary" in page.locator("ul.search").inner_text().lower()
    assert faults == []


def test_the_theme_button_changes_the_colours(opened, address):
    page, faults = opened
    page.goto(address, wait_until="networkidle")
    ground = "getComputedStyle(document.body).backgroundColor"
    before = page.evaluate(ground)
    button = page.locator("button.theme-switch-button").first
    button.click()
    dark = page.get_by_text("Dark", exact=True)
    if dark.count():
        dark.first.click()
    page.wait_for_function(f"{ground} !== '{before}'")
    assert faults == []


def test_an_explorer_moves_without_a_kernel(opened, address):
    page, faults = opened
    page.goto(f"{address}notebooks/03_pca_layers.html", wait_until="networkidle")
    frames = page.locator("iframe.explorer")
    assert frames.count() == 2
    frames.first.scroll_into_view_if_needed()
    frame = page.frame_locator("iframe.explorer").first
    slider = frame.get_by_label(re.compile("^layer"))
    picture = frame.locator("img")
    before = picture.get_attribute("alt")
    slider.focus()
    page.keyboard.press("ArrowRight")
    assert picture.get_attribute("alt") != before
    assert "layer 9" in picture.get_attribute("alt")
    frame.get_by_label("pair").select_option(index=1)
    assert "Muslim / Christian" in picture.get_attribute("alt")
    inside = "() => document.documentElement.scrollHeight <= window.innerHeight + 1"
    assert page.frames[1].evaluate(inside), "the frame is as high as what it shows"
    assert faults == []
