"""The tools behind `make test`, `make robust` and `make site`."""

import ast
import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import commit_message
import explorer_pages
import house
import mutants
import nbformat
import pytest
import robust
import run_tests
import torch
import tried
from safetensors.torch import load_file, save_file

import fairlab
from fairlab import weights

ROOT = Path(__file__).parent.parent
REPORT = """<testsuites><testsuite tests="4" failures="1" errors="0" skipped="1">
<testcase classname="notebooks.a.ipynb" name="Cell 1" time="3.5">
<properties><property name="moved" value="2"/></properties></testcase>
<testcase classname="notebooks.a.ipynb" name="Cell 2" time="0.5">
<failure message="differs"/></testcase>
<testcase classname="tests.b" name="test_c" time="1"/>
<testcase classname="tests.b" name="test_d" time="0"><skipped/></testcase>
</testsuite></testsuites>"""


def test_the_parts_of_make_test_are_there():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    named = re.findall(r"run_tests\.py (.*)", makefile)
    parts = {part for words in named for part in words.split(" --")[0].split()}
    assert parts == {*run_tests.PARTS, "times"}
    assert re.search(
        r"^test: setup-all\n\t.*run_tests.py lint lessons robust unit$", makefile, re.MULTILINE
    )


def test_the_last_line_counts_what_passed(tmp_path):
    report = tmp_path / "unit.xml"
    assert run_tests.outcome(report) == ""
    report.write_text(REPORT, encoding="utf-8")
    assert run_tests.outcome(report) == "2 passed, 1 failed, 1 skipped"


def test_a_part_that_fails_is_told_and_fails(tmp_path, monkeypatch):
    monkeypatch.setattr(run_tests, "RESULTS", tmp_path)
    commands = [[sys.executable, "-c", f"raise SystemExit({code})"] for code in (1, 0)]
    monkeypatch.setitem(run_tests.PARTS, "lint", commands)
    text, passed = run_tests.run("lint", 1, None)
    assert (text.startswith("lint failed (0 min 0"), passed) == (True, False)


OVERLAP = {
    "lint": """
        print("lint begins", flush=True)
        touch(os.environ["FAIRLAB_IDLE"])
        wait_for("lessons")
        time.sleep(0.5)
        touch("lint")
        print("lint ends")""",
    "lessons": """
        touch("lessons")
        print("lessons", flush=True)
        touch(os.environ["FAIRLAB_IDLE"])
        wait_for("robust")
        print("lessons end")""",
    "robust": """
        assert Path("lint").exists(), "a third part starts beside two others"
        touch("robust")
        print("robust")
        raise SystemExit(3)""",
}
HELPERS = """
import os, time
from pathlib import Path
def touch(path):
    Path(path).touch()
def wait_for(path):
    for _ in range(200):
        if Path(path).exists():
            return
        time.sleep(0.1)
    raise SystemExit(1)
"""


def test_a_part_starts_where_the_one_before_leaves_a_core_idle(tmp_path, monkeypatch, capfd):
    """Two of them run at a time; each is shown when the one before has ended."""
    monkeypatch.setattr(run_tests, "RESULTS", tmp_path)
    monkeypatch.setattr(run_tests, "ROOT", tmp_path)
    for part, code in OVERLAP.items():
        program = HELPERS + textwrap.dedent(code)
        monkeypatch.setitem(run_tests.PARTS, part, [[sys.executable, "-c", program]])
    results = run_tests.run_parts(list(OVERLAP), 2, None)
    assert capfd.readouterr().out.splitlines() == [
        *("lint begins", "lint ends"),
        *("lessons", "lessons end"),
        "robust",
    ]
    assert [text.split(" (")[0] for text, _ in results] == [
        *("lint passed", "lessons passed"),
        "robust failed",
    ]
    assert [passed for _, passed in results] == [True, True, False]


def test_a_worker_that_has_nothing_left_is_told_of(request, tmp_path, monkeypatch):
    if not request.config.pluginmanager.hasplugin("xdist"):
        pytest.skip("needs pytest-xdist")
    monkeypatch.setenv(run_tests.IDLE, str(tmp_path / "idle"))
    request.config.hook.pytest_testnodedown(node=None, error=None)
    assert (tmp_path / "idle").exists()


def test_tests_start_without_the_grammar_that_takes_a_second():
    code = "import tools.light_imports, nbformat, sys; print('lark' in sys.modules)"
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout == "False\n"
    for part in ("quick", "unit", "lessons"):
        assert "tools.light_imports" in run_tests.PARTS[part][0]


def test_where_the_minutes_went(tmp_path, monkeypatch):
    monkeypatch.setattr(run_tests, "RESULTS", tmp_path)
    (tmp_path / "lessons.xml").write_text(REPORT, encoding="utf-8")
    lines = run_tests.times().splitlines()
    assert lines[1].split() == ["4.0", "lessons:", "notebooks.a.ipynb"]
    assert "     3.5  lessons: notebooks.a.ipynb Cell 1" in lines


def test_each_worker_has_its_share_of_the_cores(monkeypatch):
    monkeypatch.setattr(run_tests.os, "cpu_count", lambda: 8)
    assert run_tests.environment(2)["OMP_NUM_THREADS"] == "4"
    assert run_tests.environment(16)["OMP_NUM_THREADS"] == "1"


@pytest.mark.parametrize(
    ("part", "workers", "number", "threads"),
    [("unit", 2, "3", "2"), ("quick", 2, "3", "2"), ("lessons", 2, "2", "4"), ("unit", 1, "", "8")],
)
def test_tests_that_wait_get_one_worker_more(part, workers, number, threads, tmp_path, monkeypatch):
    seen = {}

    def run_command(command, variables, **options):
        seen["number"] = command[command.index("-n") + 1] if "-n" in command else ""
        seen["threads"] = variables["OMP_NUM_THREADS"]
        return 0

    monkeypatch.setattr(run_tests, "RESULTS", tmp_path)
    monkeypatch.setattr(run_tests.os, "cpu_count", lambda: 8)
    monkeypatch.setattr(run_tests, "run_command", run_command)
    run_tests.run(part, workers, None)
    assert seen == {"number": number, "threads": threads}


def test_what_is_compiled_is_kept_for_the_next_process(monkeypatch):
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    assert "PYTHONDONTWRITEBYTECODE" not in run_tests.environment(2)


def runs_that_end(code, report, folder, monkeypatch):
    """Let each run of robust write this report, if any, and end with this exit code."""

    def run_command(command, variables):
        (option,) = [word for word in command if word.startswith("--junitxml=")]
        if report:
            Path(option.partition("=")[2]).write_text(report, encoding="utf-8")
        return code

    monkeypatch.setattr(robust, "FOLDER", folder)
    monkeypatch.setattr(robust, "run_command", run_command)


def test_the_table_of_what_changes(tmp_path, monkeypatch):
    runs_that_end(1, REPORT, tmp_path, monkeypatch)
    entries = robust.run("avx2", ["notebooks"], 1, unit=False)
    assert list(entries.values()) == ["2", "FAIL", "=", "="]
    table = robust.table({"avx2": entries, "default": dict.fromkeys(entries, "=")})
    assert "| notebooks.a.ipynb Cell 1 | 2 | = |" in table
    assert "test_c" not in table
    assert table.endswith("4 cells and tests in 2 settings: 1 failed")


@pytest.mark.parametrize(
    ("code", "report"),
    [(2, REPORT), (3, ""), (5, REPORT), (-9, ""), (0, ""), (1, "")],
    ids=["stopped", "broken", "nothing ran", "killed", "no report", "no report, failed"],
)
def test_a_run_that_did_not_happen_fails(code, report, tmp_path, monkeypatch):
    """Nor is a report read that an earlier run left."""
    runs_that_end(code, report, tmp_path, monkeypatch)
    (tmp_path / "avx2-lessons.xml").write_text(REPORT, encoding="utf-8")
    entries = robust.run("avx2", ["notebooks"], 1, unit=False)
    assert entries == {f"lessons: pytest ended with {code}": "FAIL"}


def test_what_make_test_runs_changes_the_kernels_of_every_processor():
    """With avx2 nothing would change on a processor that has no newer kernels."""
    (kernel, _), *others = [setting.split("+") for setting in robust.CHEAP]
    assert robust.KERNELS[kernel] == {"ATEN_CPU_CAPABILITY": "default"} and not others


@pytest.mark.parametrize("seed", [0, 1])
def test_noise_is_of_the_size_that_it_says(seed, tmp_path, monkeypatch):
    source = tmp_path / "cache" / "fairlab" / "tiny"
    source.mkdir(parents=True)
    weight = torch.linspace(0.5, 2, 20_000)
    save_file({"weight": weight}, source / "model.safetensors", metadata={"format": "pt"})
    second = source.with_name("second-0-transformers-5.6.0")
    second.mkdir()
    monkeypatch.setattr(weights, "find_weights", lambda name: (str(source), True))
    monkeypatch.setattr(robust, "user_cache_path", lambda: tmp_path / "cache")
    monkeypatch.setattr(robust, "FOLDER", tmp_path / "robust")
    folder = robust.noisy_cache(seed) / "fairlab" / "tiny"
    moved = (load_file(folder / "model.safetensors")["weight"].double() / weight.double() - 1).std()
    assert moved == pytest.approx(robust.NOISE, rel=0.1)
    assert weights.is_intact(folder)
    assert (folder.parent / second.name).samefile(second)
    assert json.loads((folder / "sha256.json").read_text(encoding="utf-8")).keys() == {
        "model.safetensors"
    }


def test_a_mutant_is_one_change_of_what_runs():
    source = b'''"""One < two."""
def f(a: int = 1) -> "x < y":
    """A + B."""
    if not a < 2 and a:
        raise ValueError(a + 1)
    print(f"{a + 3}", True)
    return a - 1
'''
    found = mutants.mutants_of(source)
    assert [(mutant.line, mutant.before, mutant.after) for mutant in found] == [
        (2, "1", "2"),
        (4, "not a < 2", "(a < 2)"),
        (4, "not a < 2 and a", "((not a < 2) or (a))"),
        (4, "a < 2", "(a <= 2)"),
        (4, "2", "3"),
        (6, 'print(f"{a + 3}", True)', "None"),
        (6, "True", "False"),
        (7, "a - 1", "((a) + (1))"),
        (7, "1", "2"),
    ]
    for mutant in found:
        compile(mutant.applied(source), "mutant", "exec")
        assert mutant.function == "f"
    assert mutants.survivor_line("m", found[0]) == (
        '- `m`, in `def f(a: int = 1) -> "x < y":`: `1` → `2`'
    )


def test_a_mutant_meets_the_tests_that_enter_its_function(monkeypatch):
    source = (
        b"A = 1\nclass C:\n    B = 2\n    def f(self):\n        def g():\n            return 3\n"
    )
    found = mutants.mutants_of(source)
    assert [mutant.function for mutant in found] == ["", "", "C.f.<locals>.g"]
    seen = {
        "test_surgery": {"a": (20.0, []), "b": (5.0, ["gates: C.f.<locals>.g"])},
        "test_gates": {"c": (9.0, ["gates: C.f.<locals>.g"]), "d": (1.0, ["gates: C.f"])},
    }
    monkeypatch.setattr(mutants, "WATCHED", seen)
    assert mutants.tests_of("gates", found[2]) == {"test_gates": ["c"], "test_surgery": ["b"]}
    # outside of all functions every test fits, the fastest first, as far as the time goes
    assert mutants.tests_of("gates", found[0]) == {"test_gates": ["d", "c"], "test_surgery": ["b"]}


def test_the_report_on_mutants_keeps_what_was_known():
    first = mutants.Mutant(3, "if a < b:", 0, 1, "a < b", "(a <= b)")
    one = mutants.report({"pairs": {"mutants": 9, "tried": 4, "alive": [first]}}, "")
    assert "| pairs | 9 | 4 | 3 | 75% |" in one
    line = "- `pairs`, in `if a < b:`: `a < b` → `(a <= b)`: "
    assert line + "not looked at yet" in one
    one = one.replace("not looked at yet", "both are the same: here")
    two = mutants.report({"statistics": {"mutants": 2, "tried": 0, "alive": []}}, one)
    assert "| statistics | 2 | 0 | 0 | – |" in two and "| pairs | 9 | 4 | 3 | 75% |" in two
    again = mutants.report({"pairs": {"mutants": 9, "tried": 9, "alive": [first]}}, two)
    assert line + "both are the same: here" in again and "| pairs | 9 | 9 | 8 | 89% |" in again
    modules = [f"{mutants.ROOT}/fairlab/{name.replace('.', '/')}.py" for name in mutants.TESTS]
    assert all(map(os.path.isfile, modules))


# ---- what CONTRIBUTING says of the project


def test_the_table_of_contributing_is_what_house_counts():
    """To within 2 % or one line, so that not every change of a line changes the table."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for name, counted in house.count().items():
        row = re.search(rf"^\| {re.escape(name)} \| ([^|]*) \|", text, re.MULTILINE)
        assert row, f"CONTRIBUTING has no row {name!r}"
        written, found = numbers_in(row[1]), numbers_in(counted)
        unit = 0.1 if "." in counted else 1
        assert written == pytest.approx(found, rel=0.02, abs=unit), f"{name}: {counted}"
    # the sentence below the table rounds
    lines = sum(
        len(path.read_text(encoding="utf-8").splitlines()) for path in house.PACKAGE.rglob("*.py")
    )
    (said,) = re.findall(r"with ([\d,]+) lines, ([\d,]+) of code and (\d+) names", text)
    code = house.count()["code lines"]
    said_lines, said_code, said_names = (numbers_in(number)[0] for number in said)
    assert [said_lines, said_code] == pytest.approx([lines, *numbers_in(code)], rel=0.02)
    assert said_names == len(fairlab.__all__)


def test_what_was_tried_is_what_tried_counts():
    """To within 5 % or one, so that not every new case changes the table."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for name, counted in tried.count().items():
        row = re.search(rf"^\| {re.escape(name)} \| (.*) \|$", text, re.MULTILINE)
        assert row, f"CONTRIBUTING has no row {name!r}"
        expected = pytest.approx(numbers_in(counted), rel=0.05, abs=1)
        assert numbers_in(row[1]) == expected, f"{name}: {counted}"


def numbers_in(text):
    return [float(number) for number in re.findall(r"[\d.]+", text.replace(",", ""))]


FIRST_CHECKED = "6499ca8"  # the commits behind this one keep to the rule


def test_commit_messages_say_what_and_why():
    def git(*words):
        command = ["git", "-C", str(ROOT), *words]
        return subprocess.run(command, capture_output=True, text=True, encoding="utf-8")

    log = git("log", "--no-merges", "--format=%h%n%B%x00", f"{FIRST_CHECKED}..HEAD")
    if log.returncode:
        pytest.skip("needs the history of git")
    wrong = {}
    for entry in log.stdout.split("\0"):
        name, _, message = entry.strip().partition("\n")
        if name and commit_message.problems(message):
            wrong[name] = commit_message.problems(message)
    assert not wrong


@pytest.mark.parametrize(
    ("message", "found"),
    [
        ("Say what\n\nAnd why.\n", []),
        ("Say what\n\nAnd why.\n# a comment of git\n", []),
        ("s" * 72 + "\n\nWhy.", []),
        ("Merge branch 'main'", []),
        ("s" * 73 + "\n\nWhy.", ["the subject has 73 characters, of at most 72"]),
        ("Say what", ["after an empty line a body should say why"]),
        ("Say what\nand why", ["after an empty line a body should say why"]),
        ("# only git's comments", ["the subject has 0 characters", "a body"]),
    ],
)
def test_the_hook_refuses_a_message_that_breaks_the_rule(message, found, tmp_path):
    problems = commit_message.problems(message)
    assert len(problems) == len(found)
    path = tmp_path / "COMMIT_EDITMSG"
    path.write_text(message, encoding="utf-8")
    script = ROOT / "tools" / "commit_message.py"
    run = subprocess.run([sys.executable, script, path], capture_output=True, text=True)
    assert bool(run.returncode) == bool(found)
    assert all(said in run.stderr for said in found)
    assert os.name == "nt" or script.stat().st_mode & 0o111, "git runs it as a program"


# what the last line needs is marked
LESSON = """\
import math  #
import json
sums = []  #
for a in (1, 2): sums.append(a)  #
wrong = 1 / 0
def add(b): wrong = b; return b + total  #
total = 0  #
for a in sums: total = total + math.sqrt(a)  #
numbers = 0
numbers = {name: total for name in "ab"}  #
for name in numbers: print(name, json.dumps(wrong))
numbers["c"] = add(1)  #
assert not numbers
numbers  #
"""


def test_of_a_lesson_runs_what_its_explorer_depends_on():
    statements = ast.parse(LESSON).body
    kept = explorer_pages.needed(statements, [statements[-1]])
    lines = [line for line in LESSON.splitlines() if line.endswith("  #")]
    assert [LESSON.splitlines()[statement.lineno - 1] for statement in kept] == lines
    names = {}
    for statement in kept:
        exec(compile(ast.Module([statement], []), "lesson", "exec"), names)
    assert names["numbers"] == {"a": 1 + 2**0.5, "b": 1 + 2**0.5, "c": 2 + 2**0.5}


def test_no_explorer_of_the_site_needs_what_takes_long():
    found = 0
    for path in sorted((ROOT / "notebooks").glob("[0-9]*.ipynb")):
        statements, shown = explorer_pages.statements_of(nbformat.read(path, as_version=4).cells)
        kept = explorer_pages.needed(statements, list(shown))
        text = "\n".join(map(ast.unparse, kept))
        assert not re.search(r"save_model|plot_|^assert", text, re.MULTILINE), path
        found += len(shown)
    assert found == 4
