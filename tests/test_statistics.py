import math

import numpy as np
import pytest

from fairlab.statistics import bootstrap_interval, holm, sign_flip_test


def relative_change(before, after):
    return lambda weights: (weights @ after) / (weights @ before) - 1


def simulate(generator, templates, attributes, spread):
    """Draw pairs whose change has a template part, an attribute part and a part of its own; the true mean is −0.2."""
    t, a = (x.ravel() for x in np.meshgrid(range(templates), range(attributes), indexing="ij"))
    before = np.ones(len(t))
    noise = [
        scale * generator.normal(0, 0.2, size)
        for scale, size in zip(spread, (templates, attributes, len(t)), strict=True)
    ]
    return t, a, before, before * 0.8 + noise[0][t] + noise[1][a] + noise[2]


@pytest.mark.parametrize(
    ("templates", "attributes", "spread"),
    [(8, 8, (1, 1, 1)), (8, 8, (1, 0.5, 1)), (8, 8, (1, 1, 0.3)), (12, 12, (1, 1, 1)), (8, 1, (1, 0, 1))],
)
def test_coverage_of_the_interval_on_simulated_data(templates, attributes, spread):
    generator = np.random.default_rng(1)
    runs, hits = 1000, 0
    for run in range(runs):
        t, a, before, after = simulate(generator, templates, attributes, spread)
        low, high = bootstrap_interval(relative_change(before, after), [t, a], n_resamples=300, seed=run)
        hits += low <= -0.2 <= high
    assert 0.92 <= hits / runs <= 0.97


def test_the_interval_of_independent_observations_is_that_of_t():
    generator = np.random.default_rng(0)
    x = generator.normal(3, 1, 40)
    low, high = bootstrap_interval(lambda w: (w @ x) / w.sum(1), [range(40)], n_resamples=20_000)
    half = 2.0227 * x.std(ddof=1) / math.sqrt(40)
    assert (low, high) == (pytest.approx(x.mean() - half, abs=0.02), pytest.approx(x.mean() + half, abs=0.02))


def test_clusters_widen_the_interval():
    effect = np.repeat(np.random.default_rng(0).normal(0, 1, 8), 10)
    labels = np.repeat(np.arange(8), 10)
    widths = [np.ptp(bootstrap_interval(lambda w: (w @ effect) / w.sum(1), [c])) for c in (labels, range(80))]
    assert widths[0] > 2.5 * widths[1]


def test_strata_and_repeats():
    labels, strata = ["x", "y", "z", "z"], ["one", "one", "two", "two"]
    values = np.array([1.0, 2.0, 3.0, 4.0])
    mean = lambda w: (w @ values) / w.sum(1)  # noqa: E731
    low, high = bootstrap_interval(mean, [["t"] * 4, labels], strata=strata)
    assert (low, high) == bootstrap_interval(mean, [["t"] * 4, labels], strata=strata)
    assert low < 2.5 < high
    assert np.isnan(bootstrap_interval(mean, [["t"] * 4])).all()
    curves = bootstrap_interval(lambda w: np.stack([w @ values, w @ values], 1), [labels])
    assert curves[0].shape == (2,)
    with pytest.raises(ValueError, match="clusters: expected one or two"):
        bootstrap_interval(mean, [labels, labels[:2]])


def test_sign_flips_are_exact():
    assert sign_flip_test([1.0] * 8, range(8)) == pytest.approx(2 / 256)
    assert sign_flip_test([1.0, 1.0, 1.0, -1.0], range(4)) == pytest.approx(10 / 16)
    assert sign_flip_test([1.0] * 20, [0] * 5 + [1] * 5 + [2] * 5 + [3] * 5) == pytest.approx(2 / 16)
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
