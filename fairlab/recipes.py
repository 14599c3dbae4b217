"""Whole ways to choose the neurons of a cut, from prompt pairs to a selection.

Contents: `guarded_cut`, the causal recipe of lesson 07; `article_cut`, what the article does;
`guarded_tables`, the scores that the first stands on.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fairlab.files import load_text
from fairlab.models import glu_blocks
from fairlab.pairs import PromptPair
from fairlab.scores import bias_scores, guarded_scores, hybrid_scores, importance_scores
from fairlab.surgery import NeuronSelection, select_neurons


def guarded_cut(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[PromptPair],
    neutral: Sequence[PromptPair],
    *,
    text: str | None = None,
    fraction: float = 0.002,
) -> NeuronSelection:
    """Choose neurons that cause the gap, leave neutral words alone, and are not needed for plain
    prose.

    `guarded_scores` of three tables: attribution of the demographic pairs and of the neutral pairs
    (both relative to their gap), and Fisher's importance on a text. Of each layer the neurons with
    the highest scores are chosen. On the default model's held-out pairs this cut narrows the gap by
    25.6 %; README's table has its interval, its controls and its price.

    Parameters
    ----------
    pairs, neutral : list of PromptPair
        What chooses the neurons: demographic pairs, and neutral pairs in the same templates. Judge
        the cut on others.
    text : str, optional
        Plain prose for Fisher's importance, `load_text("calibration")` by default. It must not
        measure the price as well.
    fraction : float
        Share of each layer's neurons, between 0 and 1.

    Returns
    -------
    NeuronSelection
        For `ablate`, `prune` and `compare`.

    Raises
    ------
    ValueError
        What `bias_scores`, `importance_scores`, `guarded_scores` and `select_neurons` refuse.
    """
    _check_fraction(model, fraction)
    scores = guarded_tables(model, tokenizer, pairs, neutral, text=text)["score"]
    how = f"guarded, {len(pairs)} pairs, {len(neutral)} neutral ones"
    return select_neurons(scores, fraction=fraction, how=how)


def guarded_tables(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[PromptPair],
    neutral: Sequence[PromptPair],
    *,
    text: str | None = None,
    method: Literal["attribution", "patching"] = "attribution",
    importance: str = "fisher",
) -> dict[str, Tensor]:
    """Compute the guarded score and the three tables that it is made of.

    Returns
    -------
    dict
        "score", "bias", "importance" and "neutral": tensors of shape (layers, neurons); for the
        units see `guarded_scores`, `bias_scores(relative=True)` and `importance_scores`.
    """
    if text is None:
        text = load_text("calibration")
    needed = importance_scores(model, method=importance, tokenizer=tokenizer, text=text)
    bias = bias_scores(model, tokenizer, pairs, method=method, relative=True)
    other = bias_scores(model, tokenizer, neutral, method=method, relative=True)
    score = guarded_scores(bias, needed, neutral=other)
    return {"score": score, "bias": bias, "importance": needed, "neutral": other}


def article_cut(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[PromptPair],
    *,
    fraction: float = 0.002,
    bias_weight: float = 0.5,
) -> NeuronSelection:
    """Choose neurons as the article does: those that react much and have small weights.

    `hybrid_scores` of `bias_scores(method="article")` and `importance_scores(method="maw")`, and of
    each layer the neurons with the highest scores. The article takes a single pair, `ARTICLE_PAIR`.

    Parameters
    ----------
    pairs : list of PromptPair
        What chooses the neurons.
    fraction : float
        Share of each layer's neurons, between 0 and 1; 0.002 in the article.
    bias_weight : float
        Of the reaction against the weights' size, from 0 to 1; 0.5 in the article.

    Returns
    -------
    NeuronSelection
        For `ablate`, `prune` and `compare`.

    Raises
    ------
    ValueError
        What `bias_scores`, `hybrid_scores` and `select_neurons` refuse.

    Notes
    -----
    Source: P. Martra, "Fairness Pruning: Precision Surgery to Reduce Bias in LLMs" (2025).
    """
    _check_fraction(model, fraction)
    bias = bias_scores(model, tokenizer, pairs, method="article")
    scores = hybrid_scores(bias, importance_scores(model, method="maw"), bias_weight=bias_weight)
    how = f"article, {len(pairs)} pairs, bias weight {bias_weight:g}"
    return select_neurons(scores, fraction=fraction, how=how)


def _check_fraction(model: PreTrainedModel, fraction: float) -> None:
    """Refuse a fraction that selects nothing before the scores are computed, which takes long."""
    blocks = glu_blocks(model)
    select_neurons(torch.zeros(len(blocks), blocks[0].down_proj.in_features), fraction=fraction)
