"""Settings for all tests, and the rule by which nbval compares the lessons; kernels inherit the
environment."""

import os
from pathlib import Path

import pytest
from forked_kernel import QUIET
from printed_numbers import first_difference, moved

os.environ.update(QUIET)
collect_ignore = ["notebooks/app.ipynb"]  # no lesson: tests/test_page.py runs it


@pytest.hookimpl(optionalhook=True)  # pytest-xdist has it, which may not be installed
def pytest_testnodedown():
    """Tell tools/run_tests.py that a worker has nothing left to do: the next part may start."""
    if place := os.environ.get("FAIRLAB_IDLE"):
        Path(place).touch()


def pytest_collection_modifyitems(items):
    """Let nbval compare the numbers of a cell as numbers."""
    for item in items:
        if type(item).__name__ == "IPyNbCell":
            item.compare_outputs = _as_numbers(item, item.compare_outputs)


def _as_numbers(cell, compare):
    """Wrap nbval's comparison: what is the same by the rule of tools/printed_numbers.py it sees as
    equal."""

    def compare_outputs(now, stored, skip_compare=None):
        differing, digits = [], 0
        for fresh, kept in zip(now, stored, strict=False):
            for texts, reference in ((fresh, kept), (fresh.get("data", {}), kept.get("data", {}))):
                for key in ("text", "text/plain", "text/html"):
                    if not isinstance(texts.get(key), str) or not isinstance(
                        reference.get(key), str
                    ):
                        continue
                    difference = first_difference(reference[key], texts[key])
                    if difference:
                        differing.append(difference)
                    else:
                        digits += moved(reference[key], texts[key])
                        texts[key] = reference[key]
        cell.user_properties.append(("moved", digits))
        equal = compare(now, stored, skip_compare)
        if not equal and differing:
            lesson, number = cell.path.name, cell.cell_num + 1
            lines = [f"{lesson}, In [{number}]: stored {a!r}, now {b!r}" for a, b in differing]
            cell.comparison_traceback[:0] = [*lines, ""]
        return equal

    return compare_outputs
