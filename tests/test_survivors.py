"""What changes of the code once went unnoticed: each test is red under the one that it names.

`tools/mutants.py` makes such changes; `tests/mutants.md` lists those that still survive.
"""

import math
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats

from fairlab.evaluation import rows
from fairlab.evaluation.readings import Reading
from fairlab.passes import text_chunks, text_windows
from fairlab.statistics import jackknife_interval, jackknife_variance
from tiny_models import tiny_model

TEXT = "The tide comes in twice a day, and twice a day it goes out again."


def mean(sums):
    return sums[:, 0] / sums[:, 1]


def with_ones(values):
    return np.stack([values, np.ones(len(values))], 1)


def test_a_text_of_a_whole_number_of_chunks_keeps_the_last_one(tokenizer, bos_tokenizer):
    """`windows[:-1]` for the windows of full length."""
    text = tokenizer.decode(tokenizer(TEXT).input_ids[:12])
    ids = tokenizer(text).input_ids
    assert len(ids) == 12
    for size in (3, 4, 6):
        for reads in (tokenizer, bos_tokenizer):
            chunks = text_chunks(tiny_model(), reads, text, size)
            assert chunks == text_windows(reads, text, size)
            assert len(chunks) == len(ids) // size
            assert chunks[-1][-size:] == ids[-size:]


def test_strata_of_unequal_size_have_scales_of_their_own():
    """The scale of all clusters together for that of a stratum: (9 − 1) / 9 for 1 / 2 and 6 / 7."""
    values = np.array([1.0, 4.0, 2.0, 3.0, 5.0, 8.0, 13.0, 21.0, 34.0])
    strata = ["two"] * 2 + ["seven"] * 7
    variance, freedom = jackknife_variance(
        values[:, None], lambda sums: sums[:, 0], range(9), strata
    )
    by_hand = 2 * values[:2].var(ddof=1) + 7 * values[2:].var(ddof=1)
    assert (variance, freedom) == (pytest.approx(by_hand), 1 + 6)


def test_the_variance_is_never_below_that_of_one_kind_of_cluster():
    """V₁ + V₂ − V₁₂ alone, which is 1/3 here, V₁ is 1 and V₂ is 0."""
    x = np.array([3.0, 1.0, -1.0, 1.0])
    low, high = jackknife_interval(with_ones(x), mean, [[0, 0, 1, 1], [0, 1, 0, 1]])
    half = stats.t.ppf(0.975, 1)
    assert (low, high) == (pytest.approx(1 - half), pytest.approx(1 + half))
    # and the other way round: the second kind is the wider one
    low, high = jackknife_interval(with_ones(x), mean, [[0, 1, 0, 1], [0, 0, 1, 1]])
    assert (low, high) == (pytest.approx(1 - half), pytest.approx(1 + half))


def test_the_part_that_both_kinds_of_cluster_hold_is_taken_off():
    """V₁ + V₂, without the intersections."""
    x = np.array([0.0, 3.0, 4.0, 7.5])
    low, high = jackknife_interval(with_ones(x), mean, [[0, 0, 1, 1], [0, 1, 0, 1]])
    first, second = np.var([1.5, 5.75], ddof=1) / 2, np.var([2, 5.25], ddof=1) / 2
    shared = x.var(ddof=1) / 4
    assert first + second - shared > max(first, second)
    freedom = (first + second) ** 2 / (first**2 + second**2)
    half = stats.t.ppf(0.975, freedom) * math.sqrt(first + second - shared)
    assert (high - low) / 2 == pytest.approx(half)


def test_what_never_varies_has_an_interval_of_no_width():
    """Degrees of freedom from 0 / 0: an interval of NaN."""
    labels = [[0, 0, 1, 1], [0, 1, 0, 1]]
    with np.errstate(all="raise"):
        low, high = jackknife_interval(with_ones(np.full(4, 2.0)), mean, labels)
    assert (low, high) == (2, 2)


def test_a_change_that_goes_both_ways_is_no_change():
    """p from the sizes of the changes: 2 / 2⁴ in place of 1."""
    before, after = np.ones(4), np.array([1.5, 0.5, 1.5, 0.5])
    labels = np.array(["a", "b", "c", "d"])
    clusters = {"templates": labels, "words": labels, "strata": np.zeros(4, int)}
    told = rows._test_and_counts(before, after, [np.arange(4)], clusters)
    assert told["p"] == 1
    assert rows._test_and_counts(before, after + 1, [np.arange(4)], clusters)["p"] == 2 / 16


def test_tokens_beside_each_other_are_one_cluster():
    """Blocks of one token: the interval would be an eighth as wide here."""
    generator = np.random.default_rng(0)
    rise = np.repeat(generator.normal(0.1, 0.05, 6), 64)

    def reading(losses):
        nothing = np.zeros(0)
        return Reading(nothing, nothing, nothing, nothing, losses, nothing)

    case = SimpleNamespace(name="a", before=reading(np.ones(384)), after=reading(1 + rise))
    case.chance = {}
    row = rows._text_row(case)
    blocks = rise[::64]
    half = stats.t.ppf(0.975, 5) * blocks.std(ddof=1) / math.sqrt(6)
    ends = np.expm1([blocks.mean() - half, blocks.mean() + half])
    assert [row["low"], row["high"]] == pytest.approx(ends)


def test_every_observation_has_a_stratum():
    """Labels without a stratum were left out in silence, or ended in an IndexError."""
    with pytest.raises(ValueError, match="argument 2 is longer"):
        jackknife_variance(np.ones((4, 1)), lambda sums: sums[:, 0], range(4), [0, 0, 1])


def test_two_categories_have_an_interval_and_one_has_none():
    """NaN for fewer than three values."""
    low, high = rows._interval_of_mean([1.0, 3.0])
    half = stats.t.ppf(0.975, 1)  # the standard error is 1
    assert (low, high) == (pytest.approx(2 - half), pytest.approx(2 + half))
    assert np.isnan(rows._interval_of_mean([1.0])).all()


def test_ties_are_what_is_neither_higher_nor_lower():
    """The draws that lie higher added, not taken off: "equal to 6" where none is."""
    row = {"measure": "gap", "n_random": 4, "random_low": -0.1, "random_high": 0.05}
    words = rows._chance_in_words(row | {"random_above": 3, "random_below": 1})
    assert words == "lower than 3 of 4 random cuts (-10.0% … +5.0%)"
    words = rows._chance_in_words(row | {"random_above": 2, "random_below": 1})
    assert words == "lower than 2 of 4 random cuts, equal to 1 (-10.0% … +5.0%)"
