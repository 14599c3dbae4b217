"""Items of benchmarks as tables: of one model, and of the same items before and after a cut.

Contents: `summarize_items`, `paired_changes`.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from scipy import special, stats

from fairlab.pairs import check_frame, listed
from fairlab.passes import check_option
from fairlab.statistics import jackknife_interval, jackknife_variance
from fairlab.suites.metrics import METRICS, Metric

# of McNemar's test: 2 · 0.5⁶ is the first of these below 0.05
FEWEST = 6


def summarize_items(items: Sequence[Mapping] | pd.DataFrame) -> pd.DataFrame:
    """Compute the metrics of benchmark items, each with its standard error.

    Parameters
    ----------
    items : list of dict, or DataFrame
        Those of a `BenchmarkResult`, of one task or several.

    Returns
    -------
    pandas.DataFrame
        One row a task and metric: `task`, `metric` (under the harness's name where it has one),
        `n` (items that count for it), `value`; `standard_error` by a jackknife over clusters
        (passages, templates, terms, else items) and the 95 % interval from it, `low` and `high` (of
        shares on the logit scale, of perplexities on the log scale), all NaN where every cluster
        says the same; `majority`: the accuracy of always giving the commonest answer, else NaN.

        CrowS-Pairs: the share of pairs whose stereotyped sentence is the likelier one, in all and
        by which of the two has fewer characters; `log_odds`, the mean of log p(stereotyped) − log
        p(other) in nats. A shorter sentence tends to be likelier.

        BBQ: beside the harness's scores `share of unknown`, `log_odds_…` (see `run_lm_eval`; nats a
        token, positive towards the stereotype, 0: no preference) and `forced_accuracy_disamb`
        (chance: 0.5).

        StereoSet: means over terms of shares of each term's items. `ss`: the stereotype is likelier
        than its opposite, in all and by kind of bias (0.5: no preference). `lms`: one of these two
        is likelier than the sentence that makes no sense (the mean of both; 1 is best). `icat` =
        lms · min(ss, 1 − ss) / 0.5; its interval is rough near ss = 0.5, where min has a kink.
    """
    frame = _with_clusters(items)
    rows = []
    for task, of_task in frame.groupby("task", sort=False):
        for name, metric in METRICS[task](of_task).items():
            row = {"task": task, "metric": name, "n": int(metric.counted.sum())}
            row.update(_estimate(metric, of_task.cluster))
            row["majority"] = metric.majority
            rows.append(row)
    return pd.DataFrame(rows)


def _with_clusters(
    items: Sequence[Mapping] | pd.DataFrame, argument: str = "items"
) -> pd.DataFrame:
    """Return items as a frame in which an item without a cluster is one of its own."""
    is_frame = isinstance(items, pd.DataFrame)
    frame = items if is_frame else pd.DataFrame(listed(argument, items, "items"))
    check_frame(frame, "task", "item", "cluster", argument=argument)
    for task in frame.task.unique():
        check_option(argument, task, METRICS)
    alone = frame.task + " item " + frame.item.astype(str)
    return frame.assign(cluster=frame.cluster.where(frame.cluster.notna(), alone))


def _estimate(metric: Metric, clusters: pd.Series) -> dict[str, float]:
    """Return a metric's value, and by leaving out one cluster at a time its error and interval."""
    value = float(metric.formula(metric.columns.sum(0)))
    variance, freedom = jackknife_variance(
        metric.columns[metric.counted], metric.formula, _cluster_numbers(metric, clusters)
    )
    error = math.sqrt(variance)  # s / √n for a mean over items that stand alone
    if error <= 1e-12:
        error = math.nan  # clusters that are all alike don't show by how much others would differ
    half = stats.t.ppf(0.975, freedom) * error if freedom else math.nan
    low, high = _interval(metric, value, half)
    return {"value": value, "standard_error": error, "low": low, "high": high}


def _cluster_numbers(metric: Metric, clusters: pd.Series) -> np.ndarray:
    """Return the number of the cluster of each item that counts for a metric."""
    return pd.factorize(clusters[metric.counted])[0]


def _interval(metric: Metric, value: float, half: float) -> tuple[float, float]:
    """Return value ± half, of shares and perplexities on a scale where no end is impossible."""
    if math.isnan(half):
        return math.nan, math.nan
    if metric.is_share or metric.is_mean_of_shares:  # the logit scale
        center, spread = special.logit(value), half / (value * (1 - value))
        return float(special.expit(center - spread)), float(special.expit(center + spread))
    if metric.is_perplexity:  # the log scale
        return value * math.exp(-half / value), value * math.exp(half / value)
    return value - half, value + half


def paired_changes(
    before: Sequence[Mapping] | pd.DataFrame, after: Sequence[Mapping] | pd.DataFrame
) -> pd.DataFrame:
    """Compare two models on the same benchmark items.

    Parameters
    ----------
    before, after : list of dict, or DataFrame
        The `items` of a `BenchmarkResult`.

    Returns
    -------
    pandas.DataFrame
        One row a task and metric: `before`, `after`; `change` (after − before; of perplexities
        after / before − 1) with `low` and `high`, a paired 95 % interval by `jackknife_interval`
        over clusters as in `summarize_items`; for answers that are right or wrong (or this or that)
        `lost` and `gained`, the items that were 1 and became 0 and the reverse, and `p`, McNemar's
        exact test of these, which takes items to be independent, NaN elsewhere; `told`: the
        interval excludes 0 and p, where there is one, is below 0.05; `detectable`, the smallest
        change that four of five studies with as many items like these would show (2.8 standard
        errors: power 0.8, α 0.05; of perplexities on the log scale), and with p at least 6 items:
        fewer can't be told even if all of them change the same way, so there it is a lower bound;
        `sentence`, the row in words.

    Raises
    ------
    ValueError
        The two hold different items.
    """
    given, new = _with_clusters(before, "before"), _with_clusters(after, "after")
    old, new = _sorted(given), _sorted(new)
    if old[["task", "item"]].values.tolist() != new[["task", "item"]].values.tolist():
        raise ValueError("before, after: expected the same items of the same tasks in both")

    rows = []
    for task in given.task.unique():
        old_items, new_items = old[old.task == task], new[new.task == task]
        new_metrics = METRICS[task](new_items)
        for name, metric in METRICS[task](old_items).items():
            row = {"task": task, "metric": name}
            row.update(_change(metric, new_metrics[name], old_items.cluster))
            rows.append(row)
    return pd.DataFrame(rows).assign(sentence=[_sentence(row) for row in rows])


def _sorted(items: pd.DataFrame) -> pd.DataFrame:
    """Return items in the order of tasks and numbers."""
    return items.sort_values(["task", "item"], kind="stable")


def _change(before: Metric, after: Metric, clusters: pd.Series) -> dict:
    """Return a metric's change, its interval, its test and what so many items can show."""
    old = before.columns[before.counted]  # (items, columns)
    new = after.columns[before.counted]
    width = old.shape[1]

    def difference(sums: np.ndarray) -> np.ndarray:
        old_value = before.formula(sums[:, :width])
        new_value = before.formula(sums[:, width:])
        if before.is_perplexity:
            return np.log(new_value / old_value)
        return new_value - old_value

    columns = np.concatenate([old, new], 1)  # (items, 2 · width): an item stays paired
    numbers = _cluster_numbers(before, clusters)
    change = float(difference(columns.sum(0, keepdims=True))[0])
    low, high = map(float, jackknife_interval(columns, difference, [numbers]))

    # 2.8 standard errors: 1.96 for the test, 0.84 for four studies of five
    freedom = max(int(numbers.max(initial=-1)), 1)
    error = (high - low) / 2 / stats.t.ppf(0.975, freedom)
    detectable = (stats.norm.ppf(0.975) + stats.norm.ppf(0.8)) * error
    if before.is_perplexity:  # from logarithms of a ratio to a change of it
        change, low, high = map(math.expm1, (change, low, high))
    test = _mcnemar(before, after)
    if not math.isnan(test["p"]):
        detectable = max(detectable, FEWEST / len(old))
    without_zero = low > 0 or high < 0
    return {
        "n": len(old),
        "before": float(before.formula(old.sum(0))),
        "after": float(before.formula(new.sum(0))),
        "change": change,
        "low": low,
        "high": high,
        **test,
        "told": without_zero and not test["p"] >= 0.05,  # NaN, where there is no test, passes
        "detectable": detectable,
    }


def _mcnemar(before: Metric, after: Metric) -> dict[str, float]:
    """Count answers lost and gained, and test whether they are as many; NaN of what is no share."""
    if not (before.is_share and after.is_share):
        return {"lost": math.nan, "gained": math.nan, "p": math.nan}
    lost = int((before.columns[:, 0] > after.columns[:, 0]).sum())
    gained = int((before.columns[:, 0] < after.columns[:, 0]).sum())
    p = float(stats.binomtest(lost, lost + gained).pvalue) if lost + gained else 1.0
    return {"lost": lost, "gained": gained, "p": p}


def _sentence(row: Mapping) -> str:
    """Say a row of `paired_changes` in words."""
    start = f"{row['task']}, {row['metric']}: {row['before']:.3g} → {row['after']:.3g}"
    tested = not math.isnan(row["p"])
    if row["change"] == 0 and not (tested and row["lost"]):
        return f"{start}, no change on {row['n']:,} items."
    digits = ".1%" if "perplexity" in row["metric"] else ".3f"
    change, low, high = (f"{row[name]:+{digits}}" for name in ("change", "low", "high"))
    moved = f"; {row['lost']} lost, {row['gained']} gained" if tested else ""
    start += f", change {change} (interval {low} … {high}; {row['n']:,} items{moved})"
    if row["told"]:
        return f"{start}: the two differ."
    if math.isnan(row["detectable"]):
        return f"{start}: no difference can be told."
    size = f"{row['detectable']:{digits}}"
    return f"{start}: no difference can be told; so many items can show one of {size} or more."
