"""Count how the package is written, and print it as one column of CONTRIBUTING's table.

    python tools/house.py

A code line is one that is neither blank, nor a comment, nor part of a docstring; its length is
counted with its indentation.
"""

import ast
import io
import tokenize
from pathlib import Path

import numpy as np

PACKAGE = Path(__file__).resolve().parent.parent / "fairlab"
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


def docstring_lines(tree: ast.Module) -> set[int]:
    """Return the numbers of the lines that docstrings take."""
    lines = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, *DEFINITIONS)) and ast.get_docstring(node) is not None:
            text = node.body[0]
            lines.update(range(text.lineno, text.end_lineno + 1))
    return lines


def comment_lines(text: str) -> set[int]:
    """Return the numbers of the lines that have a comment, alone or behind code."""
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return {token.start[0] for token in tokens if token.type == tokenize.COMMENT}


def code_lines(text: str, tree: ast.Module) -> list[str]:
    """Return the lines that are code."""
    docstrings = docstring_lines(tree)
    found = []
    for number, line in enumerate(text.splitlines(), start=1):
        is_code = line.strip() and not line.lstrip().startswith("#")
        if is_code and number not in docstrings:
            found.append(line)
    return found


def parameters(function: ast.FunctionDef) -> int:
    """Count the parameters of a function, `self` included."""
    arguments = function.args
    return len(arguments.posonlyargs + arguments.args + arguments.kwonlyargs)


def count() -> dict[str, str]:
    """Return what is counted, by name."""
    code, comments, docstrings, lengths, most, top, loops, nested = [], 0, 0, [], 0, [], 0, 0
    for path in sorted(PACKAGE.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        tree = ast.parse(text)
        code += code_lines(text, tree)
        comments += len(comment_lines(text))
        docstrings += len(docstring_lines(tree))
        top += [node.name for node in tree.body if isinstance(node, DEFINITIONS)]
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                lengths.append(node.end_lineno - node.lineno + 1)
                most = max(most, parameters(node))
            if isinstance(node, COMPREHENSIONS):
                loops += 1
                nested += len(node.generators) > 1
                nested += any(
                    isinstance(inner, COMPREHENSIONS) for inner in list(ast.walk(node))[1:]
                )
    private = sum(name.startswith("_") for name in top)
    middle, high = np.percentile(lengths, (50, 90))
    per_thousand = 1000 / len(code)
    return {
        "code lines": f"{len(code):,}",
        "characters a code line": f"{np.mean([len(line) for line in code]):.0f}",
        "comments per 100 code lines": f"{100 * comments / len(code):.1f}",
        "docstring lines / code lines": f"{docstrings / len(code):.2f}",
        "function lines, median / p90 / max": f"{middle:.0f} / {high:.0f} / {max(lengths)}",
        "most parameters": f"{most}",
        "private share of top-level definitions": f"{private / len(top):.0%}",
        "comprehensions per 1,000 lines (nested)": (
            f"{loops * per_thousand:.0f} ({nested * per_thousand:.1f})"
        ),
    }


if __name__ == "__main__":
    for name, value in count().items():
        print(f"| {name} | {value} |")
