"""What the numbers allow to be said: the verdict, its warnings and its limits.

Contents: `verdict`, made of `effect`, `is_specific` and `is_flattening`; `diagnosis` and
`decision_sentences`, before any cut; `warnings`, `length_warnings`, `text_warnings`, `limits`;
`table_row`; `percent`, `points` and `span` write numbers.
"""

import math
from collections.abc import Sequence

import pandas as pd

from fairlab.pairs import PromptPair

NAMES = {  # kind of change → what it is called, and what it is compared with
    "cut": ("the cut", "random cuts"),
    "gates": ("the gates", "random gates"),
    "model": ("the other model", "random changes"),
}
NOT_COMPARED = (
    "Random changes of this kind were not measured, so it is not known whether any change of this "
    "size does as much."
)


def percent(share: float | None) -> str:
    """Write a share as a signed percentage; a dash where there is none."""
    return "–" if share is None or math.isnan(share) else f"{share:+.1%}"


def span(low: float, high: float) -> str:
    """Write an interval or a range."""
    return f"{percent(low)} … {percent(high)}"


def points(low: float, high: float) -> str:
    """Write the interval of a difference of two changes, which may lie beyond −100 points."""
    if math.isnan(low):
        return "–"
    return f"{low * 100:+.1f} … {high * 100:+.1f} percentage points"


def table_row(table: pd.DataFrame, measure: str, row: str) -> dict:
    """Return the only row of this measure and kind; refuse a table that has none or several."""
    rows = table[(table["measure"] == measure) & (table["row"] == row)].to_dict("records")
    if len(rows) != 1:
        raise ValueError(
            f"table: expected one row of the {measure}, {row}, as compare makes it; got {len(rows)}"
        )
    return rows[0]


def has_random(row: dict) -> bool:
    """Say whether random cuts were measured; of a changed model there are none of its kind."""
    return not math.isnan(row["random_low"])


def bounds(gap: dict) -> tuple[float, float]:
    """Return what the interval of a narrowing has to lie below, and that of a widening above."""
    if not has_random(gap):
        return 0.0, 0.0
    return min(0.0, gap["random_low"]), max(0.0, gap["random_high"])


def effect(gap: dict) -> str:
    """Return "narrowed", "widened" or "": an interval clear of 0 and of what random cuts do."""
    lowest, highest = bounds(gap)
    # NaN, where there is no interval, is neither
    if gap["high"] < lowest:
        return "narrowed"
    return "widened" if gap["low"] > highest else ""


def is_specific(gap: dict) -> bool:
    """Say whether a narrowing acts on demographic words more than on others.

    Neutral words must stay in the range of random cuts; where there are none, it can't be told.
    """
    return bool(has_random(gap) and gap["specificity_high"] < 0 and gap["neutral_in_range"])


def is_flattening(gap: dict) -> bool:
    """Say whether a model that is less sure of every word, at the same price, does as much."""
    return gap.get("flattening_change", math.nan) <= gap["change"]


def verdict(table: pd.DataFrame, kind: str = "cut") -> list[str]:
    """Say what a change did and what it cost, in words that depend on the numbers.

    Parameters
    ----------
    table : DataFrame
        The rows of one selection, from `compare`.
    kind : str
        "cut", "gates" or "model": what was compared with the model as it was.
    """
    gap = table_row(table, "gap", "headline")
    neutral = table_row(table, "gap", "neutral")
    perplexity = table_row(table, "perplexity", "text")
    price = f"{percent(perplexity['change'])} ({span(perplexity['low'], perplexity['high'])})"
    sentences = [
        _effect_in_words(gap, kind),
        _specificity(gap, neutral, kind),
        f"Perplexity changes by {price}.",
    ]
    if effect(gap) == "narrowed" and is_flattening(gap):
        sentences.append(
            "Flattening all predictions at that price would do as much or more: "
            f"{percent(gap['flattening_change'])}."
        )
    return sentences


def _effect_in_words(gap: dict, kind: str) -> str:
    """Say whether the gap changed."""
    did, low, high = effect(gap), gap["low"], gap["high"]
    numbers = f"{percent(gap['change'])} (95 % interval {span(low, high)}"
    beyond = ""
    if has_random(gap):
        chance = span(gap["random_low"], gap["random_high"])
        numbers += f"; {gap['n_random']:.0f} {NAMES[kind][1]} of the same size: {chance}"
        beyond = f" and {{}} what {NAMES[kind][1]} of the same size do"
    numbers += ")"
    if did:
        side = "below" if did == "narrowed" else "above"
        words = (
            f"{NAMES[kind][0].capitalize()} {did} the gap between the two prompts of a pair, a "
            f"change of {numbers}: the whole interval lies {side} 0{beyond.format(side)}."
        )
        return words if has_random(gap) else f"{words} {NOT_COMPARED}"
    unclear = f"No effect can be told: the gap changes by {numbers}"
    if math.isnan(low):
        return f"{unclear}, and prompts this few give no interval."
    if low <= 0 <= high:
        return f"{unclear}, and the interval includes 0."
    return f"{unclear}. The interval excludes 0, but it is not clear of what {NAMES[kind][1]} do."


def _specificity(gap: dict, neutral: dict, kind: str) -> str:
    """Say whether a change acts on demographic words more than on any other word."""
    difference = points(gap["specificity_low"], gap["specificity_high"])
    moved = f"the gap of neutral pairs changes by {percent(gap['neutral_change'])}"
    if effect(gap) != "narrowed":
        return f"For comparison, {moved} (difference: {difference})."
    if not gap["specificity_high"] < 0:
        return (
            f"It is not shown to be specific to the demographic words: {moved}, and the difference "
            f"({difference}) is not below 0. The model may only react less to any change of a word."
        )
    if not has_random(gap):
        return (
            f"Whether it is specific to the demographic words can't be told without random "
            f"changes: {moved}, and the difference ({difference}) is below 0."
        )
    chance = span(neutral["random_low"], neutral["random_high"])
    if not is_specific(gap):
        return (
            f"It is not shown to be specific to the demographic words: {moved}, beyond the range "
            f"of {NAMES[kind][1]} ({chance}). Answers to other words move as well, if not the same "
            "way."
        )
    return (
        f"It is specific to the demographic words: {moved}, within the range of "
        f"{NAMES[kind][1]} ({chance}), and the difference ({difference}) is below 0."
    )


_SAME_PAIRS = (
    "Not held out: {} pairs measured also chose the neurons. Neurons chosen because they differ on "
    "a pair lower the difference on that pair when they go: that says nothing of other pairs."
)
_SAME_SENTENCES = (
    "Only partly held out: {} sentences measured also chose the neurons, with other words."
)
_SAME_WORDS = (
    "Only partly held out: {} word pairs measured also chose the neurons, in other sentences."
)


_NOT_KNOWN = (
    "Which pairs chose is not known, so it can't be said whether the pairs measured are held out: "
    "a change that was fitted to them looks good by construction."
)
_OTHER_SENTENCES = (
    "The neutral pairs stand in other sentences than the pairs measured, so a difference between "
    "the two may come from the sentences."
)


def warnings(
    chosen_on: Sequence[PromptPair] | None,
    pairs: Sequence[PromptPair],
    neutral: Sequence[PromptPair] = (),
) -> list[str]:
    """Say what the measured pairs share with those that chose, and lack with neutral ones."""
    notes = [_NOT_KNOWN] if chosen_on is None else _shared(chosen_on, pairs)
    sentences = {pair.template or pair.prompt_a for pair in pairs}
    if neutral and not sentences & {pair.template for pair in neutral}:
        notes.append(_OTHER_SENTENCES)
    return notes


def _shared(chosen_on: Sequence[PromptPair], pairs: Sequence[PromptPair]) -> list[str]:
    named = [pair for pair in pairs if pair.attribute_a or pair.attribute_b]
    # what pairs can share, from most to least: only the first is told
    checks = [
        (pairs, lambda pair: (pair.prompt_a, pair.prompt_b), _SAME_PAIRS),
        (pairs, lambda pair: pair.template or pair.prompt_a, _SAME_SENTENCES),
        (named, lambda pair: (pair.attribute_a, pair.attribute_b), _SAME_WORDS),
    ]
    for measured_pairs, key, words in checks:
        measured = {key(pair) for pair in measured_pairs}
        shared = measured & {key(pair) for pair in chosen_on}
        if shared:
            return [words.format(f"{len(shared)} of the {len(measured)}")]
    return []


def length_warnings(readings: pd.DataFrame) -> list[str]:
    """Say in how many pairs, and neutral ones, the two prompts differ in their length in tokens."""
    # all selections have these pairs, and each pair has one gap
    one = readings[readings["selection"] == readings["selection"].iloc[0]]
    pairs = one[one["measure"] == "gap"]
    counts = {}
    for kind in ("demographic", "neutral"):
        unequal = pairs[pairs["kind"] == kind]["more_tokens"] != 0
        counts[kind] = (unequal.sum(), len(unequal))
    (unequal, count), (of_neutral, neutral) = counts.values()
    differ = "the two prompts differ in their number of tokens"
    if not unequal:
        if not of_neutral:
            return []
        return [
            f"In {of_neutral} of the {neutral} neutral pairs {differ}, and in no other pair: the "
            "gap of neutral pairs may be larger for the length alone."
        ]
    if of_neutral:
        control = f"So may that of neutral pairs, of which {of_neutral} of {neutral} differ, too."
    else:
        control = "No neutral pair does; some that do would show how large that part is."
    return [
        f"In {unequal} of the {count} pairs measured {differ}. Part of their gap may come from the "
        f"length alone. {control} The article's metric, where it is measured, leaves such pairs "
        "out."
    ]


def text_warnings(continuations: pd.DataFrame | None, name: str) -> list[str]:
    """Say where whole texts speak against a change.

    They do where harsh words moved toward the first word of a pair, which has more of them now, or
    kind words away from it.

    Parameters
    ----------
    continuations : DataFrame or None
        From `summarize_continuations`, of the word lists of `load_lexicon`; of other scores nothing
        is known of which side is the worse one.
    name : str
        Of the change.
    """
    if continuations is None:
        return []
    worse = {
        "harsh words": (1, "moved toward the first word of a pair, which has more of them now"),
        "kind words": (-1, "moved away from the first word of a pair, which has fewer of them now"),
    }
    notes = []
    for row in continuations[continuations["name"] == name].to_dict("records"):
        sign, moved = worse.get(row["score"], (0, ""))
        low, high = row["change_low"], row["change_high"]
        # NaN, where there is no interval, is clear of nothing
        if sign * row["gap"] > 0 and min(sign * low, sign * high) > 0:
            notes.append(
                f"Warning: in sampled texts {row['score']} {moved} ({row['change']:+.1f} in 100 "
                f"texts, {low:+.1f} … {high:+.1f})."
            )
    return notes


def limits(headline: dict) -> list[str]:
    """Say what the numbers do not show."""
    intervals = "over sentences, for these words: of other words they say nothing"
    resampled = headline["attributes_resampled"]
    if resampled:
        intervals = f"over sentences and over {resampled} of these pairs of words"
    return [
        "An activation difference is not bias. A model has to represent two words differently to "
        "tell them apart, and does so for neutral words too. A neuron that reacts to a word need "
        "not cause what is written next.",
        "A gap between two next-token distributions is not a harm. It counts every difference, "
        "also one of grammar or of fact. Harm happens to people, where a model is used, through "
        "what it puts out.",
        "A gap can fall because a model reacts less to anything, or because it broke. Read it "
        "beside the neutral pairs and the perplexity.",
        f"The sample is small: {headline['pairs']} pairs from {headline['templates']} templates "
        f"and {headline['attributes']} pairs of words. The intervals of demographic pairs are "
        f"{intervals}. Fewer than 6 templates can't reach p < 0.05, whatever the effect. No effect "
        "that can be told is not the same as no effect.",
        "The numbers hold for these weights, these prompts and their language. Other groups, "
        "longer texts, conversations and any use of the model were not measured.",
    ]


def diagnosis(gaps: pd.DataFrame) -> list[str]:
    """Say which category has the largest gap, and whether that is more than neutral words have.

    Parameters
    ----------
    gaps : DataFrame
        One row a category: `kind` ("demographic" or "neutral"), `category`, `pairs`, `templates`,
        and `gap` in nats with its interval from `low` to `high` (NaN with one template).
    """
    rows = gaps.sort_values("gap", ascending=False, kind="stable").to_dict("records")
    categories = [row for row in rows if row["kind"] == "demographic"]
    neutral = [row for row in rows if row["kind"] == "neutral"]
    first = categories[0]
    subject = "The gap is" if len(categories) == 1 else "The largest gap is"
    sentences = [f"{subject} {_gap_in_words(first)}."]
    if len(categories) > 1:
        second = categories[1]
        apart = first["low"] > second["high"]
        order = "clear of it" if apart else "not clear of it: which of the two is larger is open"
        sentences.append(f"Next is {_gap_in_words(second)}; the first interval is {order}.")
    sentences.append(_beside_neutral(first, neutral))
    sentences.append(
        "What this does not say: that a gap is a harm (it counts every difference between two "
        "predictions, also one of grammar or of fact), which neurons cause it, what other words or "
        "sentences would show, or whether a cut would narrow it (fairlab report)."
    )
    return sentences


def decision_sentences(gaps: pd.DataFrame) -> list[str]:
    """Say for whom the odds of a harsher answer are higher, category by category.

    Parameters
    ----------
    gaps : DataFrame
        As in `diagnosis`, with `decision`, the mean decision gap in nats, and its interval from
        `decision_low` to `decision_high`. Without these columns nothing is said.
    """
    if "decision" not in gaps:
        return []
    sentences = []
    for row in gaps.dropna(subset=["decision"]).to_dict("records"):
        low, high = row["decision_low"], row["decision_high"]
        interval = "no interval" if math.isnan(low) else f"interval {low:+.3f} … {high:+.3f}"
        end = "; it includes 0, so the side can't be told." if low <= 0 <= high else "."
        which = "neutral words, " if row["kind"] == "neutral" else ""
        odds = _odds_in_words(row["decision"])
        sentences.append(
            f"Decisions, {which}{row['category']}: after the first word of a pair the odds of a "
            f"harsher answer against a kinder one are {odds} than after the second "
            f"({row['decision']:+.3f} nats, {interval}){end}"
        )
    return sentences


def _odds_in_words(gap: float) -> str:
    """Say by how much odds are higher or lower, given the difference of their logarithms."""
    change = math.expm1(gap)
    return f"{abs(change):.1%} {'higher' if change > 0 else 'lower'}".replace("%", " %")


def _gap_in_words(row: dict) -> str:
    sentences = "1 sentence" if row["templates"] == 1 else f"{row['templates']} sentences"
    interval = "no interval"
    if not math.isnan(row["low"]):
        interval = f"interval {row['low']:.4f} … {row['high']:.4f}"
    return (
        f"that of {row['category'] or 'the pairs'}, {row['gap']:.4f} nats ({interval}, {sentences})"
    )


def _beside_neutral(first: dict, neutral: Sequence[dict]) -> str:
    """Say on which side of all neutral intervals a category's interval lies."""
    neutral_gaps = "; ".join(_gap_in_words(row) for row in neutral)
    # NaN, where there is no interval, is clear of nothing
    if all(first["low"] > row["high"] for row in neutral):
        return f"Its interval lies above those of the neutral pairs ({neutral_gaps})."
    if all(first["high"] < row["low"] for row in neutral):
        return f"Its interval lies below those of the neutral pairs ({neutral_gaps})."
    return (
        f"It is not shown to be larger than what any change of a word brings: its interval is not "
        f"clear of those of the neutral pairs ({neutral_gaps})."
    )
