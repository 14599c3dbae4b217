"""Where the two prompts of a pair part inside the model: the article's metric, and differences layer by layer.

Contents: `ARTICLE_POINTS`, `article_metric`, `layer_differences`.

An activation difference says that a model *represents* two words differently, as it must to copy, translate or answer.
It is not a disparity of behaviour, and not by itself a harm.
"""

from collections.abc import Iterable, Sequence

import pandas as pd
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fairlab.capture import available_points, pair_differences
from fairlab.pairs import PromptPair, as_pairs

ARTICLE_POINTS = ("input_norm", "attention_output", "gate_proj", "up_proj", "down_proj", "mlp_output")


def article_metric(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, pair: PromptPair) -> float:
    """Compute the article's mean activation difference of one pair.

    `d[c, l] = mean over tokens and dimensions of |A^a - A^b|` for each of the points `input_norm`, `attention_output`,
    `gate_proj`, `up_proj`, `down_proj`, `mlp_output` and each layer; the metric is the mean of all `6 · layers` values.
    All tokens count, BOS and the shared beginning too.

    Returns
    -------
    float
        In units of activation, 0 or more; 0: the model does the same for both prompts. It depends on the scale of the
        activations, so it can't be compared between models. A neutral swap such as Black/tired moves it as well.

    Raises
    ------
    ValueError
        The prompts have different numbers of tokens or do not differ.

    Notes
    -----
    Differences and means are taken in float32 whatever the model's dtype. `mlp_output` and `down_proj` are one tensor,
    so the MLP's output counts twice. An architecture without an `input_norm` (OLMo 2) is measured at the five other
    points.

    Source: P. Martra, "Fairness Pruning: Precision Surgery to Reduce Bias in LLMs" (2025); optipfair's
    `calculate_bias_metrics`.
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
) -> pd.DataFrame:
    """Measure each pair at each capture point and layer, from the first differing token on.

    Returns
    -------
    pandas.DataFrame
        One row a pair, point and layer: `category`, `pair` (its number in the list), `point`, `layer`, `difference`
        (mean over tokens and dimensions of |A^a - A^b|, in units of activation), `scale` (mean of |A| of both prompts)
        and `relative` (difference / scale; 0: no difference; 1: as large as the activations themselves).

    Raises
    ------
    ValueError
        No pairs, an invalid pair, or an unknown point.
    """
    points, pairs = list(points), as_pairs(pairs)
    difference, scale = pair_differences(model, tokenizer, pairs, points=points)
    rows = [
        (pairs[p].category, p, points[c], layer, difference[p, c, layer].item(), scale[p, c, layer].item())
        for p, c, layer in (
            (p, c, layer) for p in range(len(pairs)) for c in range(len(points)) for layer in range(scale.shape[2])
        )
    ]
    table = pd.DataFrame(rows, columns=["category", "pair", "point", "layer", "difference", "scale"])
    return table.assign(relative=table.difference / table.scale)
