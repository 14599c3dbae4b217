"""From readings to rows: changes with their intervals and tests, beside every control, in words.

Contents: `Case`, `case_tables`, `SPECIAL_LABELS`; `PART` and `BLOCK` of a text.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from fairlab.evaluation.flattening import Flattening
from fairlab.evaluation.readings import HeldOut, Reading
from fairlab.statistics import holm, jackknife_interval, resampled, sign_flip_test

PART = 2048  # tokens of fairlab's evaluation text that a perplexity is measured on
BLOCK = 64  # tokens of the text that are left out together, since neighbours are alike
SPECIAL_LABELS = {  # what `category` says, for people, in rows that are about no single category
    "headline": "mean over categories",
    "neutral": "neutral pairs",
    "text": "text",
}


@dataclass(frozen=True)
class Case:
    """One cut, and all that it is compared with."""

    name: str
    held_out: HeldOut
    before: Reading
    after: Reading
    chance: Mapping[str, Sequence[Reading]]  # "random", or a matched table's name → its random cuts
    flattening: Flattening


@dataclass(frozen=True)
class RowSpec:
    """Which pairs, and which of their readings, a row is made of."""

    measure: str  # "gap", "metric" or "decision"
    row: str  # "category", "without pronouns", "headline" or "neutral"
    category: str
    reading: str  # the field of `Reading`
    groups: list[NDArray]  # indices of pairs; the change is the mean over groups


def case_tables(case: Case) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the rows of a cut, and the changes under each of its random cuts."""
    clusters = _clusters(case.held_out)
    rows, draws = [], []
    for spec in _row_specs(case):
        changes = _chance_changes(case, spec)
        rows.append(_pairs_row(case, spec, clusters, changes))
        draws += _draw_rows(rows[-1], changes)
    for spec in _decision_specs(case):
        drawn = {}
        for kind, readings in case.chance.items():
            drawn[kind] = [_decision_change(case.before, reading, spec) for reading in readings]
        rows.append(_decision_row(case, spec, clusters, drawn))
        draws += _draw_rows(rows[-1], drawn)
    rows.append(_text_row(case))
    draws += _draw_rows(rows[-1], _chance_prices(case))

    table = pd.DataFrame(rows)
    table["p_holm"] = np.nan
    for measure in ("gap", "metric", "decision"):
        tested = (table.measure == measure) & (table.row == "category")
        table.loc[tested, "p_holm"] = holm(table.loc[tested, "p"])
    table["sentence"] = [sentence(row) for row in table.to_dict("records")]
    columns = ["selection", "measure", "row", "category", "kind", "draw", "change"]
    return table, pd.DataFrame(draws, columns=columns)


def _clusters(held_out: HeldOut) -> dict[str, NDArray]:
    """Return of each pair the labels of what it shares with others: template, words, stratum.

    The stratum is the number of the category, whatever its name is; -1 for neutral pairs.
    """
    categories = list(dict.fromkeys(pair.category for pair in held_out.pairs))
    strata = [categories.index(pair.category) for pair in held_out.pairs]
    strata += [-1] * len(held_out.neutral)
    pairs = held_out.everything
    return {
        "templates": np.array([pair.template or pair.prompt_a for pair in pairs]),
        "words": np.array([f"{pair.attribute_a} / {pair.attribute_b}" for pair in pairs]),
        "strata": np.array(strata),
    }


def _row_specs(case: Case) -> list[RowSpec]:
    """List the rows about pairs, in the order of the table."""
    categories: dict[str, list[int]] = {}
    for index, pair in enumerate(case.held_out.pairs):
        categories.setdefault(pair.category, []).append(index)
    groups = {category: np.array(members) for category, members in categories.items()}
    neutral = [_neutral(case)]
    specs = []
    for measure in ("gap", "metric"):
        for category, group in groups.items():
            specs.append(RowSpec(measure, "category", category, measure, [group]))
            if measure == "gap" and category == "gender":
                reading = "gap_without_pronouns"
                specs.append(RowSpec(measure, "without pronouns", category, reading, [group]))
        for row, members in (("headline", list(groups.values())), ("neutral", neutral)):
            specs.append(RowSpec(measure, row, SPECIAL_LABELS[row], measure, members))
    return _where_measured(case, specs)


def _decision_specs(case: Case) -> list[RowSpec]:
    """List the rows about decisions: of the pairs that have outcomes, if there are any."""
    specs = []
    for spec in _row_specs(case):
        if spec.measure == "gap" and spec.row != "without pronouns":
            specs.append(replace(spec, measure="decision", reading="decision"))
    return _where_measured(case, specs)


def _where_measured(case: Case, specs: Sequence[RowSpec]) -> list[RowSpec]:
    """Keep the pairs that have the reading of a row, and the rows that have such pairs."""
    kept = []
    for spec in specs:
        known = ~np.isnan(getattr(case.before, spec.reading))
        groups = [group[known[group]] for group in spec.groups]
        groups = [group for group in groups if len(group)]
        if groups:
            kept.append(replace(spec, groups=groups))
    return kept


def _decision_change(before: Reading, after: Reading, spec: RowSpec) -> float:
    """Return by how much farther from 0 the mean decision gap of a group is, in nats; the mean over
    groups."""
    changes = []
    for group in spec.groups:
        changes.append(abs(after.decision[group].mean()) - abs(before.decision[group].mean()))
    return float(np.mean(changes))


def _decision_row(
    case: Case, spec: RowSpec, clusters: dict[str, NDArray], drawn: dict[str, list[float]]
) -> dict:
    """Return a row about decisions: signed means in nats, of the headline mean absolute ones."""
    before, after = case.before.decision, case.after.decision
    means = np.array([[before[group].mean(), after[group].mean()] for group in spec.groups])
    if spec.row == "headline":
        means = abs(means)
    row = {"selection": case.name, "measure": "decision", "row": spec.row}
    row["category"] = spec.category
    row["before"], row["after"] = means.mean(0)
    row["change"] = _decision_change(case.before, case.after, spec)
    row["low"], row["high"] = _decision_interval(before, after, spec.groups, clusters)
    index = np.concatenate(spec.groups)
    counts = _counts(index, clusters)
    # flipping signs tests the signed change, which is what a single category has
    signed = after[index] - before[index]
    templates = clusters["templates"][index]
    p = math.nan if spec.row == "headline" else sign_flip_test(signed, templates)
    row.update(p=p, **counts)
    for kind, changes in drawn.items():
        row.update(_place_among(row["change"], changes, kind))
    return row


def _decision_interval(
    before: NDArray, after: NDArray, groups: Sequence[NDArray], clusters: dict[str, NDArray]
) -> tuple[float, float]:
    """Return the 95 % interval of the mean over groups of |mean after| − |mean before|."""
    # the sums of the three columns of a group are: before, after, number of pairs
    index, columns = _columns_to_sum(groups, before, after, np.ones(len(before)))

    def formula(sums: NDArray) -> NDArray:
        change = np.abs(sums[:, 1::3]) - np.abs(sums[:, 0::3])  # (cases, groups)
        return (change / sums[:, 2::3]).mean(1)

    labels = [clusters["templates"][index], clusters["words"][index]]
    with np.errstate(invalid="ignore", divide="ignore"):
        low, high = jackknife_interval(columns, formula, labels, strata=clusters["strata"][index])
    return float(low), float(high)


def _neutral(case: Case) -> NDArray:
    """Return the indices of the neutral pairs, which stand behind the demographic ones."""
    return np.arange(len(case.held_out.pairs), len(case.held_out.everything))


def _pairs_row(
    case: Case, spec: RowSpec, clusters: dict[str, NDArray], changes: dict[str, list[float]]
) -> dict:
    before, after = getattr(case.before, spec.reading), getattr(case.after, spec.reading)
    row = {"selection": case.name, "measure": spec.measure}
    row.update(row=spec.row, category=spec.category)
    row["before"] = np.mean([before[group].mean() for group in spec.groups])
    row["after"] = np.mean([after[group].mean() for group in spec.groups])
    row["change"] = relative_change(before, after, spec.groups)
    row["low"], row["high"] = change_interval(before, after, spec.groups, clusters)
    row.update(_test_and_counts(before, after, spec.groups, clusters))
    if spec.row == "headline":
        of_categories = [relative_change(before, after, [group]) for group in spec.groups]
        row["categories_low"], row["categories_high"] = _interval_of_mean(of_categories)
    for kind, drawn in changes.items():
        row.update(_place_among(row["change"], drawn, kind))
    if spec.row != "neutral":
        row.update(_beside_neutral(case, spec, row["change"], clusters))
        if spec.reading == "gap":
            row.update(_beside_flattening(case, spec, clusters))
    return row


def relative_change(before: NDArray, after: NDArray, groups: Sequence[NDArray]) -> float:
    """Return the mean over groups of pairs of the relative change of their means."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return float(np.mean([after[group].sum() / before[group].sum() - 1 for group in groups]))


def change_interval(
    before: NDArray,
    after: NDArray,
    groups: Sequence[NDArray],
    clusters: dict[str, NDArray],
    minus: NDArray | None = None,
) -> tuple[float, float]:
    """Return the 95 % interval of `relative_change`.

    With the group `minus`, of `relative_change` less the change of that group.

    A change is a ratio, so its interval is made on the log scale; a difference of two changes is
    taken as it is.
    """
    parts = [*groups] if minus is None else [*groups, minus]
    # the sums of the two columns of a group make its ratio
    index, columns = _columns_to_sum(parts, before, after)

    def formula(sums: NDArray) -> NDArray:
        ratios = sums[:, 1::2] / sums[:, 0::2]  # (cases, groups)
        if minus is None:
            return np.log(ratios.mean(1))
        return ratios[:, :-1].mean(1) - ratios[:, -1]

    labels = [clusters["templates"][index], clusters["words"][index]]
    with np.errstate(invalid="ignore", divide="ignore"):
        ends = jackknife_interval(columns, formula, labels, strata=clusters["strata"][index])
        if minus is None:
            ends = np.expm1(ends)
    return float(ends[0]), float(ends[1])


def _columns_to_sum(groups: Sequence[NDArray], *readings: NDArray) -> tuple[NDArray, NDArray]:
    """Return the indices of all groups' pairs, and one column for each group and reading: what was
    read of the pairs of that group, 0 for the others."""
    index = np.concatenate(groups)
    columns = np.zeros((len(index), len(groups) * len(readings)))
    start = 0
    for number, group in enumerate(groups):
        rows = slice(start, start + len(group))
        for place, values in enumerate(readings):
            columns[rows, number * len(readings) + place] = values[group]
        start += len(group)
    return index, columns


def _test_and_counts(
    before: NDArray, after: NDArray, groups: Sequence[NDArray], clusters: dict[str, NDArray]
) -> dict:
    """Test the change by sign flips over templates; count the clusters."""
    index = np.concatenate(groups)
    # each pair's change as a share of its group's mean, so that no group outweighs the others
    shares = [(after[group] - before[group]) / before[group].mean() for group in groups]
    p = sign_flip_test(np.concatenate(shares), clusters["templates"][index])
    return {"p": p, **_counts(index, clusters)}


def _counts(index: NDArray, clusters: dict[str, NDArray]) -> dict[str, int]:
    """Count the pairs and their clusters."""
    words, strata = clusters["words"][index], clusters["strata"][index]
    # the same words in two categories are two attribute pairs
    attributes = np.array(
        [f"{stratum} {word}" for stratum, word in zip(strata, words, strict=True)]
    )
    moving = attributes[resampled(words, strata)]
    return {
        "pairs": len(index),
        "templates": len(set(clusters["templates"][index])),
        "attributes": len(set(attributes)),
        "attributes_resampled": len(set(moving)),
    }


def _interval_of_mean(values: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % t interval of the mean of independent values; NaN for fewer than two."""
    if len(values) < 2:
        return math.nan, math.nan
    error = np.std(values, ddof=1) / math.sqrt(len(values))
    half = stats.t.ppf(0.975, len(values) - 1) * error
    return float(np.mean(values) - half), float(np.mean(values) + half)


def _chance_changes(case: Case, spec: RowSpec) -> dict[str, list[float]]:
    """Return the change of the same pairs under each random cut, by kind of random cut."""
    before = getattr(case.before, spec.reading)
    changes = {}
    for kind, readings in case.chance.items():
        after = [getattr(reading, spec.reading) for reading in readings]
        changes[kind] = [relative_change(before, values, spec.groups) for values in after]
    return changes


def _place_among(change: float, drawn: Sequence[float], kind: str) -> dict[str, float]:
    """Return the range of random cuts and the place of a change among them; ties are neither below
    nor above. A changed model may have no random cuts, and then no range."""
    place = {
        f"{kind}_low": min(drawn, default=math.nan),
        f"{kind}_high": max(drawn, default=math.nan),
        f"{kind}_below": sum(other < change for other in drawn),
        f"{kind}_above": sum(other > change for other in drawn),
    }
    if kind == "random":
        place["n_random"] = len(drawn)
    return place


def _beside_neutral(
    case: Case, spec: RowSpec, change: float, clusters: dict[str, NDArray]
) -> dict[str, float]:
    """Compare a change with that of neutral pairs, and that with what random cuts do to them."""
    before, after = getattr(case.before, spec.reading), getattr(case.after, spec.reading)
    neutral = _neutral(case)
    neutral = neutral[~np.isnan(before[neutral])]
    if not len(neutral):  # none has the article's metric: all are of unequal length
        return {}
    neutral_change = relative_change(before, after, [neutral])
    low, high = change_interval(before, after, spec.groups, clusters, minus=neutral)
    drawn = []
    for reading in case.chance["random"]:
        drawn.append(relative_change(before, getattr(reading, spec.reading), [neutral]))
    in_range = min(drawn) <= neutral_change <= max(drawn) if drawn else math.nan
    return {
        "neutral_change": neutral_change,
        "specificity": change - neutral_change,
        "specificity_low": low,
        "specificity_high": high,
        "neutral_in_range": in_range,
    }


def _beside_flattening(case: Case, spec: RowSpec, clusters: dict[str, NDArray]) -> dict[str, float]:
    flat = case.flattening
    low, high = change_interval(flat.before, flat.after, spec.groups, clusters)
    return {
        "flattening_scale": flat.scale,
        "flattening_change": relative_change(flat.before, flat.after, spec.groups),
        "flattening_low": low,
        "flattening_high": high,
    }


def _text_row(case: Case) -> dict:
    """Return the row of the perplexity, with an interval over blocks of the text."""
    rise = case.after.losses - case.before.losses  # (tokens,) in nats
    blocks = np.arange(len(rise)) // BLOCK
    columns = np.stack([rise, np.ones(len(rise))], 1)
    low, high = jackknife_interval(columns, _mean_of_sums, [blocks])
    change = _price(case, case.after)
    row = {
        "selection": case.name,
        "measure": "perplexity",
        "row": "text",
        "category": SPECIAL_LABELS["text"],
        "before": math.exp(case.before.mean_loss),
        "after": math.exp(case.after.mean_loss),
        "change": change,
        "low": math.expm1(low),
        "high": math.expm1(high),
        "p": math.nan,
        "pairs": 0,
        "templates": 0,
        "attributes": 0,
        "attributes_resampled": 0,
    }
    for kind, drawn in _chance_prices(case).items():
        row.update(_place_among(change, drawn, kind))
    return row


def _mean_of_sums(sums: NDArray) -> NDArray:
    return sums[:, 0] / sums[:, 1]


def _price(case: Case, reading: Reading) -> float:
    """Return the relative change of the perplexity."""
    return math.exp(reading.mean_loss - case.before.mean_loss) - 1


def _chance_prices(case: Case) -> dict[str, list[float]]:
    prices = {}
    for kind, readings in case.chance.items():
        prices[kind] = [_price(case, reading) for reading in readings]
    return prices


def _draw_rows(row: dict, changes: dict[str, list[float]]) -> list[dict]:
    """Return one row for each random cut, named as the table's row is."""
    name = {key: row[key] for key in ("selection", "measure", "row", "category")}
    rows = []
    for kind, drawn in changes.items():
        for number, change in enumerate(drawn):
            rows.append({**name, "kind": kind, "draw": number, "change": change})
    return rows


def sentence(row: dict) -> str:
    """Say a row in plain words."""
    parts = [_change_in_words(row), _chance_in_words(row)]
    if not math.isnan(row.get("neutral_change", math.nan)):
        relation = _relation_to_neutral(row)
        parts.append(f"neutral prompts by {row['neutral_change']:+.1%} ({relation})")
    if not math.isnan(row.get("flattening_change", math.nan)):
        parts.append(f"a flattening of the same price brings {row['flattening_change']:+.1%}")
    return f"{row['selection']}: " + "; ".join(parts) + "."


def _change_in_words(row: dict) -> str:
    subjects = {
        "gap": "the gap",
        "metric": "the article's metric",
        "perplexity": "perplexity",
        "decision": "the decision gap",
    }
    places = {
        "category": f" for {row['category']}",
        "without pronouns": f" for {row['category']} without pronouns",
        "headline": " (mean over categories)",
        "neutral": " of neutral pairs",
        "text": "",
    }
    words = f"{subjects[row['measure']]}{places[row['row']]} "
    if row["measure"] == "decision":
        words += f"goes from {row['before']:+.3f} to {row['after']:+.3f} nats, its size changes by "
    else:
        words += "changes by "
    words += _amount(row, "change")
    if math.isnan(row["low"]):
        return words
    interval = f"interval {_amount(row, 'low')} … {_amount(row, 'high')}"
    if row["templates"]:
        interval += f", {row['templates']} templates"
        if row["attributes_resampled"]:
            interval += f" and {row['attributes_resampled']} pairs of words"
        else:
            interval += ", for these words"
    return f"{words} ({interval})"


def _chance_in_words(row: dict) -> str:
    if not row["n_random"]:
        return "no random cuts beside it"
    words = f"lower than {row['random_above']} of {row['n_random']} random cuts"
    ties = row["n_random"] - row["random_above"] - row["random_below"]
    if ties:
        words += f", equal to {ties}"
    return f"{words} ({_amount(row, 'random_low')} … {_amount(row, 'random_high')})"


def _amount(row: dict, column: str) -> str:
    """Write a change: in nats for decisions, else in per cent."""
    form = "+.3f" if row["measure"] == "decision" else "+.1%"
    return format(row[column], form)


def _relation_to_neutral(row: dict) -> str:
    if not (row["specificity_low"] > 0 or row["specificity_high"] < 0):
        return "no difference can be told"
    if not row["neutral_in_range"]:
        return "the two differ, and neutral prompts move beyond the range of random cuts"
    return "the two differ"
