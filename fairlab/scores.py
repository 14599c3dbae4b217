"""Which neurons react to the word, which ones the model needs, and the two in one number.

Contents: `bias_scores`, `importance_scores`, `hybrid_scores`, `guarded_scores`; `chunk_loss` runs
one chunk of `text_chunks`.

Every score is a float32 table of shape (layers, neurons). "Bias score" is the article's name for a
difference of activations: a neuron with a high one *reacts* to the word. Whether it *causes* a
difference of behaviour is another question, which the methods "attribution" and "patching" ask.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fairlab.behavior import next_token_divergence
from fairlab.capture import neuron_differences, record
from fairlab.gates import gate_slopes
from fairlab.models import glu_blocks, glu_weights
from fairlab.pairs import PromptPair, as_pairs
from fairlab.passes import (
    PairBatch,
    check_option,
    check_ready,
    chunk_loss,
    context_length,
    divergence,
    full_precision,
    next_log_p,
    pair_batches,
    progress,
    text_chunks,
)


def bias_scores(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[PromptPair],
    *,
    method: Literal["activation", "article", "optipfair", "attribution", "patching"] = "activation",
    signed: bool = False,
    steps: int | None = None,
    relative: bool = False,
    batch_size: int = 32,
) -> Tensor:
    """Score every MLP neuron by how much it differs between the two prompts of a pair, or causes,
    averaged over pairs.

    With G, U the outputs of `gate_proj` and `up_proj` and h the input of `down_proj`::

        activation   mean |h^a - h^b| over tokens from the first differing one on
        article      mean_t |G^a - G^b| + mean_t |U^a - U^b|, over all tokens, BOS too
        optipfair    (|mean_t (G^a - G^b)| + |mean_t (U^a - U^b)|) / 2, over all tokens
        attribution  ∂gap/∂m at m = 1, with m * h in place of h: one m a neuron, for all tokens of both prompts
        patching     Σ_t over both prompts (h - (h^a + h^b) / 2) · ∂gap/∂h

    The gap is that of `next_token_divergence`. To first order, "attribution" is by how much it
    narrows if the neuron is removed, "patching" if each of its activations is replaced by the mean
    of the pair at that token. One forward and one backward a batch score all neurons.

    Parameters
    ----------
    signed : bool
        With "activation": the mean of h^a - h^b. Positive: more active for `attribute_a`, the group
        that the stereotype targets. Opposite signs cancel, over tokens and over pairs.
    steps : int, optional
        With "attribution": deal the neurons out to so many groups (number modulo steps), and take
        the gradient of each group with its masks at 1/2, halfway to the cut, and all others at 1:
        one forward and one backward a batch and group. With as many steps as neurons, each goes its
        path alone. See the notes for what it is good for.
    relative : bool
        With "attribution" and "patching": the effect on the headline of `compare`. In each category
        the mean over pairs is divided by the mean gap of these pairs, then the mean over categories
        is taken. Without it the category with the largest gap decides: mostly gender, by he and
        she.

    Returns
    -------
    Tensor
        Float32 on the CPU, shape (layers, neurons); higher = cut first. The first three: in units
        of activation, 0 or more unless signed; 0: blind to the word. "attribution" and "patching":
        in nats, or with `relative` as a share of the gap (0.01 is one per cent); positive: the
        intervention narrows the gap, negative: it widens it; 0: no effect to first order.

    Raises
    ------
    ValueError
        No pairs, an invalid pair, an unknown method, `signed`, `steps` or `relative` with another
        method, a category without any gap with `relative`, a model without GLU neurons, layers of
        unequal width, or activations or gradients that are not finite.

    Notes
    -----
    Sources: P. Martra, "Fairness Pruning" (2025), notebook 8_2, for "article"; optipfair 0.4.2 for
    "optipfair"; P. Molchanov et al. (2017, arXiv 1611.06440) for the first-order effect of a
    removal; N. Nanda, "Attribution Patching" (2023) for "patching".

    Spearman correlation of "attribution" with removing neurons one by one (default model, 12
    training pairs; 300 neurons at even ranks of the score without steps, the 45 highest, the 45
    lowest)::

        no steps                                     0.985   0.57   0.44
        steps=60                                     0.927   0.81   0.91
        steps=90                                     0.938   0.91   0.91
        all masks together from 1 to 0, 4 points    -0.005   0.02  -0.14
        one layer's masks at a time, 1 point         0.758   0.70   0.38
        one layer's masks at a time, 4 points        0.725   0.22   0.51

    The gap is nearly straight along the mask of a neuron with a small effect, and what moves with
    it only adds noise; it bends where the effect is large, which halfway sees and the end does not.
    Moving many neurons at once measures what they do together, in a model that is broken on the
    way. For the few neurons that are to be cut, see `refine_scores`, which removes them one by one.
    """
    check_option(
        "method", method, ("activation", "article", "optipfair", "attribution", "patching")
    )
    if signed and method != "activation":
        why = (
            "has a sign already"
            if method in ("attribution", "patching")
            else "takes absolute values"
        )
        raise ValueError(f"signed: expected False with method={method!r}, which {why}; got True")
    if steps is not None and (method != "attribution" or not isinstance(steps, int) or steps < 2):
        raise ValueError(
            f"steps: expected a whole number of at least 2, with method='attribution'; got {steps!r} with {method!r}"
        )
    if relative and method not in ("attribution", "patching"):
        raise ValueError(
            f"relative: expected False with method={method!r}, which measures no gap; got True"
        )
    glu_blocks(model)
    if method in ("attribution", "patching"):
        options = {"patching": method == "patching", "steps": steps, "batch_size": batch_size}
        if not relative:
            return _gap_slopes(model, tokenizer, pairs, **options)
        tables = []
        for category in dict.fromkeys(pair.category for pair in as_pairs(pairs)):
            group = [pair for pair in pairs if pair.category == category]
            gap = next_token_divergence(model, tokenizer, group, batch_size=batch_size).mean()
            if not gap:
                raise ValueError(
                    f"relative: the pairs of category {category!r} have a gap of 0, which has no share"
                )
            tables.append(_gap_slopes(model, tokenizer, group, **options) / gap.float())
        return torch.stack(tables).mean(0)
    if method == "activation":
        statistic = "signed" if signed else "absolute"
        return neuron_differences(
            model, tokenizer, pairs, statistic=statistic, batch_size=batch_size
        )["down_proj_input"]
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


@full_precision()
def _gap_slopes(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[PromptPair],
    *,
    patching: bool,
    steps: int | None,
    batch_size: int,
) -> Tensor:
    """Compute the slope of the mean gap with respect to every neuron's gate; shape (layers,
    neurons)."""
    pairs, total = as_pairs(pairs), 0
    for batch in pair_batches(model, tokenizer, pairs, batch_size=batch_size):
        for part in _rows_apart(batch, batch_size // 2) if patching else [batch]:

            def gap(part: PairBatch = part) -> Tensor:
                return divergence(next_log_p(model, part), part).sum()

            if patching:
                total = total + gate_slopes(model, gap, toward=_mean_of_both_prompts)
            elif steps:
                total = total + _slopes_halfway(model, gap, steps)
            else:
                total = total + gate_slopes(model, gap)
    return _table(total / len(pairs))


def _mean_of_both_prompts(layer: int, h: Tensor) -> Tensor:
    """Return for each row the mean of the pair it belongs to; the rows are all prompts a, then all
    prompts b."""
    precise = torch.promote_types(h.dtype, torch.float32)
    a, b = h.detach().to(precise).chunk(2)  # (pairs, tokens, neurons) each
    return ((a + b) / 2).repeat(2, 1, 1)


def _slopes_halfway(model: PreTrainedModel, gap: Callable[[], Tensor], steps: int) -> Tensor:
    """Compute the slopes of one group of neurons after the other, each with the gates of its group
    at 1/2."""
    shape = len(glu_blocks(model)), glu_blocks(model)[0].down_proj.in_features
    group_of = torch.arange(shape[0] * shape[1]).view(shape) % steps  # (layers, neurons)
    slopes = torch.zeros(shape, dtype=torch.promote_types(model.dtype, torch.float32))
    for group in progress(range(steps), desc="groups", unit="group"):
        members = group_of == group
        found = gate_slopes(model, gap, at=torch.where(members, 0.5, 1.0))
        slopes[members] = found[members]
    return slopes


def _rows_apart(batch: PairBatch, count: int) -> Iterator[PairBatch]:
    """Give every pair two rows of its own, `count` pairs at a time: a gradient at a shared row
    belongs to no pair."""
    for some in torch.arange(len(batch.pairs)).split(count):
        rows, number = torch.cat([batch.rows_a[some], batch.rows_b[some]]), torch.arange(len(some))
        yield replace(
            batch, input_ids=batch.input_ids[rows], attention_mask=batch.attention_mask[rows], last=batch.last[rows],
            pairs=batch.pairs[some], rows_a=number, rows_b=number + len(some), weights=batch.weights[some],
        )  # fmt: skip


def _table(rows: Sequence[Tensor] | Tensor, what: str = "activations or gradients") -> Tensor:
    """Stack one row a layer to a float32 table (layers, neurons); refuse unequal layers, NaN and
    infinity."""
    if len({len(row) for row in rows}) > 1:
        raise ValueError(
            "model: its layers have different widths, so the scores make no table; score the uncut model"
        )
    table = torch.stack(list(rows)).float()
    if not torch.isfinite(table).all():
        raise ValueError(f"model: its {what} are not finite (NaN or infinity)")
    return table


@full_precision()
def importance_scores(
    model: PreTrainedModel,
    *,
    method: Literal["maw", "maw_printed", "vow", "pon", "l2", "fisher", "taylor", "wanda"] = "maw",
    tokenizer: PreTrainedTokenizerBase | None = None,
    text: str | None = None,
) -> Tensor:
    """Score every MLP neuron by the size of its weights, or by what the model does without it on a
    text.

    From the gate row g and the up row u alone::

        maw          (max_j g_j + |min_j g_j|) + (max_j u_j + |min_j u_j|)
        maw_printed  max_j |g_j| + max_j |u_j|
        vow          var(g) + var(u)
        pon          ‖g‖₁ · ‖u‖₁
        l2           ‖g‖₂ + ‖u‖₂

    "maw" is the Maximum Absolute Weight as the article's code has it, "maw_printed" as its text has
    it: another score. "vow" is the Variance Of Weights (unbiased), "pon" the Product Of Norms.

    From a text, with h the input of `down_proj`, d the neuron's column of `down_proj`, and m * h in
    place of h (one m a neuron, for all tokens)::

        fisher       sqrt(mean over chunks of (∂loss/∂m)²) at m = 1
        taylor       |mean over chunks of ∂loss/∂m| at m = 1
        wanda        ‖d‖₁ · sqrt(mean_t h²)

    The text is tokenised as a whole and cut into chunks of 256 tokens, or fewer where the model
    reads fewer (BOS stands before each, where the tokenizer adds one), which run one at a time.
    What is left at the end is dropped; a shorter text is one chunk. `loss` is the mean next-token
    cross-entropy of the chunk.

    Parameters
    ----------
    tokenizer, text
        Needed by "fisher", "taylor" and "wanda", not used by the others. Plain prose that measures
        nothing else, such as `fairlab.load_text("calibration")`.

    Returns
    -------
    Tensor
        Float32 on the CPU, shape (layers, neurons), 0 or more; higher = the model is assumed to
        need it more. "fisher" and "taylor" in nats, the others in units of weight (times
        activation). 0: all weights 0, or no effect on the loss to first order.

    Raises
    ------
    ValueError
        Unknown method, a model without GLU neurons, layers of unequal width, weights or gradients
        that are not finite, tokenizer or text missing, or a text of fewer than two tokens.

    Notes
    -----
    Sources: P. Martra, "Fairness Pruning" (2025) for "maw" and "maw_printed"; optipfair 0.4.2 for
    the next three; P. Molchanov et al. (2019, arXiv 1906.10771) for "fisher" and "taylor"; M. Sun
    et al. (2023, arXiv 2306.11695) for "wanda", whose |weight| · ‖activation‖₂ is summed over a
    neuron's column and divided by √tokens.
    """
    formulas = {
        "maw": _peaks,
        "maw_printed": lambda w: w.abs().amax(1),
        "vow": lambda w: w.var(1),
        "pon": lambda w: w.abs().sum(1),
        "l2": lambda w: w.norm(dim=1),
    }
    check_option("method", method, (*formulas, "fisher", "taylor", "wanda"))
    blocks = glu_blocks(model)
    if method not in formulas:
        missing = " and ".join(
            name for name, value in (("tokenizer", tokenizer), ("text", text)) if value is None
        )
        if missing:
            raise ValueError(
                f"{missing}: method={method!r} needs a tokenizer and a text, such as that of "
                'fairlab.data_path("text/calibration_en.txt"); got None'
            )
        pieces = text_chunks(tokenizer, text, min(256, context_length(model) - 1))  # one for BOS
        check_ready(model, longest=max(map(len, pieces)))
        chunks = progress(pieces, desc="calibration text", unit="chunk")
        if method == "wanda":
            sums = _table(
                [glu_weights(mlp)[2].float().abs().sum(0).cpu() for mlp in blocks],
                "down_proj weights",
            )
            return (
                sums * (sum(_mean_squares(model, chunk) for chunk in chunks) / len(chunks)).sqrt()
            )
        slopes = (_table(gate_slopes(model, partial(chunk_loss, model, chunk))) for chunk in chunks)
        if method == "taylor":
            return (sum(slopes) / len(chunks)).abs()
        return (sum(slope**2 for slope in slopes) / len(chunks)).sqrt()
    rows = []
    for mlp in blocks:
        gate, up = (formulas[method](weight.float()) for weight in glu_weights(mlp)[:2])
        rows.append((gate * up if method == "pon" else gate + up).cpu())
    return _table(rows, "gate_proj or up_proj weights")


def _mean_squares(model: PreTrainedModel, chunk: list[int]) -> Tensor:
    with record(model, ["down_proj_input"]) as activations, torch.no_grad():
        model.base_model(input_ids=torch.tensor([chunk], device=model.device), use_cache=False)
    return _table([h[0].float().square().mean(0) for _, h in sorted(activations.items())])


def hybrid_scores(bias: Tensor, importance: Tensor, *, bias_weight: float = 0.5) -> Tensor:
    """Combine a bias and an importance score as the article does: react much, matter little.

    `w · N(bias) + (1 − w) · (1 − N(importance))`, `N(x) = (x − min) / (max − min + 1e-8)` within
    each layer.

    Parameters
    ----------
    bias, importance : Tensor
        Shape (layers, neurons).
    bias_weight : float
        w, from 0 (importance alone) to 1 (bias alone). The article takes 0.5, optipfair 0.8.

    Returns
    -------
    Tensor
        Shape (layers, neurons), from 0 to 1; higher = cut first. The scale is each layer's own, so
        ranks *across* layers compare unlike units; and one outlier squeezes all other neurons of
        its layer together.

    Raises
    ------
    ValueError
        Unequal shapes, values that are not finite, or a weight outside [0, 1].
    """
    _check_tables(bias=bias, importance=importance)
    if not 0 <= bias_weight <= 1:
        raise ValueError(f"bias_weight: expected a number from 0 to 1; got {bias_weight!r}")
    return bias_weight * _min_max(bias) + (1 - bias_weight) * (1 - _min_max(importance))


def guarded_scores(
    bias: Tensor,
    importance: Tensor,
    *,
    neutral: Tensor | None = None,
    charge: float = 0.85,
    protect: float = 0.03,
    floor: float = 4.0,
) -> Tensor:
    """Weigh what a cut is expected to bring against what it is expected to break.

    ::

        (bias − charge · |neutral|) / (importance² + floor · mean importance²)

    Made for `bias_scores(method="attribution")` or "patching" and
    `importance_scores(method="fisher")`. Fisher's F says how sensitive the loss is to a neuron; F²
    is a weight against neurons on which much hangs, not a forecast of what their removal costs (of
    60 candidates it did not rank the signed rise of the loss, rank correlation −0.03, only its
    size, 0.74). With "maw" in place of "fisher" the perplexity rose by 64 %, where it did not rise
    with "fisher" (default model, 92 neurons, validation pairs, charge=1, protect=0.1, floor=1). The
    defaults were chosen on fairlab's validation templates and the default model, for scores with
    `relative=True`. More charge leaves neutral pairs alone and narrows the gap less; less floor and
    more protection cost less perplexity.

    Parameters
    ----------
    bias, importance : Tensor
        Shape (layers, neurons).
    neutral : Tensor, optional
        The bias score of neutral pairs in the same templates. A neuron that moves their gap, either
        way, reacts to any word: cutting many of these makes a model deaf.
    charge : float
        How much an effect on neutral pairs counts against one on demographic pairs, 0 or more.
    protect : float
        Share of the model's neurons that stay because they are the most important, from 0 to below
        1.
    floor : float
        Damage that every neuron is taken to do, as a share of the mean, above 0: no neuron is free.

    Returns
    -------
    Tensor
        Shape (layers, neurons); higher = cut first, in units of bias / importance², comparable
        across layers. −inf (`select_neurons` leaves them): protected, or without an expected gain
        (bias ≤ charge · |neutral|).

    Raises
    ------
    ValueError
        Unequal shapes, values that are not finite, an option out of range, or importance that is 0
        everywhere.
    """
    _check_tables(
        bias=bias, importance=importance, **({} if neutral is None else {"neutral": neutral})
    )
    for argument, value, allowed, fits in (
        ("charge", charge, "a number of at least 0", 0 <= charge < math.inf),
        ("protect", protect, "a number from 0 to below 1", 0 <= protect < 1),
        ("floor", floor, "a number above 0", 0 < floor < math.inf),
    ):
        if not fits:
            raise ValueError(f"{argument}: expected {allowed}; got {value!r}")
    damage = importance.double() ** 2
    if not damage.any():
        raise ValueError("importance: expected values that are not all 0")
    gain = bias - charge * neutral.abs() if neutral is not None else bias
    scores = (gain / (damage + floor * damage.mean())).float()
    scores[gain <= 0] = -math.inf
    scores.view(-1)[damage.flatten().topk(int(protect * damage.numel())).indices] = -math.inf
    return scores


def _check_tables(**tables: Tensor) -> None:
    shapes = [tuple(table.shape) for table in tables.values()]
    if len(shapes[0]) != 2 or len(set(shapes)) > 1:
        raise ValueError(
            f"{', '.join(tables)}: expected tables of one shape (layers, neurons); got {' and '.join(map(str, shapes))}"
        )
    for argument, table in tables.items():
        if not torch.isfinite(table).all():
            raise ValueError(f"{argument}: expected finite values; got NaN or infinity")


def _peaks(weight: Tensor) -> Tensor:
    low, high = torch.aminmax(weight, dim=1)
    return high + low.abs()


def _min_max(table: Tensor) -> Tensor:
    table = table.to(torch.promote_types(table.dtype, torch.float32))  # float16 rounds 1e-8 to 0
    low, high = table.amin(1, keepdim=True), table.amax(1, keepdim=True)
    return (table - low) / (high - low + 1e-8)
