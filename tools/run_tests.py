"""Run the tests part by part; say in one line at the end what passed and how long each part took.

    python tools/run_tests.py lint lessons robust unit          # what `make test` runs
    python tools/run_tests.py lint quick                        # what `make quick` runs
    python tools/run_tests.py lessons --only notebooks/03_pca_layers.ipynb
    python tools/run_tests.py times                             # the minutes of the last run

`robust` runs the lessons 00 to 05 under other kernels and with other weights; beside it `lessons`
runs only the others. A part that fails does not keep the next one from running. With several
workers each of them has its share of the processor's cores: two programs that both ask for all
cores slow each other down. As soon as one of them has nothing left to do, the next part starts; it
is shown when the part before has ended.
"""

import argparse
import os
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from pathlib import Path

import forked_kernel

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "build" / "tests"
PYTEST = [sys.executable, "-m", "pytest"]
LIGHT = ["-p", "tools.light_imports"]
CAN_FORK = sys.platform == "linux"  # a fork after imports is not safe on macOS
NBVAL = [
    *LIGHT,
    "--nbval-lax",
    f"--nbval-kernel-name={forked_kernel.NAME}" if CAN_FORK else "--nbval-current-env",
    "--nbval-cell-timeout=300",
    "--dist=loadscope",
]
# glibc gives large tensors back to the system and asks for them anew, page by page, some per cent
# of the time of a pass; with these it keeps them for the next tensor
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "4000000000", "MALLOC_TRIM_THRESHOLD_": "4000000000"}
IDLE = "FAIRLAB_IDLE"  # the variable that names a part's `idle_file`
WAITING = ("quick", "unit")  # parts whose tests often wait: for browsers, processes, downloads
NO_NBVAL = [*LIGHT, "-p", "no:nbval"]  # takes each process seconds to import
FIRST_LESSONS = sorted(
    str(path.relative_to(ROOT)) for path in (ROOT / "notebooks").glob("0[0-5]_*.ipynb")
)
PARTS = {
    "lint": [
        [sys.executable, "-m", "ruff", "check", "."],
        [sys.executable, "-m", "ruff", "format", "--check", "."],
    ],
    "quick": [[*PYTEST, *NO_NBVAL, "--dist=loadgroup", "-m", "not real and not slow"]],
    "unit": [[*PYTEST, *NO_NBVAL, "--dist=loadgroup"]],
    "lessons": [[*PYTEST, *NBVAL, "notebooks"]],
    "robust": [[sys.executable, "tools/robust.py", "--cheap"]],
}


def environment(workers: int) -> dict[str, str]:
    """Return the environment of a part whose tests run in so many processes."""
    threads = max((os.cpu_count() or 1) // workers, 1)
    variables = {**os.environ, **KEEP_MEMORY, "OMP_NUM_THREADS": str(threads)}
    # containers tend to set it, and then each of many processes compiles all modules anew
    variables.pop("PYTHONDONTWRITEBYTECODE", None)
    return variables


def run_command(
    command: list[str],
    variables: Mapping[str, str],
    *,
    before: Sequence[Future] = (),
    log: Path | None = None,
) -> int:
    """Run a command, with kernels that start at once if it runs notebooks; return its exit code.

    With parts before it, what it writes goes to a file, and is shown once they have ended.
    """
    with ExitStack() as stack:
        if CAN_FORK and set(NBVAL) <= set(command):
            variables = stack.enter_context(forked_kernel.serving(variables))
        if not before:
            return subprocess.run(command, cwd=ROOT, env=variables, check=False).returncode
        # not a pipe: nobody reads it yet, and what a command leaves running may hold it open
        written, shown = stack.enter_context(log.open("wb")), stack.enter_context(log.open("rb"))
        outputs = {"stdout": written, "stderr": subprocess.STDOUT}
        process = subprocess.Popen(command, cwd=ROOT, env=variables, **outputs)
        wait(before)
        while True:
            has_ended = process.poll() is not None
            sys.stdout.buffer.write(shown.read())
            sys.stdout.buffer.flush()
            if has_ended:
                return process.returncode
            time.sleep(0.1)


def run(
    part: str, workers: int, only: list[Path] | None, before: Sequence[Future] = ()
) -> tuple[str, bool]:
    """Run one part; return what the last line says of it, and whether it passed."""
    start, code = time.perf_counter(), 0
    report = RESULTS / f"{part}.xml"
    report.unlink(missing_ok=True)
    if part in WAITING and workers > 1:
        workers += 1  # a worker that waits would leave its core idle
    variables = {**environment(workers), IDLE: str(idle_file(part))}
    for command in PARTS[part]:
        if only and command[-1] == "notebooks":
            command = [*command[:-1], *map(str, only)]
        if command[:3] == PYTEST:
            command = [*command, f"--junitxml={report}"]
            if workers > 1:
                command += ["-n", str(workers)]
            if sys.stdout.isatty():  # pytest itself may write to a file
                command += ["--color=yes"]
        log = RESULTS / f"{part}.log"
        code = run_command(command, variables, before=before, log=log) or code
    result = outcome(report) or ("failed" if code else "passed")
    return f"{part} {result} ({in_minutes(time.perf_counter() - start)})", code == 0


def run_parts(parts: list[str], workers: int, only: list[Path] | None) -> list[tuple[str, bool]]:
    """Run parts, each as soon as the one before leaves a core idle; return what `run` does."""
    jobs: list[Future] = []
    with ThreadPoolExecutor() as pool:
        for part in parts:
            idle_file(part).unlink(missing_ok=True)
            job = pool.submit(run, part, workers, only, list(jobs))
            # three parts at once would only slow each other down
            while not job.done() and not (idle_file(part).exists() and all_done(jobs)):
                time.sleep(0.1)
            jobs.append(job)
    return [job.result() for job in jobs]


def all_done(jobs: Sequence[Future]) -> bool:
    """Say whether all of these parts have ended."""
    return all(job.done() for job in jobs)


def idle_file(part: str) -> Path:
    """Return the file that tells, by being there, that a worker of a part has nothing left to do
    (conftest.py makes it)."""
    return RESULTS / f"{part}.idle"


def in_minutes(seconds: float) -> str:
    """Write a time as it stands in the last line."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes} min {seconds:02} s"


def outcome(report: Path) -> str:
    """Say in words what a JUnit report counts; nothing if there is none."""
    if not report.is_file():
        return ""
    counts = Counter()
    for suite in ET.parse(report).getroot().iter("testsuite"):
        for name in ("tests", "failures", "errors", "skipped"):
            counts[name] += int(suite.get(name, 0))
    failed = counts["failures"] + counts["errors"]
    words = [f"{counts['tests'] - failed - counts['skipped']} passed"]
    if failed:
        words.append(f"{failed} failed")
    if counts["skipped"]:
        words.append(f"{counts['skipped']} skipped")
    return ", ".join(words)


def times(most: int = 25) -> str:
    """Return where the time of the last run went: by file, then the slowest tests and cells."""
    by_file, by_test = Counter(), Counter()
    for report in sorted(RESULTS.glob("*.xml")):
        for case in ET.parse(report).getroot().iter("testcase"):
            seconds = float(case.get("time", 0))
            by_file[f"{report.stem}: {case.get('classname')}"] += seconds
            by_test[f"{report.stem}: {case.get('classname')} {case.get('name')}"] += seconds
    lines = []
    for title, counter in (("by file or class", by_file), ("by test or cell", by_test)):
        lines += [f"{title}, seconds in one worker:"]
        lines += [f"{seconds:8.1f}  {name}" for name, seconds in counter.most_common(most)] + [""]
    return "\n".join(lines)


def main() -> None:
    """Run the parts that are named on the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="+", choices=[*PARTS, "times"])
    parser.add_argument(
        "--workers", type=int, default=min(os.cpu_count() or 1, 2), help="processes at a time"
    )
    parser.add_argument(
        "--only", type=Path, nargs="+", metavar="NOTEBOOK", help="which notebooks are the `lessons`"
    )
    options = parser.parse_args()
    if options.parts == ["times"]:
        print(times())
        return
    if {"lessons", "robust"} <= set(options.parts):
        notebooks = [
            *sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb")),
            *sorted((ROOT / "notebooks").glob("solutions/*.ipynb")),
        ]
        relative = [path.relative_to(ROOT) for path in notebooks]
        options.only = [path for path in relative if str(path) not in FIRST_LESSONS]
    RESULTS.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    results = run_parts(options.parts, options.workers, options.only)
    texts = [text for text, _ in results]
    if len(texts) > 1:
        texts.append(f"{in_minutes(time.perf_counter() - start)} in all")
    print("\n" + " · ".join(texts))
    sys.exit(not all(passed for _, passed in results))


if __name__ == "__main__":
    main()
