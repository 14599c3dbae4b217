"""What diagnose measures of a model as it is.

Contents: `pair_readings` (a row for each pair), `gap_table` (one for each category),
`mean_with_interval`, `diagnosed` (the numbers that --fail-if can bound).
"""

import math

import fairlab as fl


def pair_readings(loaded, demographic, neutral, batch_size, outcomes=None):
    """Return the gap and the article's metric of every pair, one row each.

    Where there are answers, the decision gap, too.
    """
    import pandas as pd

    from fairlab.capture import pair_differences
    from fairlab.diagnosis import article_points

    pairs = [*demographic, *neutral]
    readings = pd.DataFrame([vars(pair) for pair in pairs])
    kinds = ["demographic"] * len(demographic) + ["neutral"] * len(neutral)
    readings.insert(0, "kind", kinds)
    readings["gap"] = fl.next_token_divergence(*loaded, pairs, batch_size=batch_size).numpy()
    options = {"points": article_points(loaded[0]), "positions": "all", "batch_size": batch_size}
    readings["metric"] = math.nan
    valid = fl.check_pairs(loaded[1], pairs)["valid"]  # the others can't be compared by token
    aligned = [pair for pair, holds in zip(pairs, valid, strict=True) if holds]
    if aligned:
        difference, _ = pair_differences(*loaded, aligned, **options)
        readings.loc[valid, "metric"] = difference.mean((1, 2)).numpy()  # over points and layers
    if outcomes is not None:
        asked = [pair.template in outcomes for pair in pairs]
        answerable = [pair for pair, has_answers in zip(pairs, asked, strict=True) if has_answers]
        readings["decision"] = math.nan
        options = {"outcomes": outcomes, "batch_size": batch_size}
        if answerable:
            decisions = fl.decision_gap(*loaded, answerable, **options)  # (pairs with answers,)
            readings.loc[asked, "decision"] = decisions.numpy()
    return readings


def gap_table(readings):
    """Return the mean gap of each category with its interval over templates and words.

    The same of decisions, where they were measured.
    """
    import pandas as pd

    rows = []
    for (kind, category), part in readings.groupby(["kind", "category"], sort=False):
        gap, low, high = mean_with_interval(part, "gap")
        row = {
            "kind": kind,
            "category": category,
            "pairs": len(part),
            "templates": part["template"].nunique(),
            "gap": gap,
            "low": low,
            "high": high,
            "metric": part["metric"].mean(),
        }
        if "decision" in readings:
            ends = mean_with_interval(part.dropna(subset=["decision"]), "decision")
            row |= dict(zip(("decision", "decision_low", "decision_high"), ends, strict=True))
        rows.append(row)
    return pd.DataFrame(rows)


def mean_with_interval(part, name):
    """Return the mean of a column over pairs, and the two ends of its interval; NaN of no pairs."""
    import numpy as np

    from fairlab.statistics import jackknife_interval

    def mean(sums):
        return sums[:, 0] / sums[:, 1]

    values = part[name].to_numpy()
    if not len(values):
        return math.nan, math.nan, math.nan
    words = part["attribute_a"] + "/" + part["attribute_b"]
    # a mean is a ratio of sums, from which a template or a word can be left out
    columns = np.stack([values, np.ones(len(values))], 1)  # (pairs, 2)
    low, high = jackknife_interval(columns, mean, [list(part["template"]), list(words)])
    return values.mean(), low, high


def diagnosed(readings, gaps):
    """Return the numbers that --fail-if can bound."""
    categories = gaps[gaps["kind"] == "demographic"]
    measured = "decision" in gaps
    return {
        "gap": categories["gap"].mean(),
        "largest_gap": categories["gap"].max(),
        "neutral_gap": readings[readings["kind"] == "neutral"]["gap"].mean(),
        "decision": categories["decision"].abs().mean() if measured else math.nan,
    }
