"""Change the code in one place at a time, and see whether a test notices.

    python tools/mutants.py statistics scores --sample 40 --minutes 10

A mutant is the module with one change: `<=` for `<`, `-` for `+`, `or` for `and`, a number that is
one more, a `not` or a call that is left out. Each runs in a process of its own, forked from one in
which torch is imported, with those tests of the module's files that enter the changed function, the
fastest first and no more than fit into half a minute; it is killed if one of them fails or takes
too long. Which tests enter what is watched once for each file of tests. What was killed is kept in
`build/mutants/` by the text of the module, so that a run that was stopped goes on; survivors are
tried again (delete the folder to start anew).

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
import random
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "build" / "mutants"
REPORT = ROOT / "tests" / "mutants.md"
# module → the files of the tests that fit it, the fastest first
TESTS = {
    "statistics": ["test_survivors", "test_statistics"],
    "pairs": ["test_pairs", "test_chat", "test_decisions", "test_unequal", "test_bad_input"],
    "scores": ["test_scores", "test_decisions", "test_gating", "test_unequal", "test_bad_input"],
    "gates": ["test_gates", "test_gating", "test_surgery"],
    "gating": ["test_gating", "test_bad_input", "test_device_map"],
    "surgery": ["test_surgery", "test_safety", "test_unequal", "test_bad_input", "test_device_map"],
    "capture": ["test_capture", "test_families", "test_unequal", "test_bad_input"],
    "evaluation.chance": ["test_evaluation", "test_compare"],
    "evaluation.compare": ["test_evaluation", "test_compare", "test_faults", "test_unequal"],
    "evaluation.flattening": ["test_evaluation", "test_compare", "test_unequal"],
    "evaluation.readings": ["test_evaluation", "test_compare", "test_faults", "test_unequal"],
    "evaluation.rows": ["test_survivors", "test_compare", "test_safety"],
}
ENOUGH = 30  # seconds of tests that a mutant gets
LONGEST = 60  # and so many more before it is stopped, and counts as killed
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
    function: str = ""  # the innermost one that it stands in, by its qualified name

    def applied(self, source: bytes) -> bytes:
        """Return the source with this change."""
        return source[: self.start] + self.after.encode() + source[self.end :]


def mutants_of(source: bytes) -> list[Mutant]:
    """Return every mutant of a module, in the order of its lines."""
    starts = [0]  # of each line, in bytes
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    found, tree = [], ast.parse(source)
    for node in _walk(tree):
        after = _changed(node)
        if after is not None:
            start = starts[node.lineno - 1] + node.col_offset
            end = starts[node.end_lineno - 1] + node.end_col_offset
            before = source[start:end].decode()
            text = source.splitlines()[node.lineno - 1].decode().strip()
            function = function_at(tree, node.lineno)
            found.append(Mutant(node.lineno, text, start, end, before, after, function))
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


def function_at(node: ast.AST, line: int, outer: str = "") -> str:
    """Return the qualified name of the innermost function round a line; "" outside of all."""
    for child in ast.iter_child_nodes(node):
        if not hasattr(child, "lineno") or not child.lineno <= line <= child.end_lineno:
            continue
        if isinstance(child, ast.ClassDef):
            return function_at(child, line, f"{outer}{child.name}.")
        if isinstance(child, ast.FunctionDef):
            name = outer + child.name
            return function_at(child, line, f"{name}.<locals>.") or name
        if found := function_at(child, line, outer):
            return found
    return ""


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


class Watch:
    """A plugin of pytest that notes how long each test takes, but for its fixtures, which serve
    others, too; and which functions of fairlab it enters, its fixtures among them."""

    def __init__(self):
        self.tests, self.failed = {}, set()
        self.seconds, self.entered = 0.0, set()  # of fixtures; of the test or fixture that runs
        self.fixtures = {}  # name → functions

    def note(self, frame, event, argument):
        """Take down a function that is entered, as the function that `sys.settrace` asks for."""
        code = frame.f_code
        if code.co_filename.startswith(f"{ROOT}/fairlab/"):
            path = Path(code.co_filename).relative_to(ROOT / "fairlab").with_suffix("")
            self.entered.add(f"{'.'.join(path.parts)}: {code.co_qualname}")

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_protocol(self, item):
        """Watch one test."""
        self.seconds, self.entered = 0.0, set()
        start = time.perf_counter()
        sys.settrace(self.note)
        yield
        sys.settrace(None)
        seconds = time.perf_counter() - start - self.seconds
        entered = self.entered.union(
            *map(self.fixtures.get, self.fixtures.keys() & item.fixturenames)
        )
        self.tests[item.nodeid] = (round(seconds, 3), sorted(entered))

    @pytest.hookimpl(hookwrapper=True)
    def pytest_fixture_setup(self, fixturedef):
        """Watch one fixture: it may serve many tests, and is made in the first of them."""
        outer, self.entered = self.entered, set()
        start = time.perf_counter()
        yield
        self.seconds += time.perf_counter() - start
        self.fixtures.setdefault(fixturedef.argname, set()).update(self.entered)
        self.entered = outer

    def pytest_runtest_logreport(self, report):
        """Remember what fails."""
        if report.failed:
            self.failed.add(report.nodeid)


class Only:
    """A plugin of pytest that runs these tests alone, in their order."""

    def __init__(self, tests: Sequence[str]):
        self.places = {test: place for place, test in enumerate(tests)}

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items):
        """Leave out all others."""
        chosen = [item for item in items if item.nodeid in self.places]
        items[:] = sorted(chosen, key=lambda item: self.places[item.nodeid])


def in_a_fork(work: Callable[[], bool], seconds: float) -> bool:
    """Say whether work that is done in a process of its own returns True in time."""
    child = os.fork()
    if child == 0:
        code = 1
        with contextlib.suppress(BaseException):
            os.setsid()  # so that what a test starts ends with it
            with open(os.devnull, "wb") as quiet:
                os.dup2(quiet.fileno(), 1)
                os.dup2(quiet.fileno(), 2)
            code = 0 if work() else 1
        os._exit(code)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return status == 0
        time.sleep(0.02)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


def run_tests(name: str, plugin: object, *more: str) -> int:
    """Run a file of tests, but for those with the real model; return pytest's exit code."""
    options = ["-q", "-p", "no:cacheprovider", "-p", "no:nbval", "-m", "not real", *more]
    return int(pytest.main([*options, str(ROOT / "tests" / f"{name}.py")], plugins=[plugin]))


def watched(name: str) -> dict[str, tuple[float, list[str]]]:
    """Return of each test of a file that passes how long it takes and which functions it enters;
    import here what it imports, so that no mutant has to."""
    text = (ROOT / "tests" / f"{name}.py").read_bytes()
    path = FOLDER / f"{name}-{hashlib.sha256(text).hexdigest()[:16]}.json"

    def work() -> bool:
        watch = Watch()
        run_tests(name, watch)
        tests = {test: facts for test, facts in watch.tests.items() if test not in watch.failed}
        imported = []
        for module in list(sys.modules.values()):
            if "site-packages" in (getattr(module, "__file__", None) or ""):
                imported.append(module.__name__)
        facts = {"tests": tests, "failed": sorted(watch.failed), "imported": imported}
        path.write_text(json.dumps(facts), encoding="utf-8")
        return True

    if not path.is_file():
        FOLDER.mkdir(parents=True, exist_ok=True)
        in_a_fork(work, 60 * LONGEST)
    facts = json.loads(path.read_text(encoding="utf-8"))
    if facts["failed"]:
        print(f"left out, since they fail as it is: {', '.join(facts['failed'])}", flush=True)
    for module in facts["imported"]:
        with contextlib.suppress(Exception):
            importlib.import_module(module)
    return facts["tests"]


def tests_of(module: str, mutant: Mutant) -> dict[str, list[str]]:
    """Return the tests that enter the function of a mutant, by file, the fastest first; what stands
    in no function is seen by every test."""
    function, found = f"{module}: {mutant.function}", []
    for name in TESTS[module]:
        for test, (seconds, entered) in WATCHED.get(name, {}).items():
            if not mutant.function or function in entered:
                found.append((seconds, name, test))
    chosen: dict[str, list[str]] = {name: [] for name in TESTS[module]}
    total = 0.0
    for seconds, name, test in sorted(found):
        total += seconds
        if total < ENOUGH:
            chosen[name].append(test)
    return {name: tests for name, tests in chosen.items() if tests}


WATCHED: dict[str, dict[str, tuple[float, list[str]]]] = {}  # file → what `watched` says of it


def survives(module: str, mutant: Mutant, source: bytes) -> bool:
    """Say whether the tests of a mutant pass with this text of its module."""
    path = ROOT / "fairlab" / f"{module.replace('.', '/')}.py"

    def work() -> bool:
        sys.meta_path.insert(0, _Changed(f"fairlab.{module}", path, source))
        for name, tests in tests_of(module, mutant).items():
            if run_tests(name, Only(tests), "-x"):
                return False
        return True

    return in_a_fork(work, ENOUGH + LONGEST)


def try_module(module: str, end: float, sample: int | None, seed: int) -> dict:
    """Try the mutants of a module, or some of them, until a time; return what is known of them."""
    source = (ROOT / "fairlab" / f"{module.replace('.', '/')}.py").read_bytes()
    path = FOLDER / f"{module}-{hashlib.sha256(source).hexdigest()[:16]}.json"
    for name in TESTS[module]:
        if name not in WATCHED and (ROOT / "tests" / f"{name}.py").is_file():
            WATCHED[name] = watched(name)
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    mutants = mutants_of(source)
    if mutants and not survives(module, mutants[0], source):
        raise SystemExit(f"{module}: its tests fail as it is")
    numbers = list(range(len(mutants)))
    if sample is not None and sample < len(numbers):
        numbers = sorted(random.Random(f"{module} {seed}").sample(numbers, sample))
    # survivors first: a test may have come for them
    for number in sorted(numbers, key=lambda number: not known.get(str(number))):
        mutant = mutants[number]
        if known.get(str(number)) is not False and time.monotonic() < end:
            known[str(number)] = survives(module, mutant, mutant.applied(source))
            path.write_text(json.dumps(known), encoding="utf-8")
            if known[str(number)]:
                print(f"  line {mutant.line}", survivor_line(module, mutant), flush=True)
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
        "hand. A module without a row was not tried; each row is of the module as it stood when it "
        "was tried, and lines that came or went since are not counted.",
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
    parser.add_argument("--sample", type=int, help="so many mutants of a module; default: all")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    options = parser.parse_args()
    os.chdir(ROOT)
    sys.path[:0] = [str(ROOT), str(ROOT / "tools"), str(ROOT / "tests")]
    for name in ("torch", "transformers", "pandas", "scipy.stats", "seaborn", "sklearn", "pytest"):
        importlib.import_module(name)  # once, for all that are forked
    end = time.monotonic() + 60 * options.minutes
    for module in options.modules or TESTS:
        found = try_module(module, end, options.sample, options.seed)
        counts = f"{found['tried']} of {found['mutants']} tried, {len(found['alive'])} live"
        print(f"{module}: {counts}", flush=True)
        written = REPORT.read_text(encoding="utf-8") if REPORT.is_file() else ""
        REPORT.write_text(report({module: found}, written), encoding="utf-8")


if __name__ == "__main__":
    main()
