"""Which neurons react to the word, which ones the model needs, and the two in one number.

Contents: `bias_scores`, `importance_scores`, `hybrid_scores`.

Every score is a float32 table of shape (layers, neurons). "Bias score" is the article's name for a difference of
activations: a neuron with a high one *reacts* to the word. Whether it *causes* a difference of behaviour is another
question.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fairlab.capture import check_option, neuron_differences
from fairlab.models import glu_blocks, glu_weights
from fairlab.pairs import PromptPair


def bias_scores(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[PromptPair],
    *,
    method: Literal["activation", "article", "optipfair"] = "activation",
    signed: bool = False,
    batch_size: int = 32,
) -> Tensor:
    """Score every MLP neuron by how much it differs between the two prompts of a pair, averaged over pairs.

    With G, U the outputs of `gate_proj` and `up_proj` and h the input of `down_proj`::

        activation  mean |h^a - h^b| over tokens from the first differing one on
        article     mean_t |G^a - G^b| + mean_t |U^a - U^b|, over all tokens, BOS too
        optipfair   (|mean_t (G^a - G^b)| + |mean_t (U^a - U^b)|) / 2, over all tokens

    Parameters
    ----------
    signed : bool
        With "activation": the mean of h^a - h^b. Positive: more active for `attribute_a`, the group that the stereotype
        targets. Opposite signs cancel, over tokens and over pairs.

    Returns
    -------
    Tensor
        Float32 on the CPU, shape (layers, neurons), in units of activation, 0 or more unless signed; 0: blind to the
        word; higher = cut first.

    Raises
    ------
    ValueError
        No pairs, an invalid pair, an unknown method, `signed` with another method, a model without GLU neurons, or
        activations that are not finite.

    Notes
    -----
    Sources: P. Martra, "Fairness Pruning" (2025), notebook 8_2, for "article"; optipfair 0.4.2 for "optipfair".
    """
    check_option("method", method, ("activation", "article", "optipfair"))
    if signed and method != "activation":
        raise ValueError(f"signed: expected False with method={method!r}, which takes absolute values; got True")
    glu_blocks(model)
    if method == "activation":
        statistic = "signed" if signed else "absolute"
        return neuron_differences(model, tokenizer, pairs, statistic=statistic, batch_size=batch_size)[
            "down_proj_input"
        ]
    tables = neuron_differences(
        model,
        tokenizer,
        pairs,
        points=("gate_proj", "up_proj"),
        statistic="absolute" if method == "article" else "pooled",
        positions="all",
        batch_size=batch_size,
    )
    total = tables["gate_proj"] + tables["up_proj"]
    return total if method == "article" else total / 2


def importance_scores(
    model: PreTrainedModel, *, method: Literal["maw", "maw_printed", "vow", "pon", "l2"] = "maw"
) -> Tensor:
    """Score every MLP neuron by the size of its gate row g and up row u.

    ::

        maw          (max_j g_j + |min_j g_j|) + (max_j u_j + |min_j u_j|)
        maw_printed  max_j |g_j| + max_j |u_j|
        vow          var(g) + var(u)
        pon          ‖g‖₁ · ‖u‖₁
        l2           ‖g‖₂ + ‖u‖₂

    "maw" is the Maximum Absolute Weight as the article's code has it, "maw_printed" as its text has it: another score.
    "vow" is the Variance Of Weights (unbiased), "pon" the Product Of Norms.

    None of them sees data or the down projection.

    Returns
    -------
    Tensor
        Float32 on the CPU, shape (layers, neurons); 0: all weights 0; higher = the model is assumed to need it more.

    Raises
    ------
    ValueError
        Unknown method, a model without GLU neurons, layers of unequal width, or weights that are not finite.

    Notes
    -----
    Sources: P. Martra, "Fairness Pruning" (2025) for "maw" and "maw_printed"; optipfair 0.4.2 for the others.
    """
    formulas = {
        "maw": _peaks,
        "maw_printed": lambda w: w.abs().amax(1),
        "vow": lambda w: w.var(1),
        "pon": lambda w: w.abs().sum(1),
        "l2": lambda w: w.norm(dim=1),
    }
    check_option("method", method, tuple(formulas))
    rows = []
    for mlp in glu_blocks(model):
        gate, up = (formulas[method](weight.float()) for weight in glu_weights(mlp)[:2])
        rows.append((gate * up if method == "pon" else gate + up).cpu())
    if len({len(row) for row in rows}) > 1:
        raise ValueError("model: its layers have different widths, so the scores make no table; score the uncut model")
    scores = torch.stack(rows)
    if not torch.isfinite(scores).all():
        raise ValueError("model: its gate_proj or up_proj weights are not finite (NaN or infinity)")
    return scores


def hybrid_scores(bias: Tensor, importance: Tensor, *, bias_weight: float = 0.5) -> Tensor:
    """Combine a bias and an importance score as the article does: react much, matter little.

    `w · N(bias) + (1 − w) · (1 − N(importance))`, `N(x) = (x − min) / (max − min + 1e-8)` within each layer.

    Parameters
    ----------
    bias, importance : Tensor
        Shape (layers, neurons).
    bias_weight : float
        w, from 0 (importance alone) to 1 (bias alone). The article takes 0.5, optipfair 0.8.

    Returns
    -------
    Tensor
        Shape (layers, neurons), from 0 to 1; higher = cut first. The scale is each layer's own, so ranks *across*
        layers compare unlike units; and one outlier squeezes all other neurons of its layer together.

    Raises
    ------
    ValueError
        Unequal shapes, values that are not finite, or a weight outside [0, 1].
    """
    if bias.ndim != 2 or bias.shape != importance.shape:
        raise ValueError(
            "bias, importance: expected two tables of one shape (layers, neurons); "
            f"got {tuple(bias.shape)} and {tuple(importance.shape)}"
        )
    if not 0 <= bias_weight <= 1:
        raise ValueError(f"bias_weight: expected a number from 0 to 1; got {bias_weight!r}")
    for argument, table in (("bias", bias), ("importance", importance)):
        if not torch.isfinite(table).all():
            raise ValueError(f"{argument}: expected finite values; got NaN or infinity")
    return bias_weight * _min_max(bias) + (1 - bias_weight) * (1 - _min_max(importance))


def _peaks(weight: Tensor) -> Tensor:
    low, high = torch.aminmax(weight, dim=1)
    return high + low.abs()


def _min_max(table: Tensor) -> Tensor:
    low, high = table.amin(1, keepdim=True), table.amax(1, keepdim=True)
    return (table - low) / (high - low + 1e-8)
