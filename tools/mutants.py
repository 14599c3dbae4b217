"""Change the code in one place at a time, and see whether a test notices.

    python tools/mutants.py statistics scores --minutes 10

A mutant is the module with one change: `<=` for `<`, `-` for `+`, `or` for `and`, a number that is
one more, a `not` or a call that is left out. Each runs in a process of its own, forked from one in
which torch is imported, with the tests that fit the module; it is killed if one of them fails or
takes too long. What was killed is kept in `build/mutants/` by the text of the module, so that a
run that was stopped goes on; survivors are tried again (delete the folder to start anew).

Writes `tests/mutants.md`; the reasons written there behind survivors stay.

Not mutated: docstrings, annotations, decorators, texts, and what stands in a `raise`.
"""

import argparse
import ast
import contextlib
import hashlib
import importlib
import importlib.abc
import importlib.util
import json
import os
import re
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "build" / "mutants"
REPORT = ROOT / "tests" / "mutants.md"
# module → the tests that fit it
TESTS = {
    "statistics": ["test_survivors", "test_statistics"],
    "pairs": ["test_pairs", "test_unequal", "test_bad_input"],
    "scores": ["test_scores", "test_gates", "test_bad_input"],
    "gates": ["test_gates", "test_surgery"],
    "surgery": ["test_surgery", "test_unequal", "test_safety"],
    "capture": ["test_capture", "test_families"],
    "evaluation.chance": ["test_compare"],
    "evaluation.compare": ["test_compare"],
    "evaluation.flattening": ["test_compare", "test_evaluation"],
    "evaluation.readings": ["test_compare", "test_faults"],
    "evaluation.rows": ["test_survivors", "test_compare"],
}
LONGEST = 120  # seconds: a mutant that takes longer is killed, too
COMPARED = {
    ast.Lt: "<=", ast.LtE: "<", ast.Gt: ">=", ast.GtE: ">", ast.Eq: "!=", ast.NotEq: "==",
    ast.In: "not in", ast.NotIn: "in", ast.Is: "is not", ast.IsNot: "is",
}  # fmt: skip
CALCULATED = {ast.Add: "-", ast.Sub: "+", ast.Mult: "/", ast.Div: "*", ast.Pow: "*"}
CALCULATED |= {ast.FloorDiv: "/", ast.Mod: "*"}
# what no test can or should notice
LEFT_OUT = (ast.Raise, ast.AnnAssign, ast.arg, ast.JoinedStr)


@dataclass(frozen=True)
class Mutant:
    """A change: what stands where (in bytes of the source), and what takes its place; `text` is
    the line."""

    line: int
    text: str
    start: int
    end: int
    before: str
    after: str

    def applied(self, source: bytes) -> bytes:
        """Return the source with this change."""
        return source[: self.start] + self.after.encode() + source[self.end :]


def mutants_of(source: bytes) -> list[Mutant]:
    """Return every mutant of a module, in the order of its lines."""
    starts = [0]  # of each line, in bytes
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    found = []
    for node in _walk(ast.parse(source)):
        after = _changed(node)
        if after is not None:
            start = starts[node.lineno - 1] + node.col_offset
            end = starts[node.end_lineno - 1] + node.end_col_offset
            before = source[start:end].decode()
            text = source.splitlines()[node.lineno - 1].decode().strip()
            found.append(Mutant(node.lineno, text, start, end, before, after))
    return sorted(found, key=lambda mutant: (mutant.start, mutant.end))


def _walk(node: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes that may be changed."""
    for name, value in ast.iter_fields(node):
        if name in ("decorator_list", "returns", "annotation"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST) and not isinstance(child, LEFT_OUT):
                yield child
                yield from _walk(child)


def _changed(node: ast.AST) -> str | None:
    """Return the text that takes the place of a node, None where it stays."""
    match node:
        case ast.Compare(left=left, ops=[op], comparators=[right]):
            return f"({ast.unparse(left)} {COMPARED[type(op)]} {ast.unparse(right)})"
        case ast.BinOp(left=left, op=op, right=right) if type(op) in CALCULATED:
            return f"(({ast.unparse(left)}) {CALCULATED[type(op)]} ({ast.unparse(right)}))"
        case ast.BoolOp(op=op, values=values):
            word = " or " if isinstance(op, ast.And) else " and "
            return "(" + word.join(f"({ast.unparse(value)})" for value in values) + ")"
        case ast.UnaryOp(op=ast.Not() | ast.USub(), operand=operand):
            return f"({ast.unparse(operand)})"
        case ast.Constant(value=bool(value)):
            return str(not value)
        case ast.Constant(value=int(value) | float(value)):
            return repr(value + 1)
        case ast.Expr(value=ast.Call()):
            return "None"
    return None


class _Changed(importlib.abc.MetaPathFinder, importlib.abc.SourceLoader):
    """Import one module from a text in place of its file."""

    def __init__(self, name: str, path: Path, source: bytes):
        self.name, self.path, self.source = name, path, source

    def find_spec(self, name, path=None, target=None):
        if name == self.name:
            return importlib.util.spec_from_loader(name, self, origin=str(self.path))
        return None

    def get_filename(self, name):
        return str(self.path)

    def get_data(self, path):
        return self.source


def survives(module: str, source: bytes) -> bool:
    """Say whether the tests of a module pass with this text of it."""
    path = ROOT / "fairlab" / f"{module.replace('.', '/')}.py"
    child = os.fork()
    if child == 0:
        code = 1
        with contextlib.suppress(BaseException):
            os.setsid()  # so that what a test starts ends with it
            with open(os.devnull, "wb") as quiet:
                os.dup2(quiet.fileno(), 1)
                os.dup2(quiet.fileno(), 2)
            sys.meta_path.insert(0, _Changed(f"fairlab.{module}", path, source))
            import pytest

            tests = [str(ROOT / "tests" / f"{name}.py") for name in TESTS[module]]
            options = ["-x", "-q", "-p", "no:cacheprovider", "-m", "not real and not slow"]
            code = int(pytest.main([*options, *filter(os.path.isfile, tests)]))
        os._exit(code)
    end = time.monotonic() + LONGEST
    while time.monotonic() < end:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return status == 0
        time.sleep(0.05)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


def try_module(module: str, end: float) -> dict:
    """Try the mutants of a module until a time; return what is known of them."""
    source = (ROOT / "fairlab" / f"{module.replace('.', '/')}.py").read_bytes()
    path = FOLDER / f"{module}-{hashlib.sha256(source).hexdigest()[:16]}.json"
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    mutants = mutants_of(source)
    if not survives(module, source):
        raise SystemExit(f"{module}: its tests fail as it is")
    FOLDER.mkdir(parents=True, exist_ok=True)
    # survivors first: a test may have come for them
    for number in sorted(range(len(mutants)), key=lambda number: not known.get(str(number))):
        mutant = mutants[number]
        if known.get(str(number)) is not False and time.monotonic() < end:
            known[str(number)] = survives(module, mutant.applied(source))
            path.write_text(json.dumps(known), encoding="utf-8")
    tried = [mutant for number, mutant in enumerate(mutants) if str(number) in known]
    alive = [mutant for number, mutant in enumerate(mutants) if known.get(str(number))]
    return {"mutants": len(mutants), "tried": len(tried), "alive": alive}


def survivor_line(module: str, mutant: Mutant) -> str:
    """Return how a survivor is named: without the number of its line, which others move."""
    before, after = (" ".join(text.split()) for text in (mutant.before, mutant.after))
    return f"- `{module}`, in `{mutant.text}`: `{before}` → `{after}`"


def report(found: dict[str, dict], written: str) -> str:
    """Return the text of `tests/mutants.md`; what it said of modules not tried now stays."""
    rows = dict(re.findall(r"^\| ([\w.]+) (\| \d.*)$", written, re.MULTILINE))
    reasons = dict(re.findall(r"^(- `[\w.]+`, .* → `[^`]*`): (.*)$", written, re.MULTILINE))
    lines = {module: [] for module in TESTS}
    for line, module in re.findall(r"^(- `([\w.]+)`, .*)$", written, re.MULTILINE):
        lines[module].append(line)
    for module, result in found.items():
        tried, alive = result["tried"], len(result["alive"])
        share = f"{(tried - alive) / tried:.0%}" if tried else "–"
        rows[module] = f"| {result['mutants']} | {tried} | {tried - alive} | {share} |"
        lines[module] = []
        for mutant in result["alive"]:
            line = survivor_line(module, mutant)
            lines[module].append(f"{line}: {reasons.get(line, 'not looked at yet')}")
    text = [
        "# Which changes of the code the tests notice",
        "",
        "Written by `tools/mutants.py`, which says what is changed; the reasons are written by "
        "hand. A module without a row was not tried.",
        "",
        "| module | mutants | tried | killed | share of those tried |",
        "|---|---|---|---|---|",
        *(f"| {module} {rows[module]}" for module in TESTS if module in rows),
        "",
        "## Survivors",
        "",
        *(line for module in TESTS for line in lines[module]),
    ]
    return "\n".join(text) + "\n"


def main() -> None:
    """Try modules, and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("modules", nargs="*", choices=[*TESTS, []], default=[])
    parser.add_argument("--minutes", type=float, default=float("inf"))
    options = parser.parse_args()
    os.chdir(ROOT)
    sys.path[:0] = [str(ROOT), str(ROOT / "tools"), str(ROOT / "tests")]
    for name in ("torch", "transformers", "pandas", "scipy.stats", "seaborn", "sklearn", "pytest"):
        importlib.import_module(name)  # once, for all that are forked
    end = time.monotonic() + 60 * options.minutes
    written = REPORT.read_text(encoding="utf-8") if REPORT.is_file() else ""
    for module in options.modules or TESTS:
        found = try_module(module, end)
        print(
            f"{module}: {found['tried']} of {found['mutants']} tried", len(found["alive"]), "live"
        )
        for mutant in found["alive"]:
            print(f"  line {mutant.line}", survivor_line(module, mutant))
        written = report({module: found}, written)
        REPORT.write_text(written, encoding="utf-8")


if __name__ == "__main__":
    main()
