"""Whole ways to choose the neurons of a cut, from prompt pairs to a selection.

Contents: `guarded_cut`, the causal recipe of lesson 08; `guarded_tables`, its scores;
`article_cut`, what the article does.

Both recipes score every neuron and choose the highest scores of each layer, a `fraction` between 0
and 1 of it. They return a `NeuronSelection` for `ablate`, `prune` and `compare`. The pairs choose
the neurons, so judge a cut on other pairs.
"""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fairlab.files import load_text
from fairlab.gates import table_shape
from fairlab.pairs import PromptPair, as_pairs
from fairlab.passes import check_batch_size, check_material, check_weight
from fairlab.scores import bias_scores, guarded_scores, hybrid_scores, importance_scores
from fairlab.surgery import NeuronSelection, count_of_fraction, select_neurons


def guarded_cut(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[PromptPair],
    neutral: Sequence[PromptPair],
    *,
    text: str | None = None,
    fraction: float = 0.002,
    batch_size: int = 32,
) -> NeuronSelection:
    """Choose neurons that should cause the gap, spare neutral words, and not be needed for prose.

    `guarded_scores` of three tables: attribution of the demographic pairs and of the neutral pairs
    (both relative to their gap), and Fisher's importance on a text. On the default model and the
    test pairs this cut narrows the gap by 28.3 %, and that of neutral pairs by 15.8 %
    (`data/results/models.csv`); README's table has the intervals and the price.

    Parameters
    ----------
    pairs, neutral : list of PromptPair
        Demographic pairs, and neutral pairs in the same templates. The two prompts of a pair may
        differ in their number of tokens.
    text : str, optional
        Plain prose for Fisher's importance, `load_text("calibration")` by default. Measure the
        price of the cut on another text.
    fraction : float
        Share of each layer's neurons to select, above 0 and below 1.

    Raises
    ------
    ValueError
        What `attribution_scores`, `fisher_scores`, `guarded_scores` and `select_neurons` refuse.
    """
    # what is bad is refused before the scores are computed, which takes long
    count_of_fraction(fraction, table_shape(model)[1])
    check_batch_size(batch_size)
    pairs, neutral = check_material(tokenizer, pairs, neutral, text)
    tables = guarded_tables(model, tokenizer, pairs, neutral, text=text, batch_size=batch_size)
    note = f"guarded, {len(pairs)} pairs, {len(neutral)} neutral ones"
    return select_neurons(tables["score"], fraction=fraction, how=note)


def guarded_tables(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[PromptPair],
    neutral: Sequence[PromptPair],
    *,
    text: str | None = None,
    method: Literal["attribution", "patching"] = "attribution",
    importance: str = "fisher",
    batch_size: int = 32,
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
    damage = importance_scores(model, method=importance, tokenizer=tokenizer, text=text)
    options = {"method": method, "relative": True, "batch_size": batch_size}
    effect = bias_scores(model, tokenizer, pairs, **options)
    side_effect = bias_scores(model, tokenizer, neutral, **options)
    score = guarded_scores(effect, damage, neutral=side_effect)
    return {"score": score, "bias": effect, "importance": damage, "neutral": side_effect}


def article_cut(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[PromptPair],
    *,
    fraction: float = 0.002,
    bias_weight: float = 0.5,
    batch_size: int = 32,
) -> NeuronSelection:
    """Choose neurons as the article does: by a mix of reaction and small weights.

    `hybrid_scores` of `bias_scores(method="article")` and `importance_scores(method="maw")`. The
    article takes a single pair, `ARTICLE_PAIR`. Both prompts of a pair need the same number of
    tokens.

    Parameters
    ----------
    fraction : float
        As in `guarded_cut`; 0.002 in the article.
    bias_weight : float
        Weight of the reaction against the size of the weights, from 0 to 1; 0.5 in the article.

    Raises
    ------
    ValueError
        What `bias_scores`, `hybrid_scores` and `select_neurons` refuse.

    Notes
    -----
    Source: P. Martra, "Fairness Pruning: Precision Surgery to Reduce Bias in LLMs" (2025).
    """
    # what is bad is refused before the scores are computed, which takes long
    count_of_fraction(fraction, table_shape(model)[1])
    check_weight("bias_weight", bias_weight)
    pairs = as_pairs(pairs)
    bias = bias_scores(model, tokenizer, pairs, method="article", batch_size=batch_size)
    importance = importance_scores(model, method="maw")
    scores = hybrid_scores(bias, importance, bias_weight=bias_weight)
    note = f"article, {len(pairs)} pairs, bias weight {bias_weight:g}"
    return select_neurons(scores, fraction=fraction, how=note)
