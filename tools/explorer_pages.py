"""Write the explorers of the lessons as pages of their own, for the course site.

    python tools/explorer_pages.py FOLDER DIGEST

Runs the cells of a lesson up to its last explorer, and names each page after the lesson and the
number of its cell, such as 03_12.html. DIGEST says what they were made from; it is written last.
"""

import ast
import sys
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import nbformat

from fairlab.widgets import Explorer

NOTEBOOKS = Path(__file__).resolve().parent.parent / "notebooks"
COLAB = "# @title On Colab"


def explorer_cells(cells: list) -> list[int]:
    """Return the numbers of the cells that show an explorer."""
    numbers = []
    for number, cell in enumerate(cells):
        last_line = cell.source.rstrip().rpartition("\n")[2]
        if cell.cell_type == "code" and last_line.startswith("fl.") and "_explorer(" in last_line:
            numbers.append(number)
    return numbers


def run(source: str, names: dict) -> object:
    """Run a cell of our own lessons, and return the value of its last line, None if that is no
    expression."""
    tree = ast.parse(source)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "cell", "exec"), names)  # nosec B102
    if last is None:
        return None
    return eval(compile(ast.Expression(last.value), "cell", "eval"), names)  # nosec B307


def main(folder: Path, digest: str) -> None:
    """Write the pages, and what they were made from."""
    folder.mkdir(parents=True, exist_ok=True)
    matplotlib.use("agg")
    for path in sorted(NOTEBOOKS.glob("[0-9]*.ipynb")):
        cells = nbformat.read(path, as_version=4).cells
        shown = explorer_cells(cells)
        names: dict = {"display": lambda *_: None}
        for number in range(max(shown, default=-1) + 1):
            cell = cells[number]
            if cell.cell_type != "code" or cell.source.startswith(COLAB):
                continue
            value = run(cell.source, names)
            if isinstance(value, Explorer):
                value.to_html(folder / f"{path.name[:2]}_{number}.html", force=True)
            plt.close("all")
    (folder / "made_from.txt").write_text(digest, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
