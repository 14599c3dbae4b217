"""Time BBQ through `run_lm_eval`, which runs a context once for all answers, and through the
lm-evaluation-harness as it is, in turns, on the same items in one process.

    python speed/bbq.py

The 60 items of `data/suites/mini_bbq.jsonl` in three parts. Both must agree on every item. Printed:
the table of `speed/README.md`. Takes one and a half minutes on 2 CPU cores.
"""

import json
import statistics
import time
from collections.abc import Callable

from lm_eval.models.huggingface import HFLM

import fairlab as fl
from fairlab.suites.harness import evaluate, items_of, quiet_harness

BATCH_SIZE = 8


def ours(model, tokenizer, rows: list[dict]) -> list[dict]:
    """Return the items of `run_lm_eval`."""
    result = fl.run_lm_eval(model, tokenizer, "bbq", data={"bbq": rows}, batch_size=BATCH_SIZE)
    return result.items


def theirs(model, tokenizer, rows: list[dict]) -> list[dict]:
    """Return the same items from the harness's own model."""
    with quiet_harness():
        lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=BATCH_SIZE)
        measured = evaluate(lm, "bbq", rows)
    return items_of("bbq", measured, rows, range(len(rows)), tokenizer)


def timed(work: Callable, *arguments) -> tuple[float, list[dict]]:
    """Return the seconds that the work takes, and its items."""
    start = time.perf_counter()
    items = work(*arguments)
    return time.perf_counter() - start, items


def largest_difference(items: list[dict], others: list[dict]) -> float:
    """Check that all answers agree, and return by how much the log-odds differ at most."""
    largest = 0.0
    for item, other in zip(items, others, strict=True):
        for name in ("biased", "answered", "acc"):
            assert item[name] == other[name], (name, item, other)
        largest = max(largest, abs(item["log_odds"] - other["log_odds"]))
    return largest


def main() -> None:
    """Measure, compare and print the row."""
    lines = fl.data_path("suites/mini_bbq.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    model, tokenizer = fl.load_model()
    ours(model, tokenizer, rows[:2])  # warms up

    our_seconds, their_seconds, apart = [], [], 0.0
    for part in (rows[0::3], rows[1::3], rows[2::3]):
        seconds, items = timed(ours, model, tokenizer, part)
        our_seconds.append(seconds)
        seconds, others = timed(theirs, model, tokenizer, part)
        their_seconds.append(seconds)
        apart = max(apart, largest_difference(items, others))

    ratios = sorted(b / a for a, b in zip(our_seconds, their_seconds, strict=True))
    spread = f"{statistics.median(ratios):.1f} ({ratios[0]:.1f} to {ratios[-1]:.1f})"
    print("| items | `run_lm_eval` | harness | ratio (range) | log-odds apart |")
    print("|---|---|---|---|---|")
    print(
        f"| {len(rows)} | {sum(our_seconds):.1f} s | {sum(their_seconds):.1f} s "
        f"| {spread} | {apart:.0e} |"
    )


if __name__ == "__main__":
    main()
