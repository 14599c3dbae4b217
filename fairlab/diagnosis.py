"""Where the two prompts of a pair part inside the model.

Contents: `ARTICLE_POINTS`, `article_points`, `article_metric`, `layer_differences`, `project_pair`.

An activation difference says that a model *represents* two words differently, as it must to copy,
translate or answer. It is not a disparity of behaviour, and not by itself a harm.
"""

import warnings
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from sklearn.decomposition import PCA
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fairlab.capture import (
    CAPTURE_POINTS,
    available_points,
    check_finite,
    check_points,
    pair_differences,
    record,
)
from fairlab.models import decoder_layers, input_device
from fairlab.pairs import PromptPair, as_pairs, check_pair, count_in_front, encode_pair
from fairlab.passes import check_memory, check_option, check_ready, check_whole
from fairlab.statistics import jackknife_interval

ARTICLE_POINTS = (
    "input_norm",
    "attention_output",
    "gate_proj",
    "up_proj",
    "down_proj",
    "mlp_output",
)
_INTERVALS = ["difference_low", "difference_high", "relative_low", "relative_high"]


def article_points(model: PreTrainedModel) -> list[str]:
    """Return the capture points of the article's metric that this architecture has.

    Warn of those that it lacks; refuse a model without the MLP's, about which the article is.
    """
    available = available_points(model)
    points = [point for point in ARTICLE_POINTS if point in available]
    lacking = [point for point in ARTICLE_POINTS if point not in available]
    name = type(model).__name__
    if "mlp_output" in lacking:
        raise ValueError(
            f"model: the article's metric needs {', '.join(ARTICLE_POINTS)} in every layer; "
            f"{name} has {', '.join(points) or 'none of them'}"
        )
    if lacking:
        warnings.warn(
            f"the article's metric leaves out {', '.join(lacking)}, which not every layer of "
            f"{name} has: compare it with no other model's",
            stacklevel=3,
        )
    return points


def article_metric(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, pair: PromptPair
) -> float:
    """Compute the article's mean activation difference of one pair.

    `d[c, l] = mean over tokens and dimensions of |A^a - A^b|` for each of the points `input_norm`,
    `attention_output`, `gate_proj`, `up_proj`, `down_proj`, `mlp_output` and each layer; the metric
    is the mean of all `6 · layers` values. All tokens count, BOS and the shared beginning too.

    Returns
    -------
    float
        In units of activation, 0 or more; 0: the model does the same for both prompts. It depends
        on the scale of the activations, so it can't be compared between models. A neutral swap such
        as Black/tired moves it as well.

    Raises
    ------
    ValueError
        The prompts have different numbers of tokens or do not differ, or the layers have no MLP
        that can be looked into.

    Notes
    -----
    Differences and means are taken in float32 whatever the model's dtype; the activations carry the
    rounding of that dtype (on the default model the metric is 0.3 % lower in float16 and 2.5 %
    higher in bfloat16). `mlp_output` and `down_proj` are one tensor, so the MLP's output counts
    twice. An architecture that lacks a point in some layer, such as `input_norm` (OLMo 2) or
    `attention_output` (Qwen3.5), is measured at the others, with a warning.

    Source: P. Martra, "Fairness Pruning: Precision Surgery to Reduce Bias in LLMs" (2025);
    optipfair's `calculate_bias_metrics`.
    """
    check_pair(pair)
    difference, _ = pair_differences(
        model, tokenizer, [pair], points=article_points(model), positions="all"
    )
    return difference.mean().item()


def layer_differences(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[PromptPair],
    *,
    points: Iterable[str] = ("mlp_output",),
    neutral: Sequence[PromptPair] | None = None,
) -> pd.DataFrame:
    """Measure by how much activations differ, from the first differing token on.

    Parameters
    ----------
    points : iterable of str
        Any of `CAPTURE_POINTS`.
    neutral : list of PromptPair, optional
        Neutral pairs, the control: what any change of a word does.

    Returns
    -------
    pandas.DataFrame
        One row a category, point and layer: `category`, `point`, `layer`, `pairs`; `difference`
        (mean over pairs, tokens and dimensions of `|A^a - A^b|`, in units of activation); `scale`
        (mean of `|A|` of both prompts); `relative` (difference / scale; 0: no difference; 1: as
        large as the activations themselves); their 95 % intervals over templates and attribute
        pairs, `difference_low`, `difference_high`, `relative_low`, `relative_high` (NaN
        with one template); and with `neutral` the intervals of the neutral pairs, the band
        `neutral_difference_low` … `neutral_relative_high`.

    Raises
    ------
    ValueError
        No pairs, a pair that is not valid (`check_pairs`), such as one of unequal length, or an
        unknown point.

    Notes
    -----
    In half precision the activations carry its rounding: on the default model and 126 pairs the
    differences of single layers are 0.1 % lower in float16 (at most 0.2 % off) and 0.7 % higher in
    bfloat16 (at most 3.1 % off; `experiments/precision.py`).
    """
    points = check_points(model, points)
    categories = defaultdict(list)
    for pair in as_pairs(pairs):
        categories[pair.category].append(pair)
    if neutral is not None:
        neutral = as_pairs(neutral, argument="neutral")
        for pair in neutral:
            encode_pair(tokenizer, pair, argument="neutral")
        band = _layer_table(model, tokenizer, neutral, points)
        band = band[_INTERVALS].add_prefix("neutral_")
    tables = []
    for category, members in categories.items():
        table = _layer_table(model, tokenizer, members, points)
        table.insert(0, "category", category)
        tables.append(table if neutral is None else table.join(band))
    return pd.concat(tables, ignore_index=True)


def _layer_table(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[PromptPair],
    points: Sequence[str],
) -> pd.DataFrame:
    """Make the rows of `layer_differences` for one list of pairs."""
    differences, scales = pair_differences(model, tokenizer, pairs, points=points)
    templates = [pair.template or pair.prompt_a for pair in pairs]
    words = [(pair.attribute_a, pair.attribute_b) for pair in pairs]
    tables = []
    for number, point in enumerate(points):
        difference = differences[:, number].double().numpy()  # (pairs, layers)
        scale = scales[:, number].double().numpy()  # (pairs, layers)
        columns = {
            "point": point,
            "layer": range(difference.shape[1]),
            "pairs": len(pairs),
            "difference": difference.mean(0),
            "scale": scale.mean(0),
            "relative": difference.mean(0) / scale.mean(0),
        }
        # both are ratios of sums over pairs: a mean has the number of pairs below the line
        for name, below in (("difference", np.ones_like(difference)), ("relative", scale)):
            sums = np.concatenate([difference, below], axis=1)  # (pairs, 2 · layers)
            ends = jackknife_interval(sums, _ratio, [templates, words])
            columns[f"{name}_low"], columns[f"{name}_high"] = ends
        tables.append(pd.DataFrame(columns))
    return pd.concat(tables, ignore_index=True)


def _ratio(sums: np.ndarray) -> np.ndarray:
    """Divide the first half of the columns by the second."""
    above, below = np.split(sums, 2, axis=-1)
    return above / below


@dataclass(frozen=True)
class Projection:
    """What `project_pair` returns.

    Attributes
    ----------
    point : str
        The capture point.
    tokens_a, tokens_b : tuples of str
        One label a position.
    coordinates : array of shape (layers, 2 prompts, tokens, 2)
        Place of each token along both axes.
    explained : array of shape (layers, 2)
        Share of the variance along each axis, from 0 to 1.
    distances : array of shape (layers, tokens)
        Distance between the prompts at each position, in all dimensions.
    norms : array of shape (layers, tokens)
        Length of the representation, the mean of both prompts.
    attribute_a, attribute_b : str
        The words in which the prompts differ, as the pair names them: what figures call the two.
    left_out : tuple of str
        The special tokens, such as BOS, among the tokens before the first position; empty: none.
    """

    point: str
    tokens_a: tuple[str, ...]
    tokens_b: tuple[str, ...]
    coordinates: np.ndarray
    explained: np.ndarray
    distances: np.ndarray
    norms: np.ndarray
    attribute_a: str
    attribute_b: str
    left_out: tuple[str, ...] = ()


def project_pair(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pair: PromptPair,
    *,
    point: str = "residual",
    start: int | None = None,
) -> Projection:
    """Project the token representations of both prompts by PCA, layer by layer.

    Each layer has axes of its own, fitted on the tokens of both prompts together; an axis is turned
    round where that brings it closer to the layer before, so that signs do not flip at random.
    Labels and activations come from the same token ids.

    Parameters
    ----------
    point : str
        One of `CAPTURE_POINTS`.
    start : int, optional
        Leave out the positions before it; 0: none. By default those of the special tokens, such as
        BOS, that the tokenizer or its chat template puts before both prompts. A model's first token
        is often so large that, with it, the first axis shows little else; that of a tokenizer
        without BOS is a word, which only a start of 1 leaves out.

    Returns
    -------
    Projection
        Look at `distances` beside the picture: two axes show only the share of the variance in
        `explained`. A distance is 0 before the first differing token.

    Raises
    ------
    ValueError
        A pair that is not valid (`check_pairs`), such as one of unequal length; an unknown point,
        or a start that leaves no token that differs.
    """
    check_pair(pair)
    check_option("point", point, CAPTURE_POINTS)
    ids_a, ids_b, first = encode_pair(tokenizer, pair)
    if start is None:
        start = min(count_in_front(tokenizer, pair), first)
    start = check_whole("start", start, 0, first)  # first: the first token that differs
    check_ready(model, longest=len(ids_a), prompts=[ids_a, ids_b])
    check_memory(model, [(2, len(ids_a), 0)])
    ids = torch.tensor([ids_a, ids_b], device=input_device(model))  # (2, tokens)
    with record(model, [point]) as activations, torch.no_grad():
        model.base_model(input_ids=ids, use_cache=False)

    coordinates, explained, distances, norms = [], [], [], []
    for layer in range(len(decoder_layers(model))):
        check_finite(activations[point, layer], point)
        values = activations[point, layer][:, start:].numpy()  # (2, tokens, width)
        plane, shares = _principal_plane(values)
        if coordinates:
            # turn an axis round where it points away from that of the layer before
            agreement = (plane * coordinates[-1]).sum((0, 1))  # (2,)
            plane = plane * np.where(agreement < 0, -1.0, 1.0)
        coordinates.append(plane)
        explained.append(shares)
        distances.append(np.linalg.norm(values[0] - values[1], axis=-1))
        norms.append(np.linalg.norm(values, axis=-1).mean(0))
    special = set(tokenizer.all_special_ids)
    return Projection(
        point=point,
        tokens_a=tuple(tokenizer.decode([token]) for token in ids_a[start:]),
        tokens_b=tuple(tokenizer.decode([token]) for token in ids_b[start:]),
        coordinates=np.stack(coordinates),
        explained=np.stack(explained),
        distances=np.stack(distances),
        norms=np.stack(norms),
        attribute_a=pair.attribute_a,
        attribute_b=pair.attribute_b,
        left_out=tuple(tokenizer.decode([token]) for token in ids_a[:start] if token in special),
    )


def _principal_plane(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the places of values (2, tokens, width) along their two principal axes, of the shape
    (2, tokens, 2), and each axis' share of the variance."""
    pca = PCA(n_components=2, svd_solver="full")
    flat = pca.fit_transform(values.reshape(-1, values.shape[-1]))  # (2 · tokens, 2)
    return flat.reshape(*values.shape[:2], 2), pca.explained_variance_ratio_
