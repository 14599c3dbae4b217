import math

import numpy as np
import pytest
import scipy.stats

from fairlab.statistics import (
    holm,
    jackknife_interval,
    jackknife_variance,
    resampled,
    sign_flip_test,
)


def mean(sums):
    return sums[:, 0] / sums[:, 1]


def log_ratio(sums):
    return np.log(sums[:, 1] / sums[:, 0])


def with_ones(values):
    return np.stack([values, np.ones(len(values))], 1)


def simulate(generator, templates, attributes, spread, sd):
    """Draw gaps of a log standard deviation as real ones have it; their change has a template, an
    attribute and an own part, and its true size is −20 %."""
    t, a = (x.ravel() for x in np.meshgrid(range(templates), range(attributes), indexing="ij"))

    def effects(shares):
        drawn = [generator.normal(0, 1, size) for size in (templates, attributes, len(t))]
        return shares[0] * drawn[0][t] + shares[1] * drawn[1][a] + shares[2] * drawn[2]

    before = np.exp(sd * effects((0.6, 0.4, 0.7)))
    ratio = 0.8 * np.exp(0.2 * effects(spread) - 0.02 * np.square(spread).sum())
    return t, a, np.stack([before, before * ratio], 1)


def coverage(templates, attributes, spread, sd, runs=1000):
    generator = np.random.default_rng(1)
    hits = 0
    for _ in range(runs):
        t, a, columns = simulate(generator, templates, attributes, spread, sd)
        low, high = jackknife_interval(columns, log_ratio, [t, a])
        hits += low <= math.log(0.8) <= high
    return hits / runs


@pytest.mark.parametrize("sd", [0.3, 1.1])  # of real gaps within a category
@pytest.mark.parametrize(
    ("templates", "attributes", "spread"),
    [(8, 8, (1, 1, 1)), (8, 8, (1, 1, 0.3)), (12, 12, (1, 1, 1)), (8, 1, (1, 0, 1))],
)
def test_coverage_of_the_interval_on_simulated_data(templates, attributes, spread, sd):
    assert 0.89 <= coverage(templates, attributes, spread, sd) <= 0.97


@pytest.mark.parametrize(
    ("common", "own"), [(0.2, 0.2), (0.3, 0.1)]
)  # of the log change: a sentence's part, a pair's
def test_coverage_of_a_difference_with_words_held_fixed_on_one_side(common, own):
    """As `specificity`: eight categories of one pair of words each, less neutral pairs of four, in
    eight sentences."""
    generator, fixed = np.random.default_rng(5), 0.15 * np.random.default_rng(2).normal(0, 1, 8)
    sides = np.repeat(np.arange(9), [8] * 8 + [32])  # 0 to 7 the categories, 8 neutral
    words = np.concatenate([np.repeat(np.arange(8), 8), 8 + np.repeat(np.arange(4), 8)])
    sentences = np.tile(np.arange(8), 12)
    truth = np.exp(common**2 / 2 + own**2 / 2) * (np.exp(fixed).mean() - np.exp(0.1**2 / 2))

    def difference(sums):
        ratios = sums[:, 1::2] / sums[:, 0::2]
        return ratios[:, :8].mean(1) - ratios[:, 8]

    hits, runs = 0, 300
    for _ in range(runs):
        before = np.exp(
            0.6 * generator.normal(0, 1, 8)[sentences] + 0.7 * generator.normal(0, 1, 96)
        )
        of_word = np.concatenate([fixed, 0.1 * generator.normal(0, 1, 4)])[words]
        ratio = np.exp(
            common * generator.normal(0, 1, 8)[sentences]
            + own * generator.normal(0, 1, 96)
            + of_word
        )
        columns = np.zeros((96, 18))
        for side in range(9):
            columns[sides == side, 2 * side] = before[sides == side]
            columns[sides == side, 2 * side + 1] = (before * ratio)[sides == side]
        low, high = jackknife_interval(columns, difference, [sentences, words], strata=sides)
        hits += low <= truth <= high
    assert 0.89 <= hits / runs <= 0.97


def test_words_that_are_held_fixed_are_not_covered():
    assert coverage(8, 1, (1, 1, 1), 0.3, runs=400) < 0.85


def test_the_interval_of_independent_observations_is_that_of_t():
    x = np.random.default_rng(0).normal(3, 1, 40)
    low, high = jackknife_interval(with_ones(x), mean, [range(40)])
    half = 2.0226909 * x.std(ddof=1) / math.sqrt(40)
    assert (low, high) == (pytest.approx(x.mean() - half), pytest.approx(x.mean() + half))


def test_two_kinds_of_clusters_by_hand():
    """A table of 3 × 3 cells: the variances of row means, of column means, less that of the
    cells."""
    x = (
        np.random.default_rng(1).normal(0, 1, (3, 3))
        + np.array([[0], [4], [9]])
        + np.array([0, 3, 8])
    )
    rows, columns = (label.ravel() for label in np.indices((3, 3)))
    of_rows, of_columns = x.mean(1).var(ddof=1) / 3, x.mean(0).var(ddof=1) / 3
    variance = of_rows + of_columns - x.var(ddof=1) / 9
    low, high = jackknife_interval(with_ones(x.ravel()), mean, [rows, columns])
    freedom = (of_rows + of_columns) ** 2 / (of_rows**2 / 2 + of_columns**2 / 2)
    half = scipy.stats.t.ppf(0.975, freedom) * math.sqrt(variance)
    assert (low, high) == (pytest.approx(x.mean() - half), pytest.approx(x.mean() + half))


def test_of_words_that_are_held_fixed_nothing_is_taken_off():
    """Left: one pair of words, held fixed. Right: four. The cells of the left have no part in the
    words' variance."""
    generator = np.random.default_rng(3)
    words = np.array(["x"] * 8 + ["p", "q", "r", "s"] * 8)
    side = np.array(["left"] * 8 + ["right"] * 32)
    templates = np.concatenate([np.arange(8), np.repeat(np.arange(8), 4)])
    x = generator.normal(0, 1, 40)
    columns = np.zeros((40, 4))
    for number, name in enumerate(("left", "right")):
        columns[side == name, 2 * number] = x[side == name]
        columns[side == name, 2 * number + 1] = 1

    def difference(sums):
        return sums[:, 0] / sums[:, 1] - sums[:, 2] / sums[:, 3]

    low, high = jackknife_interval(columns, difference, [templates, words], strata=side)
    right = side == "right"
    only = with_ones(x[right])
    cells = [*zip(templates[right], words[right], strict=True)]
    by_sentence, sentences = jackknife_variance(columns, difference, templates)
    by_word, freedom = jackknife_variance(only, mean, words[right])
    variance = by_sentence + by_word - jackknife_variance(only, mean, cells)[0]
    freedom = (by_sentence + by_word) ** 2 / (by_sentence**2 / sentences + by_word**2 / freedom)
    assert (high - low) / 2 == pytest.approx(
        scipy.stats.t.ppf(0.975, freedom) * math.sqrt(max(variance, by_sentence, by_word))
    )
    assert variance > by_sentence


def test_the_clusters_that_stay_stand_for_the_one_left_out():
    """A sum over strata has the variance n · s² of the n clusters of each, added up; a stratum of
    one cluster adds nothing."""
    values = np.array([[1.0], [1.0], [2.0], [2.0], [2.0], [5.0], [7.0]])
    labels = ["a", "b", "b", "c", "d", "e", "f"]  # the sums of one are 1 and 3, of two 2, 2 and 5
    strata = ["one", "one", "one", "two", "two", "two", "three"]
    variance, freedom = jackknife_variance(values, lambda sums: sums[:, 0], labels, strata)
    assert (variance, freedom) == (pytest.approx(2 * 2 + 3 * 3), 1 + 2)


def test_clusters_widen_the_interval():
    effect = with_ones(np.repeat(np.random.default_rng(0).normal(0, 1, 8), 10))
    labels = np.repeat(np.arange(8), 10)
    widths = [np.ptp(jackknife_interval(effect, mean, [c])) for c in (labels, range(80))]
    assert widths[0] > 2.5 * widths[1]


def test_what_a_single_cluster_can_and_cannot_tell():
    labels, strata = ["x", "y", "z", "z"], ["one", "one", "two", "two"]
    assert resampled(labels, strata).tolist() == [True, True, False, False]
    values = with_ones(np.array([1.0, 2.0, 3.0, 4.0]))
    templates = ["s", "t", "s", "t"]
    low, high = jackknife_interval(values, mean, [templates, labels], strata=strata)
    assert (low, high) == jackknife_interval(values, mean, [templates, labels], strata=strata)
    assert low < 2.5 < high
    assert np.isnan(jackknife_interval(values, mean, [["t"] * 4])).all()
    assert np.isnan(
        jackknife_interval(values, mean, [["t"] * 4, labels])
    ).all()  # one sentence, many words
    curves = jackknife_interval(values, lambda sums: sums[:, :1] / np.array([[4.0, 8.0]]), [labels])
    assert curves[0].shape == (2,)
    with pytest.raises(ValueError, match="clusters: expected one or two sequences of 4 labels"):
        jackknife_interval(values, mean, [labels, labels[:2]])


def test_sign_flips_are_exact():
    assert sign_flip_test([1.0] * 8, range(8)) == pytest.approx(2 / 256)
    assert sign_flip_test([1.0, 1.0, 1.0, -1.0], range(4)) == pytest.approx(10 / 16)
    assert sign_flip_test([1.0] * 20, [0] * 5 + [1] * 5 + [2] * 5 + [3] * 5) == pytest.approx(
        2 / 16
    )
    assert math.isnan(sign_flip_test([1.0, 2.0], ["one", "one"]))
    with pytest.raises(ValueError, match="clusters: expected 2 labels, one a difference; got 3"):
        sign_flip_test([1.0, 2.0], range(3))


def test_false_positives_on_simulated_data():
    generator = np.random.default_rng(2)
    labels = np.repeat(np.arange(8), 5)
    found = 0
    for _ in range(600):
        values = generator.standard_t(3, 8)[labels] + generator.normal(0, 1, 40)
        found += sign_flip_test(values, labels) < 0.05
    assert found / 600 <= 0.06


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, math.nan]).tolist()[:3] == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]).tolist() == [1.0, 1.0]
