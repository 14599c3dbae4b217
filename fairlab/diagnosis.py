"""Where the two prompts of a pair part inside the model: the article's metric, and differences layer by layer.

Contents: `ARTICLE_POINTS`, `article_metric`, `layer_differences`.

An activation difference says that a model *represents* two words differently, as it must to copy, translate or answer.
It is not a disparity of behaviour, and not by itself a harm.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fairlab.capture import available_points, pair_differences
from fairlab.pairs import PromptPair, as_pairs
from fairlab.statistics import jackknife_interval

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
    Differences and means are taken in float32 whatever the model's dtype; the activations carry the rounding of that
    dtype (on the default model the metric is 0.3 % lower in float16 and 2.5 % higher in bfloat16). `mlp_output` and
    `down_proj` are one tensor, so the MLP's output counts twice. An architecture without an `input_norm` (OLMo 2) is
    measured at the five other points.

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
    neutral: Sequence[PromptPair] | None = None,
) -> pd.DataFrame:
    """Measure by how much activations differ at each capture point and layer, from the first differing token on.

    Parameters
    ----------
    neutral : list of PromptPair, optional
        Neutral pairs, the control: what any change of a word does.

    Returns
    -------
    pandas.DataFrame
        One row a category, point and layer: `category`, `point`, `layer`, `pairs`; `difference` (mean over pairs,
        tokens and dimensions of |A^a - A^b|, in units of activation); `scale` (mean of |A| of both prompts); `relative`
        (difference / scale; 0: no difference; 1: as large as the activations themselves); their 95 % intervals over
        templates and attribute pairs, `difference_low`, `difference_high`, `relative_low`, `relative_high` (NaN for a
        single pair); and with `neutral` the intervals of the neutral pairs, the band `neutral_difference_low` …
        `neutral_relative_high`.

    Raises
    ------
    ValueError
        No pairs, an invalid pair, or an unknown point.
    """
    points = [points] if isinstance(points, str) else list(dict.fromkeys(points))
    groups = defaultdict(list)
    for pair in as_pairs(pairs):
        groups[pair.category].append(pair)
    band = _layer_table(model, tokenizer, as_pairs(neutral), points) if neutral is not None else None
    tables = []
    for category, members in groups.items():
        table = _layer_table(model, tokenizer, members, points)
        for column in table.columns[-4:] if band is not None else ():
            table[f"neutral_{column}"] = band[column]
        tables.append(table.assign(category=category))
    table = pd.concat(tables, ignore_index=True)
    return table[["category", *table.columns.drop("category")]]


def _layer_table(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, pairs: Sequence[PromptPair], points: Sequence[str]
) -> pd.DataFrame:
    difference, scale = (values.double().numpy() for values in pair_differences(model, tokenizer, pairs, points=points))
    clusters = [[pair.template or pair.prompt_a for pair in pairs], [(p.attribute_a, p.attribute_b) for p in pairs]]
    tables = []
    for number, point in enumerate(points):
        d, s = difference[:, number], scale[:, number]
        table = pd.DataFrame({"point": point, "layer": range(d.shape[1]), "pairs": len(pairs)})
        table["difference"], table["scale"], table["relative"] = d.mean(0), s.mean(0), d.mean(0) / s.mean(0)
        for name, below in (("difference", np.ones_like(d)), ("relative", s)):
            columns = np.concatenate([d, below], axis=1)  # (pairs, 2 · layers)
            table[f"{name}_low"], table[f"{name}_high"] = jackknife_interval(columns, _ratio, clusters)
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def _ratio(sums: np.ndarray) -> np.ndarray:
    above, below = np.split(sums, 2, axis=-1)
    return above / below
