"""Time fairlab against peers on the same work, in fresh processes, in turns.

    python benchmarks/run.py                  # every case, five pairs of runs: an hour and a half
    python benchmarks/run.py scores bbq -n 3  # some cases
    python benchmarks/run.py --table          # only the tables, from results.json

Loading and imports are not timed. Each process times a fixed matrix product before and after its
work; where the two are more than 10 % apart, the run is repeated once, and a row says how many of
its runs were busy the second time, too. What was measured goes to `benchmarks/results.json` case
by case, and from there into the table and the figure of `benchmarks/README.md`.
"""

import argparse
import json
import os
import platform
import re
import resource
import statistics
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results.json"
README = ROOT / "benchmarks" / "README.md"
FIGURE = ROOT / "benchmarks" / "speed.png"
QUIET = 0.10  # how far the time of the matrix product may move
TRIES = 2  # of a run, where the machine is busy
SIDE = 1024  # of the matrices
BESIDE = {"textcoords": "offset points", "fontsize": 8}  # of a number at the end of its bar


# ---- in a process of its own


def probe() -> float:
    """Return the milliseconds of a fixed matrix product: the median of 25."""
    import torch

    a, b = torch.ones(SIDE, SIDE), torch.ones(SIDE, SIDE)
    times = []
    for _ in range(25):
        start = time.perf_counter()
        torch.mm(a, b)
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times)


def work(name: str, side: str) -> None:
    """Do one side of a case, and print what was measured as JSON."""
    from cases import CASES

    case = CASES[name]
    given = case.prepare()
    before = probe()
    start = time.perf_counter()
    result = (case.ours if side == "fairlab" else case.theirs)(*given)
    seconds = time.perf_counter() - start
    after = probe()
    if side != "fairlab":
        seconds /= case.part
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9  # GB, on Linux
    print(
        json.dumps({"seconds": seconds, "peak": peak, "probes": [before, after], "result": result})
    )


# ---- in turns


def fresh(*words: str, script: str = __file__) -> dict:
    """Run a script in a process of its own, and return the JSON that it printed last."""
    command = [sys.executable, script, *words]
    variables = {**os.environ, "TQDM_DISABLE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=variables, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(words)}: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def quiet_run(*words: str, script: str = __file__) -> dict:
    """Run a script, again where the machine was busy; return the quietest run."""
    runs = []
    for _ in range(TRIES):
        runs.append(fresh(*words, script=script))
        before, after = runs[-1]["probes"]
        if max(before, after) <= (1 + QUIET) * min(before, after):
            return {**runs[-1], "quiet": True}
    quietest = min(runs, key=lambda run: max(run["probes"]))
    return {**quietest, "quiet": False}


def measure(name: str, n: int) -> dict:
    """Run both sides of a case in turns, and return what was measured."""
    runs = {"fairlab": [], "peer": []}
    for turn in range(n):
        for side, results in runs.items():
            results.append(quiet_run(name, "--side", side))
            note = "" if results[-1]["quiet"] else ", on a busy machine"
            print(f"{name} {turn + 1}/{n} {side}: {results[-1]['seconds']:.2f} s{note}", flush=True)
        _check_agreement(name, runs)
    pairs = zip(runs["fairlab"], runs["peer"], strict=True)
    ratios = sorted(theirs["seconds"] / ours["seconds"] for ours, theirs in pairs)
    summary = {"runs": n, "ratio": statistics.median(ratios), "range": [ratios[0], ratios[-1]]}
    for side, results in runs.items():
        summary[f"{side}_seconds"] = statistics.median(run["seconds"] for run in results)
        summary[f"{side}_peak"] = max(run["peak"] for run in results)
    summary["busy_runs"] = sum(not run["quiet"] for side in runs.values() for run in side)
    return summary


def _check_agreement(name: str, runs: dict[str, list[dict]]) -> None:
    """Stop where the two sides do not come to the same number in the last turn."""
    ours, theirs = (results[-1]["result"] for results in runs.values())
    if abs(ours - theirs) > 1e-4 * max(abs(ours), abs(theirs), 1e-9):
        sys.exit(f"{name}: fairlab comes to {ours}, the peer to {theirs}: not the same work")


# ---- what is kept, and shown


def machine() -> dict:
    """Say where and with what was measured."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    import torch

    return {
        "cores": os.cpu_count(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {
            name: version(name) for name in ("torch", "transformers", "optipfair", "lm_eval")
        },
        "commit": commit,
    }


def table(results: dict) -> str:
    """Return the rows of benchmarks/README.md."""
    from cases import CASES

    lines = [
        "| what | peer | fairlab | peer takes | ratio (range) | aimed at | peak memory |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, case in CASES.items():
        row = results.get("cases", {}).get(name)
        if row is None:
            continue
        low, high = row["range"]
        busy = f"; {row['busy_runs']} of {2 * row['runs']} runs on a busy machine"
        lines.append(
            f"| {case.title} | {case.peer} | {row['fairlab_seconds']:.1f} s "
            f"| {row['peer_seconds']:,.1f} s | {row['ratio']:.1f} ({low:.1f} to {high:.1f}"
            f"{busy if row['busy_runs'] else ''}) | {case.reach} "
            f"| {row['fairlab_peak']:.1f} and {row['peer_peak']:.1f} GB |"
        )
    return "\n".join(lines) + "\n"


def kept() -> dict:
    """Return what was measured so far."""
    return json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}


def keep(results: dict) -> None:
    """Write what was measured so far."""
    RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def write_between(start: str, end: str, lines: str) -> None:
    """Put lines between two marks in benchmarks/README.md."""
    text = README.read_text(encoding="utf-8")
    between = re.compile(f"(?<={re.escape(start)}\n).*?(?={re.escape(end)})", re.DOTALL)
    README.write_text(between.sub(lambda _: lines, text), encoding="utf-8")


def draw(results: dict) -> None:
    """Draw how many times as long the peers take, with the range of the runs and what is aimed
    at."""
    import matplotlib.pyplot as plt
    from cases import CASES

    names = [name for name in CASES if name in results.get("cases", {})]
    figure, ax = plt.subplots(figsize=(8, 0.5 + 0.42 * len(names)), layout="constrained")
    for place, name in enumerate(reversed(names)):
        row = results["cases"][name]
        ax.barh(place, row["ratio"] - 1, left=1, color="#4477aa", height=0.5)
        ax.plot(row["range"], [place, place], color="black", linewidth=1.5)
        ax.plot(CASES[name].reach, place, "|", color="#ee6677", markersize=14, markeredgewidth=2)
        right = max(row["range"][1], CASES[name].reach)  # so that no line runs through the number
        ax.annotate(f"{row['ratio']:,.1f}", (right, place), (6, -3), **BESIDE)
    titles = [f"{CASES[name].title},\nbeside {CASES[name].peer}" for name in reversed(names)]
    titles = [title.replace("`", "") for title in titles]
    ax.set_yticks(range(len(names)), titles, fontsize=7)
    ax.set_xscale("log")
    ax.xaxis.set_major_formatter("{x:,.10g}")
    ax.axvline(1, color="grey", linewidth=0.8)
    ax.set_xlabel("times as long as fairlab (log scale); red: what is aimed at")
    ax.spines[["top", "right"]].set_visible(False)
    figure.savefig(FIGURE, dpi=130)


def main() -> None:
    """Measure the cases that are named, all by default."""
    from cases import CASES

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cases", nargs="*", help=f"of {', '.join(CASES)}; all by default")
    parser.add_argument("-n", type=int, default=5, help="pairs of runs")
    parser.add_argument("--table", action="store_true", help="only write the tables")
    parser.add_argument("--side", choices=("fairlab", "peer"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    unknown = sorted(set(options.cases) - set(CASES))
    if unknown:
        parser.error(f"no such case: {', '.join(unknown)}; there are {', '.join(CASES)}")
    if options.side:
        work(options.cases[0], options.side)
        return
    results = kept()
    if not options.table:
        for name in options.cases or CASES:
            row = {**measure(name, options.n), "machine": machine()}
            results.setdefault("cases", {})[name] = row
            keep(results)
    write_between("<!-- ratios -->", "<!-- end -->", table(results))
    draw(results)
    print(table(results))


if __name__ == "__main__":
    main()
