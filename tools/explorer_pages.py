"""Write the explorers of lessons as pages of their own, for the course site.

    python tools/explorer_pages.py FOLDER LESSON [LESSON ...]

Each page is named after its lesson and the number of its cell, such as 03_12.html. Of a lesson only
what its explorers depend on is run: lesson 05 saves and loads models that they do not show.
"""

import ast
import sys
from pathlib import Path

import matplotlib
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


def root(node: ast.expr) -> str:
    """Return the name at the start of a chain such as `name.part[0].method`; "" if none is."""
    while isinstance(node, (ast.Attribute, ast.Subscript)):
        node = node.value
    return node.id if isinstance(node, ast.Name) else ""


def names(nodes: list, context: type[ast.expr_context]) -> set[str]:
    """Return the names that are read (ast.Load) or given a value (ast.Store) in some nodes."""
    found = set()
    for node in nodes:
        for part in ast.walk(node):
            if isinstance(part, ast.Name) and isinstance(part.ctx, context):
                found.add(part.id)
    return found


def touched(statement: ast.stmt) -> set[str]:
    """Return the names that get a value, or whose value may change: by an index, an attribute or a
    method that is called for that, such as append."""
    found = names([statement], ast.Store)
    for node in ast.walk(statement):
        if isinstance(node, ast.FunctionDef):
            found.add(node.name)
        elif isinstance(node, (ast.Attribute, ast.Subscript)) and isinstance(node.ctx, ast.Store):
            found.add(root(node))
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            found.add(root(node.value.func))
    return found


def imported(statement: ast.stmt) -> set[str]:
    """Return the names that an import gives a value."""
    parts = [part for part in ast.walk(statement) if isinstance(part, ast.alias)]
    return {(part.asname or part.name).partition(".")[0] for part in parts}


def bound(statement: ast.stmt) -> set[str]:
    """Return the names whose value before a statement does not matter after it."""
    return names(statement.targets, ast.Store) if isinstance(statement, ast.Assign) else set()


def read(statement: ast.stmt) -> set[str]:
    """Return the names whose value before a statement matters to it."""
    if isinstance(statement, ast.FunctionDef):
        own = {argument.arg for argument in statement.args.args}
        return names([statement], ast.Load) - own - names(statement.body, ast.Store)
    if isinstance(statement, (ast.For, ast.With)):
        is_loop = isinstance(statement, ast.For)
        head = [statement.target, statement.iter] if is_loop else statement.items
        inside: set[str] = set()
        for one in reversed(statement.body):
            inside = inside - bound(one) | read(one)
        return names(head, ast.Load) | inside - names(head, ast.Store)
    # what gets a value otherwise is the variable of a comprehension
    return names([statement], ast.Load) - (names([statement], ast.Store) - bound(statement))


def needed(statements: list[ast.stmt], shown: list[ast.stmt]) -> list[ast.stmt]:
    """Return, in order, the statements that must run before some of them can show an explorer."""
    kept, matters = [], set()
    modules = set().union(*map(imported, statements))  # a call such as fl.predict changes none
    for statement in reversed(statements):
        changed = touched(statement) - modules | imported(statement)
        if statement in shown or matters & changed:
            kept.append(statement)
            matters = matters - bound(statement) | read(statement)
    return kept[::-1]


def statements_of(cells: list) -> tuple[list[ast.stmt], dict[ast.stmt, int]]:
    """Return the statements of all cells, and those that show an explorer, with their cell."""
    statements, number_of = [], {}
    shown = explorer_cells(cells)
    for number, cell in enumerate(cells):
        if cell.cell_type == "code" and not cell.source.startswith(COLAB):
            statements += ast.parse(cell.source).body
        if number in shown:
            number_of[statements[-1]] = number
    return statements, number_of


def write_pages(lesson: Path, folder: Path) -> None:
    """Run what the explorers of a lesson depend on, and write a page for each of them."""
    statements, number_of = statements_of(nbformat.read(lesson, as_version=4).cells)
    variables: dict = {}
    for statement in needed(statements, list(number_of)):
        if statement not in number_of:
            code = compile(ast.Module([statement], []), "cell", "exec")
            exec(code, variables)  # nosec B102: a cell of our own lessons
            continue
        code = compile(ast.Expression(statement.value), "cell", "eval")
        explorer = eval(code, variables)  # nosec B307
        assert isinstance(explorer, Explorer)
        name = f"{lesson.name[:2]}_{number_of[statement]}.html"
        explorer.to_html(folder / name, force=True)


if __name__ == "__main__":
    matplotlib.use("agg")
    for path in sys.argv[2:]:
        write_pages(Path(path), Path(sys.argv[1]))
