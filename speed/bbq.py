"""Time BBQ through the lm-evaluation-harness and through `bbq_scores`, in turns, on the same items
in one process.

    python speed/bbq.py

The 60 items of `data/suites/mini_bbq.jsonl` in three parts: `bbq_scores`, the harness as it is, and
`run_lm_eval`, which runs it without the logits that nobody reads. All must agree on every item.
Printed: the table of `speed/README.md`. Takes two minutes on 2 CPU cores.
"""

import json
import statistics
import time
from collections.abc import Callable
from unittest.mock import patch

from lm_eval.models.huggingface import HFLM

import fairlab as fl
from fairlab import suites


def timed(work: Callable, *arguments, **options) -> tuple[float, list[dict]]:
    """Return the seconds that the work takes, and the items that it scores."""
    start = time.perf_counter()
    table = work(*arguments, **options)
    return time.perf_counter() - start, table.attrs["items"]


def main() -> None:
    """Measure, compare and print the row."""
    rows = [
        json.loads(line)
        for line in fl.data_path("suites/mini_bbq.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    model, tokenizer = fl.load_model()
    fl.bbq_scores(model, tokenizer, rows[:2])

    def harness(model, requests, batch_size, max_length):
        plain = HFLM(
            pretrained=model, tokenizer=tokenizer, batch_size=batch_size, max_length=max_length
        )
        return plain._loglikelihood_tokens([(("", ""), *request) for request in requests])

    runs, apart = [], 0.0
    for part in (rows[0::3], rows[1::3], rows[2::3]):
        ours, items = timed(fl.bbq_scores, model, tokenizer, part)
        seconds = [ours]
        for score in (harness, suites._loglikelihoods):
            with patch("fairlab.suites._loglikelihoods", score):
                theirs, others = timed(fl.run_lm_eval, model, tokenizer, "bbq", data={"bbq": part})
            seconds.append(theirs)
            for item, other in zip(items, others, strict=True):
                assert all(item[name] == other[name] for name in ("biased", "answered", "acc"))
                apart = max(apart, abs(item["log_odds"] - other["log_odds"]))
        runs.append(seconds)
    ratios = sorted(theirs / ours for ours, theirs, _ in runs)
    total = " | ".join(f"{sum(seconds):.1f} s" for seconds in zip(*runs, strict=True))
    print(
        "| items | `bbq_scores` | harness | `run_lm_eval` | harness / `bbq_scores` (range) | log-odds apart |"
    )
    print("|---|---|---|---|---|---|")
    spread = f"{statistics.median(ratios):.1f} ({ratios[0]:.1f} to {ratios[-1]:.1f})"
    print(f"| {len(rows)} | {total} | {spread} | {apart:.0e} |")


if __name__ == "__main__":
    main()
