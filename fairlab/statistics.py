"""Intervals and tests for few clusters: prompts made from one template, or with one word, are not independent.

Contents: `bootstrap_interval`, `sign_flip_test`, `holm`.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats


def bootstrap_interval(
    statistic: Callable[[NDArray], NDArray],
    clusters: Sequence[Sequence],
    *,
    strata: Sequence | None = None,
    n_resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[NDArray, NDArray]:
    """Compute the interval of a statistic by a two-way cluster bootstrap.

    The variance is `V = V₁ + V₂ − V₁₂`: bootstrapped over the first kind of cluster (templates), over the second
    (attribute pairs), and over their intersections, whose part both of the others hold; never below V₁₂. Each bootstrap
    draws one cluster fewer than there are and scales the weights, which removes the bias of few clusters. The interval
    is `estimate ± t · √V`, with the degrees of freedom of `V₁ + V₂` (Welch–Satterthwaite).

    Parameters
    ----------
    statistic : callable
        Takes weights of shape (resamples, observations) and returns values of shape (resamples, …).
    clusters : one or two sequences of labels
        Of each kind, one label an observation: the templates, and the attribute pairs.
    strata : sequence of labels, optional
        One an observation: clusters of the second kind are resampled within their stratum (a category's own words).

    Returns
    -------
    (low, high)
        Arrays of the shape of one value of the statistic. NaN where no kind has two clusters.

    Raises
    ------
    ValueError
        Not one or two kinds of clusters, or labels of unequal number.

    Notes
    -----
    On simulated data with 8 and 12 clusters a kind the 95 % interval covers the truth in 92 to 97 % of cases (tests).
    Sources: Cameron, Gelbach and Miller, "Robust inference with multiway clustering" (2011); Rao, Wu and Yue (1992).
    """
    if len(clusters) not in (1, 2) or len({len(labels) for labels in clusters}) != 1:
        raise ValueError("clusters: expected one or two sequences of labels of equal length")
    n = len(clusters[0])
    strata = ["all"] * n if strata is None else strata
    generator = np.random.default_rng(seed)
    kinds = [(clusters[0], ["all"] * n)]
    if len(clusters) == 2:
        kinds += [(clusters[1], strata), (list(zip(*clusters, strata, strict=True)), ["all"] * n)]
    variances, freedoms = [], []
    for labels, layers in kinds:
        weights, freedom = _resample(labels, layers, n_resamples, generator)
        variances.append(_variance(statistic(weights)) if freedom else 0.0)
        freedoms.append(freedom)
    if len(kinds) == 1 or not freedoms[1] or not freedoms[0]:
        kind = 0 if freedoms[0] or len(kinds) == 1 else 1
        variance, freedom = variances[kind], np.asarray(freedoms[kind], float)
    else:
        variance = np.maximum(variances[0] + variances[1] - variances[2], variances[2])
        total = variances[0] + variances[1]
        parts = variances[0] ** 2 / freedoms[0] + variances[1] ** 2 / freedoms[1]
        freedom = np.where(parts == 0, min(freedoms[:2]), total**2 / np.where(parts == 0, 1, parts))
    estimate = statistic(np.ones((1, n)))[0]
    half = stats.t.ppf((1 + level) / 2, np.where(freedom > 0, freedom, np.nan)) * np.sqrt(variance)
    return estimate - half, estimate + half


def sign_flip_test(differences: ArrayLike, clusters: Sequence) -> float:
    """Test whether paired differences are centred at 0, by flipping the signs of whole clusters.

    The mean of the cluster means is compared with its values under all 2^clusters sign patterns (two-sided, exact up
    to 13 clusters; beyond, 9,999 random patterns).

    Returns
    -------
    float
        p, at least 2 / 2^clusters: five clusters can't give less than 0.0625. NaN with fewer than two clusters, or
        where a difference is NaN.

    Raises
    ------
    ValueError
        Not one cluster label a difference.
    """
    differences = np.asarray(differences, float)
    if len(differences) != len(clusters):
        raise ValueError(f"clusters: expected {len(differences)} labels, one a difference; got {len(clusters)}")
    labels = np.array([str(label) for label in clusters])
    means = np.array([differences[labels == label].mean() for label in np.unique(labels)])
    if len(means) < 2 or np.isnan(means).any():
        return float("nan")
    test = stats.permutation_test(
        (means,), np.mean, permutation_type="samples", vectorized=True, n_resamples=9999, rng=np.random.default_rng(0)
    )
    return float(test.pvalue)


def holm(p_values: ArrayLike) -> NDArray:
    """Adjust p-values of several tests by Holm's step-down method (NaN stays NaN and does not count)."""
    p = np.asarray(p_values, float)
    adjusted = np.full(p.shape, np.nan)
    order = [index for index in np.argsort(p) if not np.isnan(p[index])]
    highest = 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - rank) * p[index]))
        adjusted[index] = highest
    return adjusted


def _variance(values: NDArray) -> NDArray:
    """Return the variance over resamples; NaN where more than 5 % of them left a group without any observation."""
    missing = np.isnan(values).mean(axis=0)
    with np.errstate(invalid="ignore"):
        return np.where(missing <= 0.05, np.nanvar(values, axis=0), np.nan)


def _resample(labels: Sequence, strata: Sequence, n_resamples: int, generator: np.random.Generator):
    """Draw weights (resamples, observations) of whole clusters within strata; also return the degrees of freedom."""
    keys = [(str(stratum), str(label)) for stratum, label in zip(strata, labels, strict=True)]
    weights = np.ones((n_resamples, len(keys)))
    freedom = 0
    for stratum in sorted({stratum for stratum, _ in keys}):
        own = sorted({key for key in keys if key[0] == stratum})
        if len(own) < 2:
            continue
        freedom += len(own) - 1
        drawn = generator.multinomial(len(own) - 1, np.full(len(own), 1 / len(own)), size=n_resamples)
        scaled = drawn * (len(own) / (len(own) - 1))
        place = {key: number for number, key in enumerate(own)}
        here = [index for index, key in enumerate(keys) if key in place]
        weights[:, here] = scaled[:, [place[keys[index]] for index in here]]
    return weights, freedom
