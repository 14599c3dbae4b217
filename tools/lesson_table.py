"""Measure the minutes and the peak memory of each lesson, and write the tables of both READMEs.

    python tools/lesson_table.py            # run copies of the lessons whose row is stale
    python tools/lesson_table.py --all      # run all lessons: several minutes
    python tools/lesson_table.py --check    # run nothing; say which rows are stale

`notebooks/README.md` holds what was measured; `README.md` repeats it. A row is stale when the code
of its lesson has changed since it was measured: a hash of it stands in the row, as a comment that a
reader of the page does not see. Memory is the peak resident memory of the kernel
process (VmHWM), so it needs Linux.
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
LIMIT_GB = 1.6  # Binder gives 2, and the server takes its part
BEYOND_BINDER = ("08", "10", "11", "12", "13")
PEAK = """
with open("/proc/self/status") as status:
    print(next(line.split()[1] for line in status if line.startswith("VmHWM")))
"""


def lessons() -> list[Path]:
    """Return the lessons in order."""
    return sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))


def code_hash(path: Path) -> str:
    """Return a short hash of the code of a lesson; prose and the cell for Colab do not change what
    a run takes."""
    cells = [
        cell
        for cell in nbformat.read(path, as_version=4).cells
        if "colab" not in cell.metadata.get("tags", [])
    ]
    code = "\0".join(cell.source for cell in cells if cell.cell_type == "code")
    return hashlib.sha256(code.encode()).hexdigest()[:8]


def question(path: Path) -> str:
    """Return the question that a lesson opens with."""
    return re.search(
        r"^\*\*([^*]+\?)\*\*$", nbformat.read(path, as_version=4).cells[0].source, re.MULTILINE
    )[1]


def learning_time(path: Path) -> str:
    """Return how long a lesson says that it takes to read, and its exercises to do."""
    start = nbformat.read(path, as_version=4).cells[0].source
    minutes = re.search(r"bout (\d+) minutes to read and (\d+) for the exercises", start)
    return f"{minutes[1]} + {minutes[2]} min"


def measure(path: Path) -> tuple[float, float]:
    """Run a lesson in a fresh kernel; return the seconds it took and its peak memory in GB."""
    peak = []

    def read(client: NotebookClient) -> None:
        cell = nbformat.v4.new_code_cell(PEAK)
        client.nb.cells.append(cell)
        client.execute_cell(cell, len(client.nb.cells) - 1)
        peak.append(int(cell.outputs[0].text))

    start = time.perf_counter()
    execute(path, before_end=read)
    return time.perf_counter() - start, peak[0] * 1024 / 1e9


def measured() -> dict[str, tuple[str, str, str]]:
    """Return minutes, memory and code hash of the rows that stand in the table, by the lesson's
    file name."""
    rows = re.findall(
        r"\]\((\S+)\) \|.*\| (\S+) \| (\S+ GB) <!-- (\w+) --> \|$",
        TABLE.read_text(encoding="utf-8"),
        re.MULTILINE,
    )
    return {name: tuple(values) for name, *values in rows}


def stale() -> list[Path]:
    """Return the lessons whose row is missing or was measured with other code."""
    known = measured()
    return [path for path in lessons() if known.get(path.name, ("",))[-1] != code_hash(path)]


def write(path: Path, rows: list[str]) -> None:
    """Replace the rows of the lesson table in a file."""
    text = path.read_text(encoding="utf-8")
    text, replaced = re.subn(
        r"(?<=\|---\|\n)(\| \d\d \|.*\n)*", "".join(f"{row}\n" for row in rows), text, count=1
    )
    assert replaced, f"{path} has no table"
    path.write_text(text, encoding="utf-8")


def write_tables(known: dict[str, tuple[str, str, str]]) -> None:
    """Write the rows of both tables; the README's has no code hashes."""
    rows, readme_rows = [], []
    for path in lessons():
        minutes, memory, code = known[path.name]
        rows.append(table_row(path, path.name, minutes, f"{memory} <!-- {code} -->"))
        readme_rows.append(table_row(path, f"notebooks/{path.name}", minutes, memory))
    write(TABLE, rows)
    write(ROOT / "README.md", readme_rows)


def table_row(path: Path, link: str, minutes: str, memory: str) -> str:
    """Return the row of a lesson: its number, a link, its question and what was measured."""
    name = f"[{path.name}]({link})"
    cells = [path.name[:2], name, question(path), learning_time(path), minutes, memory]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Measure and write the tables, or check them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--all", action="store_true", help="measure all lessons again")
    which.add_argument(
        "--check", action="store_true", help="run nothing; exit with 1 where a row is stale"
    )
    options = parser.parse_args()
    if options.check:
        names = [path.name for path in stale()]
        if names:
            raise SystemExit(
                f"measured with other code: {', '.join(names)}; run: make lesson-table"
            )
        return
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "1000000"
    os.environ["TQDM_DISABLE"] = os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    known = measured()
    for path in lessons() if options.all else stale():
        seconds, memory = measure(path)
        if memory > LIMIT_GB and path.name[:2] not in BEYOND_BINDER:
            raise SystemExit(
                f"{path.name}: {memory:.2f} GB, more than the {LIMIT_GB} GB that Binder leaves"
            )
        known[path.name] = f"{seconds / 60:.1f}", f"{memory:.2f} GB", code_hash(path)
    write_tables(known)
    print("| # " + TABLE.read_text(encoding="utf-8").split("| # ")[1].split("\n\n")[0])


if __name__ == "__main__":
    main()
