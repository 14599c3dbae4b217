"""Bounds on what is measured, for a run that has to fail: `--fail-if "gap>0.02"`.

Contents: `QUANTITIES`, what can be bounded; `Condition`, `read_condition`; `quantities_of` (a
comparison), `failures`.
"""

import math
import operator
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from fairlab.report.verdict import table_row

QUANTITIES = {  # the model is the one that would be used: after the change, where there is one
    "gap": "gap of the model, the mean over categories, in nats",
    "largest_gap": "gap of the category that has the largest, in nats",
    "neutral_gap": "gap of neutral pairs, in nats",
    "decision": "size of the decision gap, the mean over categories, in nats",
    "gap_change": "change of the gap, as a share: -0.1 is 10 % less",
    "neutral_change": "the same of neutral pairs",
    "decision_change": "change of the size of the decision gap, in nats",
    "perplexity_change": "change of the perplexity, as a share",
}
# what `fairlab diagnose` measures
WITHOUT_A_CHANGE = ("gap", "largest_gap", "neutral_gap", "decision")
_SIGNS = {">": operator.gt, "<": operator.lt, ">=": operator.ge, "<=": operator.le}
_FORM = re.compile(r"\s*(\w+)\s*([<>]=?)\s*([-+]?\d*\.?\d+(?:e[-+]?\d+)?)\s*", re.IGNORECASE)


@dataclass(frozen=True)
class Condition:
    """A bound, such as gap > 0.02: where it is met, the run has failed."""

    name: str
    sign: str
    bound: float

    def __str__(self) -> str:
        return f"{self.name}{self.sign}{self.bound:g}"


def read_condition(text: str, known: Sequence[str] = tuple(QUANTITIES)) -> Condition:
    """Read a condition such as "gap>0.02" or "gap_change > -0.1".

    Parameters
    ----------
    text : str
        A name of `known`, one of > < >= <=, and a number.
    known : list of str
        The quantities that will be measured.

    Raises
    ------
    ValueError
        Another form, or another name.
    """
    parts = _FORM.fullmatch(text)
    if not parts or parts[1] not in known:
        raise ValueError(
            "fail_if: expected a name, > or <, and a number, such as gap>0.02, with one of the "
            f"names {', '.join(known)}; got {text!r}"
        )
    return Condition(parts[1], parts[2], float(parts[3]))


def quantities_of(table: pd.DataFrame) -> dict[str, float]:
    """Return the `QUANTITIES` of one selection, from its rows of `compare`'s table.

    NaN for decisions, where no sentence has outcomes.
    """
    gap = table_row(table, "gap", "headline")
    neutral = table_row(table, "gap", "neutral")
    categories = table[(table["measure"] == "gap") & (table["row"] == "category")]
    decision = {"after": math.nan, "change": math.nan}
    if ((table["measure"] == "decision") & (table["row"] == "headline")).any():
        decision = table_row(table, "decision", "headline")
    return {
        "gap": gap["after"],
        "largest_gap": categories["after"].max(),
        "neutral_gap": neutral["after"],
        "decision": decision["after"],
        "gap_change": gap["change"],
        "neutral_change": neutral["change"],
        "decision_change": decision["change"],
        "perplexity_change": table_row(table, "perplexity", "text")["change"],
    }


def failures(conditions: Sequence[Condition], values: Mapping[str, float]) -> list[str]:
    """Say which conditions are met, one sentence each.

    Compared is the value itself, whatever its interval is. A value that could not be measured, NaN,
    keeps no bound: it counts as a failure too.
    """
    sentences = []
    for condition in conditions:
        value = values[condition.name]
        if math.isnan(value):
            sentences.append(f"{condition.name} could not be measured")
        elif _SIGNS[condition.sign](value, condition.bound):
            sentences.append(f"{condition.name} is {value:.4g}, so {condition} holds")
    return sentences
