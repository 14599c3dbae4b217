"""Time BBQ through the lm-evaluation-harness and through `bbq_scores`, in turns, on the same items in one process.

    python benchmarks/bbq.py

The 60 items of `data/mini_bbq.jsonl` in three parts; the two must agree on every item. Printed: the table of
`benchmarks/README.md`. Takes five minutes on 2 CPU cores.
"""

import json
import statistics
import time
from collections.abc import Callable

import fairlab as fl


def timed(work: Callable, *arguments, **options) -> tuple[float, list[dict]]:
    """Return the seconds that the work takes, and the items that it scores."""
    start = time.perf_counter()
    table = work(*arguments, **options)
    return time.perf_counter() - start, table.attrs["items"]


def main() -> None:
    """Measure, compare and print the row."""
    rows = [json.loads(line) for line in fl.data_path("mini_bbq.jsonl").read_text(encoding="utf-8").splitlines()]
    model, tokenizer = fl.load_model()
    fl.bbq_scores(model, tokenizer, rows[:2])
    runs, apart = [], 0.0
    for part in (rows[0::3], rows[1::3], rows[2::3]):
        ours, items = timed(fl.bbq_scores, model, tokenizer, part)
        theirs, others = timed(fl.run_lm_eval, model, tokenizer, "bbq", data={"bbq": part})
        runs.append((ours, theirs))
        for item, other in zip(items, others, strict=True):
            assert (item["biased"], item["answered"], item["acc"]) == (other["biased"], other["answered"], other["acc"])
            apart = max(apart, abs(item["log_odds"] - other["log_odds"]))
    ratios = sorted(theirs / ours for ours, theirs in runs)
    ours, theirs = (sum(seconds) for seconds in zip(*runs, strict=True))
    print("| items | `bbq_scores` | harness | ratio (range) | largest difference of log-odds |\n|---|---|---|---|---|")
    spread = f"{statistics.median(ratios):.1f} ({ratios[0]:.1f} to {ratios[-1]:.1f})"
    print(f"| {len(rows)} | {ours:.1f} s | {theirs:.1f} s | {spread} | {apart:.1e} |")


if __name__ == "__main__":
    main()
