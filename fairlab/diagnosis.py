"""Where the two prompts of a pair part inside the model: the article's metric, and differences
layer by layer.

Contents: `ARTICLE_POINTS`, `article_metric`, `layer_differences`.

An activation difference says that a model *represents* two words differently, as it must to copy,
translate or answer. It is not a disparity of behaviour, and not by itself a harm.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from sklearn.decomposition import PCA
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fairlab.capture import CAPTURE_POINTS, available_points, pair_differences, record
from fairlab.models import decoder_layers
from fairlab.pairs import PromptPair, as_pairs, encode_pair
from fairlab.passes import check_option, check_ready
from fairlab.statistics import jackknife_interval

ARTICLE_POINTS = (
    "input_norm",
    "attention_output",
    "gate_proj",
    "up_proj",
    "down_proj",
    "mlp_output",
)


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
        The prompts have different numbers of tokens or do not differ.

    Notes
    -----
    Differences and means are taken in float32 whatever the model's dtype; the activations carry the
    rounding of that dtype (on the default model the metric is 0.3 % lower in float16 and 2.5 %
    higher in bfloat16). `mlp_output` and `down_proj` are one tensor, so the MLP's output counts
    twice. An architecture without an `input_norm` (OLMo 2) is measured at the five other points.

    Source: P. Martra, "Fairness Pruning: Precision Surgery to Reduce Bias in LLMs" (2025);
    optipfair's `calculate_bias_metrics`.
    """
    points = [point for point in ARTICLE_POINTS if point in available_points(model)]
    difference, _ = pair_differences(model, tokenizer, [pair], points=points, positions="all")
    return difference.mean().item()


def layer_differences(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[PromptPair],
    *,
    points: Iterable[str] = ("mlp_output",),
    neutral: Sequence[PromptPair] | None = None,
) -> pd.DataFrame:
    """Measure by how much activations differ at each capture point and layer, from the first
    differing token on.

    Parameters
    ----------
    neutral : list of PromptPair, optional
        Neutral pairs, the control: what any change of a word does.

    Returns
    -------
    pandas.DataFrame
        One row a category, point and layer: `category`, `point`, `layer`, `pairs`; `difference`
        (mean over pairs, tokens and dimensions of |A^a - A^b|, in units of activation); `scale`
        (mean of |A| of both prompts); `relative` (difference / scale; 0: no difference; 1: as large
        as the activations themselves); their 95 % intervals over templates and attribute pairs,
        `difference_low`, `difference_high`, `relative_low`, `relative_high` (NaN for a single
        pair); and with `neutral` the intervals of the neutral pairs, the band
        `neutral_difference_low` … `neutral_relative_high`.

    Raises
    ------
    ValueError
        No pairs, an invalid pair, or an unknown point.
    """
    points = [points] if isinstance(points, str) else list(dict.fromkeys(points))
    groups = defaultdict(list)
    for pair in as_pairs(pairs):
        groups[pair.category].append(pair)
    band = (
        _layer_table(model, tokenizer, as_pairs(neutral), points) if neutral is not None else None
    )
    tables = []
    for category, members in groups.items():
        table = _layer_table(model, tokenizer, members, points)
        for column in table.columns[-4:] if band is not None else ():
            table[f"neutral_{column}"] = band[column]
        tables.append(table.assign(category=category))
    table = pd.concat(tables, ignore_index=True)
    return table[["category", *table.columns.drop("category")]]


def _layer_table(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[PromptPair],
    points: Sequence[str],
) -> pd.DataFrame:
    difference, scale = (
        values.double().numpy()
        for values in pair_differences(model, tokenizer, pairs, points=points)
    )
    clusters = [
        [pair.template or pair.prompt_a for pair in pairs],
        [(p.attribute_a, p.attribute_b) for p in pairs],
    ]
    tables = []
    for number, point in enumerate(points):
        d, s = difference[:, number], scale[:, number]
        table = pd.DataFrame({"point": point, "layer": range(d.shape[1]), "pairs": len(pairs)})
        table["difference"], table["scale"], table["relative"] = (
            d.mean(0),
            s.mean(0),
            d.mean(0) / s.mean(0),
        )
        for name, below in (("difference", np.ones_like(d)), ("relative", s)):
            columns = np.concatenate([d, below], axis=1)  # (pairs, 2 · layers)
            table[f"{name}_low"], table[f"{name}_high"] = jackknife_interval(
                columns, _ratio, clusters
            )
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def _ratio(sums: np.ndarray) -> np.ndarray:
    above, below = np.split(sums, 2, axis=-1)
    return above / below


@dataclass(frozen=True)
class Projection:
    """What `project_pair` found."""

    point: str
    tokens_a: tuple[str, ...]  # one label a position, special tokens included
    tokens_b: tuple[str, ...]
    coordinates: np.ndarray  # (layers, 2 prompts, tokens, 2)
    explained: np.ndarray  # (layers, 2) share of the variance along each axis, from 0 to 1
    distances: (
        np.ndarray
    )  # (layers, tokens) distance between the prompts at each position, in all dimensions
    norms: np.ndarray  # (layers, tokens) length of the representation, the mean of both prompts


def project_pair(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pair: PromptPair,
    *,
    point: str = "residual",
    start: int = 0,
) -> Projection:
    """Project the token representations of both prompts by PCA, layer by layer.

    Each layer has axes of its own, fitted on the tokens of both prompts together; an axis is turned
    round where that brings it closer to the layer before, so that signs do not flip at random.
    Labels and activations come from the same token ids, special tokens included.

    Parameters
    ----------
    point : str
        One of `CAPTURE_POINTS`.
    start : int
        Leave out the positions before it. A model's first token is often so large that, with 0, the
        first axis shows little else.

    Returns
    -------
    Projection
        Look at `distances` beside the picture: two axes show only the share of the variance in
        `explained`. A distance is 0 before the first differing token.

    Raises
    ------
    ValueError
        An invalid pair, an unknown point, or a start that leaves no token that differs.
    """
    check_option("point", point, CAPTURE_POINTS)
    ids_a, ids_b, first = encode_pair(tokenizer, pair)
    if not isinstance(start, int) or not 0 <= start <= first:
        raise ValueError(
            f"start: expected a number from 0 to {first}, the first token that differs; got {start!r}"
        )
    check_ready(model, longest=len(ids_a))
    with record(model, [point]) as activations, torch.no_grad():
        model.base_model(
            input_ids=torch.tensor([ids_a, ids_b], device=model.device), use_cache=False
        )
    coordinates, explained, distances, norms = [], [], [], []
    for layer in range(len(decoder_layers(model))):
        values = activations[point, layer][:, start:].numpy()
        pca = PCA(n_components=2, svd_solver="full")
        flat = pca.fit_transform(values.reshape(-1, values.shape[-1])).reshape(*values.shape[:2], 2)
        if coordinates:
            flat = flat * np.where((flat * coordinates[-1]).sum((0, 1)) < 0, -1.0, 1.0)
        coordinates.append(flat)
        explained.append(pca.explained_variance_ratio_)
        distances.append(np.linalg.norm(values[0] - values[1], axis=-1))
        norms.append(np.linalg.norm(values, axis=-1).mean(0))
    labels = [tuple(tokenizer.decode([index]) for index in ids[start:]) for ids in (ids_a, ids_b)]
    return Projection(point, *labels, *map(np.stack, (coordinates, explained, distances, norms)))
