"""Measure the minutes and the peak memory of each lesson, and write the table of `notebooks/README.md`.

    python tools/lesson_table.py            # run all lessons (copies; about five minutes) and write the table
    python tools/lesson_table.py --check    # run nothing; say which rows are stale

A row is stale when the code of its lesson has changed since it was measured. Memory is the peak resident memory of the
kernel process (VmHWM), so it needs Linux.
"""

import argparse
import hashlib
import os
import re
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from run_lesson import execute

ROOT = Path(__file__).resolve().parent.parent
TABLE = ROOT / "notebooks" / "README.md"
LIMIT_GIB = 1.6  # Binder gives 2, and the server takes its part
PEAK = """
with open("/proc/self/status") as status:
    print(next(line.split()[1] for line in status if line.startswith("VmHWM")))
"""


def lessons() -> list[Path]:
    """Return the lessons in order."""
    return sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))


def code_hash(path: Path) -> str:
    """Return a short hash of the code of a lesson; prose and the cell for Colab do not change what a run takes."""
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if "colab" not in cell.metadata.get("tags", [])]
    code = "\0".join(cell.source for cell in cells if cell.cell_type == "code")
    return hashlib.sha256(code.encode()).hexdigest()[:8]


def question(path: Path) -> str:
    """Return the question that a lesson opens with."""
    return re.search(r"^\*\*([^*]+\?)\*\*$", nbformat.read(path, as_version=4).cells[0].source, re.MULTILINE)[1]


def measure(path: Path) -> tuple[float, float]:
    """Run a lesson in a fresh kernel; return the seconds it took and its peak memory in GiB."""
    peak = []

    def read(client: NotebookClient) -> None:
        cell = nbformat.v4.new_code_cell(PEAK)
        client.nb.cells.append(cell)
        client.execute_cell(cell, len(client.nb.cells) - 1)
        peak.append(int(cell.outputs[0].text))

    start = time.perf_counter()
    execute(path, before_end=read)
    return time.perf_counter() - start, peak[0] / 1024**2


def row(path: Path) -> str:
    """Measure a lesson and return its row."""
    seconds, memory = measure(path)
    if memory > LIMIT_GIB:
        raise SystemExit(f"{path.name}: {memory:.2f} GiB, more than the {LIMIT_GIB} GiB that Binder leaves")
    link = f"[{path.name}]({path.name})"
    return (
        f"| {path.name[:2]} | {link} | {question(path)} | {seconds / 60:.1f} | {memory:.2f} GiB | {code_hash(path)} |"
    )


def stale() -> list[str]:
    """Return the lessons whose row is missing or was measured with other code."""
    text = TABLE.read_text(encoding="utf-8")
    return [path.name for path in lessons() if not re.search(rf"\({path.name}\).*\| {code_hash(path)} \|", text)]


def main() -> None:
    """Write the table, or check it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    if parser.parse_args().check:
        if names := stale():
            raise SystemExit(f"measured with other code: {', '.join(names)}; run: make lesson-table")
        return
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "1000000"
    os.environ["TQDM_DISABLE"] = os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    rows = "\n".join(row(path) for path in lessons())
    text = TABLE.read_text(encoding="utf-8")
    text, found = re.subn(r"(?<=\|---\|\n)(\|.*\n)+", rows + "\n", text, count=1)
    assert found
    TABLE.write_text(text, encoding="utf-8")
    print(rows)


if __name__ == "__main__":
    main()
