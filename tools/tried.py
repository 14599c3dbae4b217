"""Count what was tried to break fairlab, and print it as CONTRIBUTING's table.

    python tools/tried.py

What is counted are tests as they are written, not runs of them: `make test` runs them all.
"""

import ast
import re
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent / "tests"
# files on faults and safety: most tests there break a disk, a file, a process, a block or a name
FAULTS = ("test_faults.py", "test_safety.py", "test_notebook_abuse.py", "test_self_check.py")


def tests_in(path: Path) -> list[ast.FunctionDef]:
    """Return the tests of a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    return [function for function in functions if function.name.startswith("test_")]


def wrong_values() -> dict[str, int]:
    """Return how many wrong values of how many arguments of how many functions are tried."""
    sys.path.insert(0, str(TESTS))
    import test_bad_input

    counts = {"values": 0, "arguments": 0, "functions": 0}
    for arguments in test_bad_input.functions(None, None, TESTS / "none").values():
        wrong = [test_bad_input.WRONG.get(kind, {}) for _, kind in arguments.values()]
        counts["values"] += sum(map(len, wrong))
        counts["arguments"] += len(list(filter(None, wrong)))
        counts["functions"] += any(wrong)
    return counts


def properties() -> tuple[int, int]:
    """Return how many tests draw their inputs with Hypothesis, and how many inputs in all."""
    tests, inputs = 0, 0
    for path in sorted(TESTS.glob("test_*.py")):
        for test in tests_in(path):
            marks = [ast.unparse(mark) for mark in test.decorator_list]
            if any(mark.startswith("given(") for mark in marks):
                tests += 1
                inputs += sum(int(mark[9:-1]) for mark in marks if mark.startswith("examples("))
    return tests, inputs


def hostile_texts() -> int:
    """Count the texts, names and lines of code that `test_security.py` holds off."""
    count = 0
    for node in ast.walk(ast.parse((TESTS / "test_security.py").read_text(encoding="utf-8"))):
        is_texts = isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "HOSTILE"
        is_marked = isinstance(node, ast.Call) and ast.unparse(node.func).endswith("parametrize")
        values = node.value if is_texts else node.args[1] if is_marked else None
        count += len(getattr(values, "elts", ()))
    return count


def count() -> dict[str, str]:
    """Return what is counted, by name."""
    wrong, (tests, inputs) = wrong_values(), properties()
    faults = sum(len(tests_in(TESTS / name)) for name in FAULTS if (TESTS / name).is_file())
    text = (TESTS / "mutants.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| [\w.]+ \| (\d+) \| (\d+) \| (\d+) \|", text, re.MULTILINE)
    made, tried, killed = (sum(map(int, column)) for column in zip(*rows, strict=True))
    return {
        "wrong values, each alone": (
            f"{wrong['values']:,} of {wrong['arguments']} arguments of {wrong['functions']} "
            "functions"
        ),
        "tests in the four files on faults and safety": f"{faults}",
        "properties, with inputs that are drawn": f"{tests}, {inputs:,} inputs",
        "hostile texts, names and lines of code": f"{hostile_texts()}",
        "changes of the code (mutants)": f"{tried} of {made} tried, {killed} noticed",
    }


if __name__ == "__main__":
    for name, value in count().items():
        print(f"| {name} | {value} |")
