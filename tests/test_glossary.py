"""The glossary and the references: lessons link to a term where it first stands, and to sources."""

import json
import re
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "notebooks"
LESSONS = sorted(FOLDER.glob("[0-9][0-9]_*.ipynb"))
GLOSSARY = (FOLDER / "glossary.md").read_text(encoding="utf-8")
TERMS = re.findall(r"^## (.+)$", GLOSSARY, re.MULTILINE)
REFERENCES = (FOLDER / "references.bib").read_text(encoding="utf-8")
# a term may be an abbreviation or a name: there the case matters
AS_IT_STANDS = {"BOS", "PCA", "BBQ", "BoolQ", "LAMBADA", "CrowS-Pairs", "maw", "vow", "pon"}


def anchor(term):
    """Return the end of the address of a term's heading, as Jupyter and GitHub make it."""
    return term.lower().replace(" ", "-").replace("–", "")


def pattern_of(term):
    """Return a pattern for a term, its plural, or its words with a hyphen between them."""
    words = re.escape(term).replace(r"\ ", r"[\s-]+")
    if term in AS_IT_STANDS:
        return rf"(?<![\w-]){words}(?![\w-])"
    return rf"(?i:(?<![\w-]){words}(?:e?s)?(?![\w-]))"


def running_text(path):
    """Return the text of a lesson below its title cell: no headings, code or formulas."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    texts = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"]
    text = "\n\n".join(texts[1:])
    text = re.sub(r"```.*?```", " ", text, flags=re.DOTALL)
    text = re.sub(r"\$\$.*?\$\$|\$[^$\n]+\$", " ", text, flags=re.DOTALL)
    # a score's name is a term, though it is written as code; other code is not text
    text = re.sub(r"`(maw|vow|pon)`", r" \1 ", text)
    text = re.sub(r"`[^`]*`", " ", text)
    return re.sub(r"^#+ .*$", " ", text, flags=re.MULTILINE)


def first_uses(text):
    """Return term → what surrounds its first use. Where one term contains another, as "decision
    gap" does "gap", the longer one counts."""
    longest_first = sorted(TERMS, key=len, reverse=True)
    found, taken = {}, []
    for term in longest_first:
        for match in re.finditer(pattern_of(term), text):
            inside = any(start <= match.start() < end for start, end in taken)
            if not inside:
                taken.append(match.span())
                found.setdefault(term, match.span())
    return found


def unlinked(path):
    """Return the terms whose first use in a lesson is no link to the glossary."""
    text = running_text(path)
    links = {}
    for match in re.finditer(r"\[([^\]]+)\]\(glossary\.md#([^)]+)\)", text):
        links.setdefault(match[2], match.span())
    # neither the address of a link nor the title of what another link leads to is text
    other = r"\[[^\]]*\]\((?!glossary\.md)[^)]*\)|\]\([^)]*\)"
    shown = re.sub(other, lambda match: " " * len(match[0]), text)
    missing = []
    for term, (start, end) in first_uses(shown).items():
        link = links.get(anchor(term))
        if link is None or not link[0] <= start < end <= link[1]:
            missing.append(f"{term}: …{' '.join(text[max(0, start - 30) : end + 30].split())}…")
    return missing


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
class TestEveryLesson:
    def test_links_a_term_where_it_first_stands(self, path):
        assert unlinked(path) == []

    def test_refers_to_what_it_builds_on(self, path):
        """Three to eight links with a line each, and each of them in references.bib."""
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        text = "\n\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
        section = re.search(r"^## References\n(.*?)(?=^## |^\*\*Next|\Z)", text, re.M | re.S)
        assert section, "a section ## References"
        entries = re.findall(r"^- .*\]\((https?:[^)]+)\)", section[1], re.MULTILINE)
        assert 3 <= len(entries) <= 8
        for address in entries:
            assert f"{{{address}}}" in REFERENCES, f"{address} is not in references.bib"


def test_the_glossary_is_in_order_and_says_where():
    assert sorted(TERMS, key=str.lower) == TERMS
    numbers = {path.name[:2] for path in LESSONS}
    for entry in re.split(r"^## ", GLOSSARY, flags=re.MULTILINE)[1:]:
        place = re.search(r"\((\d\d)\)\n*\Z", entry)
        assert place and place[1] in numbers, entry


def test_links_to_the_glossary_hold():
    known = {anchor(term) for term in TERMS}
    for path in [*LESSONS, FOLDER / "README.md"]:
        for link in re.findall(r"glossary\.md#([^)\"\\]+)", path.read_text(encoding="utf-8")):
            assert link in known, f"{path.name}: {link}"


def test_a_first_use_without_a_link_is_found(tmp_path):
    def lesson(text):
        cells = [{"cell_type": "markdown", "source": s} for s in ("# Title: perplexity", text)]
        path = tmp_path / "lesson.ipynb"
        path.write_text(json.dumps({"cells": cells}), encoding="utf-8")
        return path

    assert unlinked(lesson("A sentence without such words.")) == []
    assert len(unlinked(lesson("The perplexity, see [perplexity](glossary.md#perplexity)."))) == 1
    assert unlinked(lesson("The [perplexity](glossary.md#perplexity), then perplexity.")) == []
    assert len(unlinked(lesson("A [decision gap](glossary.md#decision-gap), and the gap."))) == 1
    both = "A [decision gap](glossary.md#decision-gap), and the [gap](glossary.md#gap)."
    assert unlinked(lesson(both)) == []
