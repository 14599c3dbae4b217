"""Write the explorers of a lesson as pages of their own, for the course site.

    python tools/explorer_pages.py LESSON FOLDER

Runs the cells of the lesson up to its last explorer, and names each page after the lesson and the
number of its cell, such as 03_12.html.
"""

import ast
import sys
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import nbformat

from fairlab.widgets import Explorer

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
    """Run a cell, and return the value of its last line, None if that is no expression."""
    tree = ast.parse(source)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "cell", "exec"), names)
    return eval(compile(ast.Expression(last.value), "cell", "eval"), names) if last else None


def main(lesson: Path, folder: Path) -> None:
    """Run the cells, and write a page for each explorer among them."""
    matplotlib.use("agg")
    cells = nbformat.read(lesson, as_version=4).cells
    names: dict = {"display": lambda *_: None}
    for number in range(max(explorer_cells(cells), default=-1) + 1):
        cell = cells[number]
        if cell.cell_type != "code" or cell.source.startswith(COLAB):
            continue
        value = run(cell.source, names)
        if isinstance(value, Explorer):
            value.to_html(folder / f"{lesson.name[:2]}_{number}.html", force=True)
        plt.close("all")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
