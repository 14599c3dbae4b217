"""What the numbers allow to be said: the verdict, its warnings and its limits.

Contents: `verdict`, `warnings`, `limits`, `table_row`; `percent` and `span` write numbers.
"""

import math
from collections.abc import Sequence

import pandas as pd

from fairlab.pairs import PromptPair


def percent(share: float | None) -> str:
    """Write a share as a signed percentage; a dash where there is none."""
    return "–" if share is None or math.isnan(share) else f"{share:+.1%}"


def span(low: float, high: float) -> str:
    """Write an interval or a range."""
    return f"{percent(low)} … {percent(high)}"


def table_row(table: pd.DataFrame, measure: str, row: str) -> dict:
    """Return the only row of this measure and kind; refuse a table that has none or several."""
    rows = table[(table["measure"] == measure) & (table["row"] == row)].to_dict("records")
    if len(rows) != 1:
        raise ValueError(
            f"table: expected one row of the {measure}, {row}, as compare makes it; got {len(rows)}"
        )
    return rows[0]


def verdict(table: pd.DataFrame) -> list[str]:
    """Say what the cut did and what it cost, in words that depend on the numbers."""
    gap = table_row(table, "gap", "headline")
    neutral = table_row(table, "gap", "neutral")
    perplexity = table_row(table, "perplexity", "text")
    # NaN, where there is no interval, is neither
    narrowed = gap["high"] < min(0, gap["random_low"])
    widened = gap["low"] > max(0, gap["random_high"])
    price = f"{percent(perplexity['change'])} ({span(perplexity['low'], perplexity['high'])})"
    sentences = [
        _effect(gap, narrowed, widened),
        _specificity(gap, neutral, narrowed),
        f"Perplexity changes by {price}.",
    ]
    # a model that is less sure of every word can narrow the gap, too
    flattened = gap.get("flattening_change", math.nan)
    if narrowed and flattened <= gap["change"]:
        sentences.append(
            "Flattening all predictions at that price would do as much or more: "
            f"{percent(flattened)}."
        )
    return sentences


def _effect(gap: dict, narrowed: bool, widened: bool) -> str:
    """Say whether the gap changed: an interval clear of 0 and of what random cuts do."""
    low, high = gap["low"], gap["high"]
    numbers = (
        f"{percent(gap['change'])} (95 % interval {span(low, high)}; {gap['n_random']} random cuts "
        f"of the same size: {span(gap['random_low'], gap['random_high'])})"
    )
    if narrowed or widened:
        verb, side = ("narrowed", "below") if narrowed else ("widened", "above")
        return (
            f"The cut {verb} the gap between the two prompts of a pair by {numbers}: the whole "
            f"interval lies {side} 0 and {side} what random cuts do."
        )
    unclear = f"No effect can be told: the gap changes by {numbers}"
    if math.isnan(low):
        return f"{unclear}, and prompts this few give no interval."
    if low <= 0 <= high:
        return f"{unclear}, and the interval includes 0."
    return (
        f"{unclear}. The interval excludes 0, but it is not clear of what random cuts of the same "
        "size do."
    )


def _specificity(gap: dict, neutral: dict, narrowed: bool) -> str:
    """Say whether the cut acts on demographic words more than on any other word."""
    difference = span(gap["specificity_low"], gap["specificity_high"])
    moved = f"the gap of neutral pairs changes by {percent(gap['neutral_change'])}"
    chance = span(neutral["random_low"], neutral["random_high"])
    if not narrowed:
        return f"For comparison, {moved} (difference: {difference})."
    if not gap["specificity_high"] < 0:
        return (
            f"It is not shown to be specific to the demographic words: {moved}, and the difference "
            f"({difference}) is not below 0. The model may only react less to any change of a word."
        )
    if not gap["neutral_in_range"]:
        return (
            f"It is not shown to be specific to the demographic words: {moved}, beyond the range "
            f"of random cuts ({chance}). The cut moves answers to other words as well, if not the "
            "same way."
        )
    return (
        f"It is specific to the demographic words: {moved}, within the range of random cuts "
        f"({chance}), and the difference ({difference}) is below 0."
    )


_SAME_PAIRS = (
    "pairs measured also chose the neurons. Neurons chosen because they differ on a pair lower the "
    "difference on that pair when they go: that says nothing of other pairs."
)
_SAME_SENTENCES = "sentences measured also chose the neurons, with other words."
_SAME_WORDS = "word pairs measured also chose the neurons, in other sentences."


def warnings(chosen_on: Sequence[PromptPair], pairs: Sequence[PromptPair]) -> list[str]:
    """Say what the pairs that were measured share with those that chose the neurons."""
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
            numbers = f"{len(shared)} of the {len(measured)}"
            return [f"Not held out: {numbers} {words}"]
    return []


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
        "longer texts, chat and any use of the model were not measured.",
    ]
