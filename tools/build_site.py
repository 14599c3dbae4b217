"""Build the course site: lessons, solutions, glossary, data card, API, changelog, as static pages.

    python tools/build_site.py    # writes build/site

Works offline; `npm ci` in site/ fetches MathJax beforehand. The pages are laid out in
build/site-pages as they lie in the repository, so that their links hold; the API has one page a
room, made from the docstrings.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from string import Template

import nbformat
from explorer_pages import explorer_cells
from sphinx.cmd.build import main as sphinx

import fairlab

ROOT = Path(__file__).resolve().parent.parent
SITE = ROOT / "site"
PAGES = ROOT / "build" / "site-pages"
STATIC = ROOT / "build" / "site-static"
EXPLORERS = ROOT / "build" / "explorers"
MADE_FROM = EXPLORERS / "made_from.txt"
MATHJAX = SITE / "node_modules" / "mathjax" / "es5" / "tex-svg.js"
OUTPUT = ROOT / "build" / "site"
COPIED = [
    "notebooks/[0-9]*.ipynb",
    "notebooks/*.md",
    "notebooks/figures/*",
    "notebooks/solutions/*.ipynb",
    "data/README.md",
    "data/pictures/*.svg",
    "benchmarks/speed.png",
    "experiments/README.md",
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
]


def lay_out() -> None:
    """Copy what the site shows to PAGES, in the folders of the repository."""
    shutil.rmtree(PAGES, ignore_errors=True)
    for pattern in COPIED:
        for source in sorted(ROOT.glob(pattern)):
            target = PAGES / source.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target)
    names = {
        "lessons": sorted(ROOT.glob("notebooks/[0-9]*.ipynb")),
        "solutions": sorted(ROOT.glob("notebooks/solutions/*.ipynb")),
    }
    lines = {
        name: "\n".join(path.relative_to(ROOT).with_suffix("").as_posix() for path in paths)
        for name, paths in names.items()
    }
    for page in SITE.glob("*.md"):
        text = Template(page.read_text(encoding="utf-8")).safe_substitute(lines)
        (PAGES / page.name).write_text(text, encoding="utf-8")
    (STATIC / "mathjax").mkdir(parents=True, exist_ok=True)
    shutil.copy(MATHJAX, STATIC / "mathjax")
    write_api()


def write_api() -> None:
    """Write a page for each room, with the docstrings of its public names."""
    folder = PAGES / "api"
    folder.mkdir()
    rooms = fairlab._ROOMS
    for room, names in rooms.items():
        lines = [f"# {room}", "", "```{eval-rst}", f".. currentmodule:: fairlab.{room}", ""]
        for name in names:
            value = getattr(fairlab, name)
            if isinstance(value, type):
                lines += [f".. autoclass:: {name}", "   :members:", ""]
            elif callable(value):
                lines += [f".. autofunction:: {name}", ""]
            else:
                lines += [f".. autodata:: {name}", "   :no-value:", ""]
        lines += ["```", ""]
        (folder / f"{room}.md").write_text("\n".join(lines), encoding="utf-8")
    index = ["# API", "", "What `import fairlab as fl` gives, by the room it lives in.", ""]
    index += ["```{toctree}", ":maxdepth: 2", "", *rooms, "```", ""]
    (folder / "index.md").write_text("\n".join(index), encoding="utf-8")


def digest_of_explorers() -> str:
    """Return a hash of what the pages of explorers are made from: the package and the lessons."""
    digest = hashlib.sha256()
    sources = [*ROOT.glob("fairlab/**/*"), *ROOT.glob("notebooks/[0-9]*.ipynb")]
    for path in sorted(path for path in sources if path.suffix in (".py", ".js", ".css", ".html")):
        digest.update(path.read_bytes())
    for path in sorted(ROOT.glob("notebooks/[0-9]*.ipynb")):
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            if cell["cell_type"] == "code":
                digest.update("".join(cell["source"]).encode())
    return digest.hexdigest()


def start_explorers() -> subprocess.Popen | None:
    """Begin to draw the explorers, unless those of an earlier build still hold.

    One process draws them all, since each would first import the libraries; Sphinx has the other
    core.
    """
    if MADE_FROM.is_file() and MADE_FROM.read_text(encoding="utf-8") == digest_of_explorers():
        return None
    shutil.rmtree(EXPLORERS, ignore_errors=True)
    EXPLORERS.mkdir(parents=True)
    command = [sys.executable, str(ROOT / "tools" / "explorer_pages.py"), str(EXPLORERS)]
    for lesson in sorted(ROOT.glob("notebooks/[0-9]*.ipynb")):
        if explorer_cells(nbformat.read(lesson, as_version=4).cells):
            command.append(str(lesson))
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}  # torch's threads would wait for each other
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=ROOT, env=one_thread, **quiet)


def finish_explorers(drawing: subprocess.Popen) -> None:
    """Wait for the explorers, and note what they were made from."""
    _, errors = drawing.communicate()
    if drawing.returncode:
        sys.exit(errors.decode())
    MADE_FROM.write_text(digest_of_explorers(), encoding="utf-8")


def main() -> None:
    """Lay the pages out, build them, and put the explorers beside them."""
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    drawing = start_explorers()
    lay_out()
    shutil.rmtree(OUTPUT, ignore_errors=True)
    options = ["-W", "--keep-going", "-q", "-j", "2"]
    options += ["-c", str(SITE), "-d", str(ROOT / "build" / "site-doctrees")]
    # here, where the libraries are imported already, and not in a process of its own
    built = sphinx([*options, str(PAGES), str(OUTPUT)])
    if drawing:
        finish_explorers(drawing)
    if built:
        sys.exit(built)
    shutil.copytree(EXPLORERS, OUTPUT / "_static" / "explorers")
    print(f"The site is in {OUTPUT.relative_to(ROOT)}: open index.html, or serve the folder.")


if __name__ == "__main__":
    main()
