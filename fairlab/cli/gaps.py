"""What diagnose measures of a model as it is.

Contents: `pair_readings` (a row for each pair), `gap_table` (one for each category), `diagnosed`
(the numbers that --fail-if can bound).
"""

import math

import fairlab as fl


def pair_readings(loaded, demographic, neutral, batch_size):
    """Return the gap and the article's metric of every pair, one row each."""
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
    return readings


def gap_table(readings):
    """Return the mean gap of each category with its interval over templates and words."""
    import numpy as np
    import pandas as pd

    from fairlab.statistics import jackknife_interval

    def mean(sums):
        return sums[:, 0] / sums[:, 1]

    rows = []
    for (kind, category), part in readings.groupby(["kind", "category"], sort=False):
        gaps = part["gap"].to_numpy()
        words = part["attribute_a"] + "/" + part["attribute_b"]
        # a mean is a ratio of sums, from which a template or a word can be left out
        columns = np.stack([gaps, np.ones(len(gaps))], 1)  # (pairs, 2)
        low, high = jackknife_interval(columns, mean, [list(part["template"]), list(words)])
        row = {
            "kind": kind,
            "category": category,
            "pairs": len(part),
            "templates": part["template"].nunique(),
            "gap": gaps.mean(),
            "low": low,
            "high": high,
            "metric": part["metric"].mean(),
        }
        rows.append(row)
    return pd.DataFrame(rows)


def diagnosed(readings, gaps):
    """Return the numbers that --fail-if can bound."""
    categories = gaps[gaps["kind"] == "demographic"]["gap"]
    return {
        "gap": categories.mean(),
        "largest_gap": categories.max(),
        "neutral_gap": readings[readings["kind"] == "neutral"]["gap"].mean(),
    }
