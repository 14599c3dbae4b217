"""The drawings of data/pictures: that they say what the code says, and can be read anywhere."""

import re
import shutil
from pathlib import Path
from xml.etree import ElementTree

import nbformat
import pytest

import fairlab as fl
from fairlab.diagnosis import ARTICLE_POINTS

ROOT = Path(__file__).parent.parent
PICTURES = sorted((ROOT / "data" / "pictures").iterdir())
SVG = "{http://www.w3.org/2000/svg}"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, BROWSERS)), None)
every_picture = pytest.mark.parametrize("path", PICTURES, ids=lambda path: path.stem)


def tree(name):
    return ElementTree.parse(ROOT / "data" / "pictures" / f"{name}.svg").getroot()


def words(element):
    return " ".join("".join(element.itertext()).split())


def texts(element):
    """Return (x, y, words) of each text inside an element, as it stands in the file."""
    found = element.iter(f"{SVG}text")
    return [(float(text.get("x")), float(text.get("y")), words(text)) for text in found]


def row(name, y):
    """Return what stands on one line of a picture, from left to right."""
    return [text for _, at, text in sorted(texts(tree(name))) if at == y]


def group(name, kind):
    """Return the groups of a class, without the name of the picture in front."""
    return [element for element in tree(name).iter() if element.get("class") == f"{name}-{kind}"]


def test_the_pictures_are_those_that_the_data_card_lists():
    card = (ROOT / "data" / "README.md").read_text(encoding="utf-8")
    listed = re.findall(r"`pictures/(\w+\.svg)`", card)
    assert sorted(listed) == [path.name for path in PICTURES]
    for name in listed:
        assert fl.data_path(f"pictures/{name}").is_file()


@every_picture
def test_a_picture_says_in_words_what_it_shows(path):
    root = tree(path.stem)
    assert root.get("role") == "img"
    title, description = root[0], root[1]
    assert (title.tag, description.tag) == (f"{SVG}title", f"{SVG}desc")
    assert root.get("aria-labelledby") == f"{title.get('id')} {description.get('id')}"
    assert len(words(title).split()) >= 5
    said = set(re.findall(r"\w+", words(description).lower()))
    drawn = set(re.findall(r"\w+", " ".join(text for *_, text in texts(root)).lower()))
    assert len(said & drawn) > 0.5 * len(drawn), drawn - said


@every_picture
def test_a_picture_can_stand_beside_others_on_a_page(path):
    """What one brings along must not reach into another, nor ask a server for anything."""
    source, root = path.read_text(encoding="utf-8"), tree(path.stem)
    assert root.get("id") == path.stem
    assert root.get("viewBox").split()[2:] == [root.get("width"), root.get("height")]
    names = [element.get("id") for element in root.iter() if element.get("id")][1:]
    names += [element.get("class") for element in root.iter() if element.get("class")]
    assert all(name.startswith(f"{path.stem}-") for name in names)
    (style,) = root.iter(f"{SVG}style")
    heads = [head.strip() for head in re.findall(r"[^{};]+(?=\{)", style.text)]
    selectors = [head for head in heads if not head.startswith("@media")]
    assert len(selectors) > 5
    assert all(re.fullmatch(rf"#{path.stem}( \.[\w-]+)?", selector) for selector in selectors)
    allowed = {"svg", "title", "desc", "style", "defs", "marker", "g", "text", "tspan"}
    allowed |= {"rect", "circle", "path"}
    assert {element.tag.removeprefix(SVG) for element in root.iter()} <= allowed
    assert not re.search(r"href|@import|\bon\w+=", source)
    assert set(re.findall(r"url\(([^)]*)\)", source)) <= {f"#{path.stem}-arrow"}
    assert re.findall(r"\w+://[^\"]*", source) == ["http://www.w3.org/2000/svg"]
    assert len(source.encode()) < 15_000


@every_picture
def test_a_picture_has_its_colours_in_the_dark_as_well(path):
    """Light colours are attributes; what has a colour of its own has another in the dark."""
    root = tree(path.stem)
    (style,) = root.iter(f"{SVG}style")
    _, dark = style.text.split("@media (prefers-color-scheme: dark)")
    rules = dict(re.findall(rf"#{path.stem} \.([\w-]+) \{{([^}}]*)\}}", dark))
    for element in root.iter():
        for attribute in ("fill", "stroke"):
            if element.get(attribute, "none") != "none":
                assert f"{attribute}: #" in rules[element.get("class")], element.attrib
    panel = next(root.iter(f"{SVG}rect"))
    assert panel.get("class") == f"{path.stem}-panel"


@every_picture
def test_no_letters_are_small(path):
    sizes = [element.get("font-size") for element in tree(path.stem).iter()]
    assert min(float(size) for size in sizes if size) >= 13


def test_the_minimal_pair_is_that_of_the_article():
    pair = fl.ARTICLE_PAIR
    for beginning, rest, prompt in ((126, 288, pair.prompt_a), (164, 326, pair.prompt_b)):
        tokens = row("minimal_pair", beginning)[1:]
        # what follows on the second line are the next words, not tokens
        tokens += row("minimal_pair", rest)[1:6]
        assert tokens == re.findall(r"\w+|\.", prompt)
    numbers = row("minimal_pair", 98) + row("minimal_pair", 260)[:5]
    assert numbers == [str(number) for number in range(1, 16)]


def test_the_decoder_layer_has_every_capture_point_and_marks_the_articles():
    named = [
        (y, text) for _, y, text in texts(tree("decoder_layer")) if re.search(r"\[\w+\]$", text)
    ]
    assert [text.split()[0] for _, text in named] == list(fl.CAPTURE_POINTS)
    # the word beside the names
    marked = [y for _, y, text in texts(tree("decoder_layer")) if text == "article"]
    assert [text.split()[0] for y, text in named if y in marked] == list(ARTICLE_POINTS)
    # the numbers in filled squares and in open circles, each in the drawing and in the list
    places = [fl.CAPTURE_POINTS.index(point) + 1 for point in ARTICLE_POINTS]
    (filled,) = group("decoder_layer", "usedtext")
    assert [int(number) for *_, number in texts(filled)] == 2 * places
    (squares,) = group("decoder_layer", "used")
    (circles,) = group("decoder_layer", "unused")
    assert (len(squares), len(circles)) == (12, 4)


def test_the_sizes_are_those_of_the_default_model():
    lesson = (ROOT / "notebooks" / "00_quickstart.ipynb").read_text(encoding="utf-8")
    hidden = re.search(r"hidden size +(\d+)", lesson)[1]
    neurons = re.search(r"MLP neurons +(\d+) in each", lesson)[1]
    wide = f"[hidden] is {hidden} wide, [intermediate] {neurons},"
    assert wide in words(tree("decoder_layer"))
    assert f"in the default model they are {hidden} and {neurons}." in words(tree("glu_neuron"))


def test_the_map_has_every_lesson():
    numbers = [text for *_, text in texts(tree("course_map")) if re.fullmatch(r"\d\d", text)]
    assert numbers == [f"{number:02}" for number in range(14)]
    drawn = [text for *_, text in texts(tree("course_map"))]
    for path in sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb")):
        first = nbformat.read(path, as_version=4).cells[0].source
        title = re.search(r"^# \d\d · (.*)$", first, re.MULTILINE)[1]
        assert title in drawn


def arrows_in(description):
    """Return lesson → the lesson whose arrow leads to it, as words say it of those after 06."""
    led = re.search(r"From 06 arrows lead to ([^.;]*)", description)[1]
    arrows = dict.fromkeys(re.findall(r"\d\d", led), "06")
    # the title of a lesson, its question, and perhaps what it builds on
    for lesson, base in re.findall(r"(\d\d) [^?.]*\? It builds on (\d\d)\.", description):
        arrows[lesson] = base
    return arrows


def test_the_map_leads_where_the_lessons_say_that_one_may_start():
    wanted = {}
    for path in sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))[7:]:
        first = nbformat.read(path, as_version=4).cells[0].source
        before = re.search(r"\*Before you start\*: ([^;]*);", first)[1]
        needed = re.sub(r"section \d of \[\d\d\]", "", before)
        wanted[path.name[:2]] = max(re.findall(r"\[(\d\d)\]", needed))
    assert arrows_in(words(tree("course_map")[1])) == wanted
    # lessons' numbers stand six units below the middle of their boxes, where arrows end
    places = {y - 6: number for x, y, number in texts(tree("course_map")) if x == 450}
    drawn = {}
    for path in tree("course_map").iter(f"{SVG}path"):
        end = re.search(r"(\d+) H(435|755)$", path.get("d"))
        if end:
            drawn[places[int(end[1])]] = {"435": "06", "755": "08"}[end[2]]  # left, right
    below = {"08": "07", "09": "08"}  # arrows straight down
    assert drawn | below == wanted


@pytest.mark.parametrize("name", ["README.md", "notebooks/README.md"])
def test_the_map_is_shown_where_the_lessons_are_listed(name):
    page = ROOT / name
    shown = re.findall(r'<img src="([^"]+)" alt="([^"]+)"', page.read_text(encoding="utf-8"))
    (alternative,) = [
        alternative
        for source, alternative in shown
        if (page.parent / source).resolve() == ROOT / "data" / "pictures" / "course_map.svg"
    ]
    assert len(alternative.split()) > 10


# where each text stands, what it stands on, and what it touches
LAYOUT = """() => {
  const shapes = [...document.querySelectorAll("rect, circle, path, text")]
    .filter(shape => !shape.closest("marker"));
  const box = shape => shape.getBoundingClientRect();
  const inside = (a, b) => a.left >= b.left && a.right <= b.right
    && a.top >= b.top && a.bottom <= b.bottom;
  const meet = (a, b) => a.left < b.right && b.left < a.right
    && a.top < b.bottom && b.top < a.bottom;
  const touches = (path, a) => {
    const matrix = path.getScreenCTM(), length = path.getTotalLength();
    for (let at = 0; at <= length; at += 2) {
      const p = path.getPointAtLength(at).matrixTransform(matrix);
      if (p.x > a.left && p.x < a.right && p.y > a.top && p.y < a.bottom) return true;
    }
    return false;
  };
  return shapes.filter(shape => shape.tagName == "text").map(text => {
    const a = box(text);
    // the uppermost filled shape that holds the whole text; what it covers does not matter
    const ground = shapes.findLast(shape => /rect|circle/.test(shape.tagName)
      && getComputedStyle(shape).fill != "none" && inside(a, box(shape)));
    const above = shapes.slice(shapes.indexOf(ground) + 1).filter(shape => shape != text);
    const hit = above.filter(shape => shape.tagName == "path"
      ? touches(shape, a) : meet(a, box(shape)) && !inside(a, box(shape)));
    return {
      text: text.textContent,
      ground: ground && getComputedStyle(ground).fill,
      ink: getComputedStyle(text).fill,
      hit: hit.map(shape => shape.outerHTML.slice(0, 90)),
    };
  });
}"""


@pytest.fixture(scope="module")
def page():
    sync_api = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip(f"no Chromium: none of {', '.join(BROWSERS)} is installed")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser.new_page(viewport={"width": 800, "height": 800})
        browser.close()


def brightness(colour):
    """Return the relative luminance of "rgb(r, g, b)" by WCAG: 0 is black, 1 is white."""
    channels = [int(number) / 255 for number in re.findall(r"\d+", colour)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@every_picture
def test_every_text_can_be_read(path, scheme, page):
    """No text is cut off, crosses a line or another text, or is too close to its background."""
    page.emulate_media(color_scheme=scheme)
    page.set_content(f'<body style="margin: 0">{path.read_text(encoding="utf-8")}')
    found = page.evaluate(LAYOUT)
    assert len(found) == len(texts(tree(path.stem)))
    for text in found:
        assert text["ground"], f"{text['text']} is not inside the panel"
        assert text["hit"] == [], text
        levels = sorted([brightness(text["ink"]), brightness(text["ground"])])
        assert (levels[1] + 0.05) / (levels[0] + 0.05) >= 4.5, text
    assert (brightness(found[0]["ground"]) < 0.5) == (scheme == "dark")
