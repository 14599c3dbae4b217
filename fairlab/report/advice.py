"""What whoever decides should do with the numbers: cut or not, and what is missing.

Contents: `decision` (the verdict without jargon), `power` (how small a change could have been
seen), `power_in_words`, `evidence` (what would change our mind).
"""

import math

import numpy as np
import pandas as pd

from fairlab.report.verdict import (
    NAMES,
    bounds,
    effect,
    has_random,
    is_flattening,
    is_specific,
    percent,
    points,
    span,
    table_row,
)

# beyond this many sentences the advice is to look elsewhere
TOO_MANY = 1000
# kind of change → what not to do with one that widens the gap, or of which no effect can be told
DO_NOT = {
    "cut": "Do not cut",
    "gates": "Do not use the gates",
    "model": "Do not call the other model fairer",
}


def decision(table: pd.DataFrame, kind: str = "cut") -> str:
    """Say what to do, in words for people who know neither divergence nor perplexity."""
    gap = table_row(table, "gap", "headline")
    text = table_row(table, "perplexity", "text")
    did = effect(gap)
    # without a narrowing nothing is bought, but a price is a price
    paid = f" {_price(text)}" if text["low"] > 0 else ""
    if not did:
        return f"{_no_conclusion(gap, kind)}{paid}"
    these = _sentences(gap["templates"])
    size = _share(gap["change"])
    if did == "widened":
        return (
            f"{DO_NOT[kind]}: with {these} the model treated the two groups of a pair {size} more "
            f"differently than before.{_beyond_random(gap, kind)}{paid}"
        )
    what_it_did = (
        f"With {these} the model treated the two groups of a pair {size} less differently than "
        f"before.{_beyond_random(gap, kind)} {_caveat(table, gap)}"
    )
    return f"{what_it_did} {_price(text)}"


def _no_conclusion(gap: dict, kind: str) -> str:
    """Say what could not have been seen, and how many sentences would show it."""
    if math.isnan(gap["low"]):
        return (
            f"{DO_NOT[kind]} on this evidence: {_sentences(gap['templates'])} can't tell a change "
            "from chance. Measure with at least 6 sentences."
        )
    seen = power(gap)
    wrong_way = ", in the wrong direction" if gap["change"] > 0 else ""
    return (
        f"{DO_NOT[kind]} on this evidence. With {_sentences(gap['templates'])}, no narrowing of "
        f"the difference between the two groups below {_share(seen['smallest narrowing'])} could "
        "have been told from chance; what was measured is a change of "
        f"{percent(gap['change'])}{wrong_way}. {_more_sentences(gap, seen, kind)}"
    )


def _more_sentences(gap: dict, seen: dict, kind: str) -> str:
    """Say whether more sentences would help, and how many."""
    more = seen["sentences to see the change"] - gap["templates"]
    if math.isinf(more):
        if not has_random(gap):
            return "There is no change that more sentences could show."
        return (
            f"More sentences would not help at this size: {NAMES[kind][1]} do as much "
            f"({span(gap['random_low'], gap['random_high'])})."
        )
    if gap["change"] > 0:
        return "More sentences would at best show that the model treats the groups less alike."
    if more > TOO_MANY:
        return f"To show a change this small would take more than {TOO_MANY:,} more sentences."
    return (
        f"Add about {_sentences(_about(more))}: if the change stays this size, that gives an even "
        "chance to see it."
    )


def _caveat(table: pd.DataFrame, gap: dict) -> str:
    """Say what speaks against a narrowing, or that nothing that was measured does."""
    against = []
    if not has_random(gap):
        against.append("whether any change of this size would do the same is not known")
    elif not is_specific(gap):
        moved = percent(gap["neutral_change"])
        against.append(
            f"it is not shown to be about these groups (of words that name no group: {moved})"
        )
    if is_flattening(gap):
        against.append("a model that is merely less sure of everything would do as much")
    decisions = table[(table["measure"] == "decision") & (table["row"] == "headline")]
    for row in decisions.to_dict("records"):
        # without random cuts, NaN, the interval alone has to do
        if row["low"] > 0 and not row["low"] <= row["random_high"]:
            farther = f"{math.expm1(row['change']):.1%}".replace("%", " %")
            against.append(
                "the odds of a harsher answer lie further apart than before: the ratio of the "
                f"higher to the lower ones is {farther} larger, on average over the categories"
            )
    if against:
        return f"Do not call it fairer: {'; and '.join(against)}."
    return "It acts on these groups' words more than on others: worth a trial in your own use."


def _price(text: dict) -> str:
    """Say whether plain text got harder to predict."""
    amount = f"{percent(text['change'])} ({span(text['low'], text['high'])})"
    if text["low"] > 0:
        return f"The price: plain text is harder to predict, {amount}."
    if text["high"] < 0:
        return f"Plain text is no harder to predict, {amount}."
    return f"No price could be told: how hard plain text is to predict changes by {amount}."


def _beyond_random(gap: dict, kind: str) -> str:
    if not has_random(gap):
        return ""
    return f" {NAMES[kind][1].capitalize()} do not do that."


def power(headline: dict) -> dict[str, float]:
    """Compute how small a change could have been seen, and how many sentences would show more.

    A rule of thumb: an interval's half-width w (of log(1 + change)) falls with the root of the
    number n of sentences, so that n · (w / d)² sentences bring it down to d. A change at the
    distance d from what it must lie beyond is then seen in half of all such measurements.

    Parameters
    ----------
    headline : dict
        The row of the gap's headline, as `table_row` returns it.

    Returns
    -------
    dict of str to float
        "smallest by interval": the smallest narrowing, a share from 0 to 1, whose interval would
        lie below 0. "smallest narrowing": the same, and below the range of random cuts, where there
        are any. "sentences": how many there are; "sentences to halve": in all, for an interval half
        as wide; "sentences to see the change": in all, to show a change of the measured size;
        infinite where random cuts do as much. NaN where there is no interval.
    """
    n = headline["templates"]
    with np.errstate(divide="ignore", invalid="ignore"):  # an interval may reach down to −100 %
        low, change, high = np.log1p([headline[name] for name in ("low", "change", "high")])
    width = (high - low) / 2
    lowest, highest = bounds(headline)
    distance = math.log1p(lowest) - change if change < 0 else change - math.log1p(highest)
    to_see = n * (width / distance) ** 2 if distance > 0 else math.inf
    return {
        "smallest by interval": -math.expm1(-width),
        "smallest narrowing": 1 - (1 + lowest) * math.exp(-width),
        "sentences": n,
        "sentences to halve": 4 * n,
        "sentences to see the change": math.nan if math.isnan(width) else to_see,
    }


def power_in_words(headline: dict, kind: str = "cut") -> str:
    """Say how small a change could have been seen, and what would show a smaller one."""
    seen = power(headline)
    now = _sentences(seen["sentences"])
    if math.isnan(seen["smallest by interval"]):
        return f"With {now} there is no interval, so no change at all could have been seen."
    by_interval = _share(seen["smallest by interval"])
    if has_random(headline):
        words = (
            f"With {now} it takes a narrowing of {_share(seen['smallest narrowing'])} to stand out "
            f"from {NAMES[kind][1]}, and one of {by_interval} for an interval this wide to lie "
            "below 0"
        )
    else:
        words = f"With {now} an interval this wide shows a narrowing of {by_interval} or more"
    words += f". Half as wide an interval takes about {_sentences(seen['sentences to halve'])}"
    to_see = seen["sentences to see the change"]
    # more sentences for a gap that widens would buy nothing
    if headline["change"] < 0 and seen["sentences"] < to_see < TOO_MANY:
        change = percent(headline["change"])
        words += f", and an even chance to show a change of {change} takes about {_about(to_see):,}"
    words += ". A rule of thumb: the width falls with the root of the number of sentences"
    if headline["attributes_resampled"]:
        words += ", if pairs of words are added in proportion"
    return f"{words}."


def evidence(table: pd.DataFrame, kind: str = "cut") -> list[str]:
    """Say which new numbers would turn the verdict."""
    gap = table_row(table, "gap", "headline")
    did, now = effect(gap), span(gap["low"], gap["high"])
    lowest, highest = _bounds_in_words(gap, kind)
    if math.isnan(gap["low"]):
        return ["Six sentences or more, which give an interval."]
    if did == "widened":
        return [
            f"New sentences whose interval begins below {highest}: then harm could not be told. "
            f"Now it is {now}.",
            f"New sentences whose interval ends below {lowest}: then the gap is narrowed.",
        ]
    if not did:
        return [
            f"An interval that ends below {lowest}: then the gap is narrowed. Now it is {now}.",
            f"An interval that begins above {highest}: then the gap is widened.",
            "An interval so narrow that nothing in it would matter to you: then there is no effect "
            f"of note. Now it leaves room for all of {now}.",
        ]
    turns = [
        f"New sentences whose interval ends above {lowest}: then no effect could be told. Now it "
        f"is {now}."
    ]
    if not has_random(gap):
        turns.append("Random changes of the same kind and size, if they narrow the gap as much.")
    return [*turns, _evidence_on_specificity(gap), _evidence_on_price(table)]


def _bounds_in_words(gap: dict, kind: str) -> tuple[str, str]:
    """Write what an interval has to lie below for a narrowing, and above for a widening."""
    words = []
    for bound, name in zip(bounds(gap), ("lowest", "highest"), strict=True):
        words.append(f"{percent(bound)}, the {name} of {NAMES[kind][1]}" if bound else "0")
    return words[0], words[1]


def _evidence_on_specificity(gap: dict) -> str:
    difference = points(gap["specificity_low"], gap["specificity_high"])
    if is_specific(gap):
        return (
            "Words that name no group, if their gap falls as much: the difference would have to "
            f"reach 0. Now it is {difference}."
        )
    return (
        "Words that name no group, if their gap stays in the range of chance and the difference "
        f"lies below 0: then it is about these groups' words. Now it is {difference}."
    )


def _evidence_on_price(table: pd.DataFrame) -> str:
    text = table_row(table, "perplexity", "text")
    return (
        "A price on your own text that you can't bear. Here the perplexity changes by "
        f"{percent(text['change'])} ({span(text['low'], text['high'])})."
    )


def _sentences(number: int) -> str:
    return "1 sentence" if number == 1 else f"{number:,.0f} sentences"


def _share(share: float) -> str:
    """Write the size of a share for people, such as "18 %", or "1.8 %" if it is below 10 %."""
    size = abs(share) * 100
    return f"{size:.0f} %" if size >= 10 else f"{size:.1f} %"


def _about(number: float) -> int:
    """Round a number of sentences up, to two digits, since it is a rule of thumb."""
    step = 10 ** max(0, math.floor(math.log10(number)) - 1)
    return math.ceil(number / step) * step
