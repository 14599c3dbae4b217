"""Which neurons react to the word, which ones the model needs, and the two in one number.

Contents: `bias_scores`, which calls `difference_scores`, `attribution_scores` or `patching_scores`;
`decision_scores`; `importance_scores`, which calls `weight_scores` or `fisher_scores`;
`hybrid_scores` and `guarded_scores`, which combine the two kinds.

Every score is a float32 table of shape (layers, neurons). "Bias score" is the article's name for a
difference of activations: a neuron with a high one *reacts* to the word. Whether it *causes* a
difference of behaviour is another question, which attribution and patching ask.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fairlab.capture import neuron_differences
from fairlab.decisions import DecisionBatch, decision_batches, decision_gap, decisions
from fairlab.gates import gate_slopes, table_shape
from fairlab.models import check_room_for_slopes, glu_blocks, glu_weights, weights_at_hand
from fairlab.pairs import (
    Outcomes,
    PromptPair,
    as_pairs,
    check_kind,
    encode_pair,
)
from fairlab.passes import (
    PairBatch,
    check_option,
    check_positive,
    check_weight,
    chunk_loss,
    divergence,
    halving,
    is_number,
    next_log_p,
    pair_batches,
    progress,
    text_chunks,
)
from fairlab.precision import full_precision
from fairlab.processes import share, summed

DIFFERENCE_METHODS = ("activation", "article", "optipfair")
CAUSAL_METHODS = ("attribution", "patching")
WEIGHT_METHODS = ("maw", "maw_printed", "vow", "pon", "l2")


def bias_scores(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[PromptPair],
    *,
    method: Literal["activation", "article", "optipfair", "attribution", "patching"] = "activation",
    signed: bool = False,
    relative: bool = False,
    batch_size: int = 32,
) -> Tensor:
    """Score every MLP neuron by how much it differs between the two prompts of a pair.

    With a causal method: by how much of the difference in behaviour it causes. Scores are averaged
    over pairs.

    Parameters
    ----------
    method : str
        "activation", "article" and "optipfair" are the formulas of `difference_scores`;
        "attribution" is `attribution_scores` and "patching" is `patching_scores`. Only
        "attribution" takes pairs whose two prompts differ in their number of tokens.
    signed : bool
        Only with "activation": see `difference_scores`.
    relative : bool
        Only with "attribution" and "patching": see `attribution_scores`.

    Returns
    -------
    Tensor
        Float32 on the CPU, shape (layers, neurons); higher = cut first. The functions above say in
        which units, and what 0 means.

    Raises
    ------
    ValueError
        An unknown method, `signed` or `relative` with a method that does not take it, or what the
        functions above refuse.
    """
    check_option("method", method, (*DIFFERENCE_METHODS, *CAUSAL_METHODS))
    if method in DIFFERENCE_METHODS:
        if relative:
            raise ValueError(
                f"relative: expected False with method={method!r}, which measures no gap; got True"
            )
        return difference_scores(
            model, tokenizer, pairs, method=method, signed=signed, batch_size=batch_size
        )
    if signed:
        raise ValueError(
            f"signed: expected False with method={method!r}, which has a sign already; got True"
        )
    score = attribution_scores if method == "attribution" else patching_scores
    return score(model, tokenizer, pairs, relative=relative, batch_size=batch_size)


# ---- what reacts to the word


def difference_scores(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[PromptPair],
    *,
    method: Literal["activation", "article", "optipfair"] = "activation",
    signed: bool = False,
    batch_size: int = 32,
) -> Tensor:
    """Score every MLP neuron by how much it differs between the two prompts of a pair.

    With G, U the outputs of `gate_proj` and `up_proj` and h the input of `down_proj`, averaged over
    pairs::

        activation   mean_t |h^a - h^b|, over tokens from the first differing one on
        article      mean_t |G^a - G^b| + mean_t |U^a - U^b|, over all tokens, BOS too
        optipfair    (|mean_t (G^a - G^b)| + |mean_t (U^a - U^b)|) / 2, over all tokens, BOS too

    Parameters
    ----------
    method : str
        Which of the three formulas.
    signed : bool
        With "activation": the mean of h^a - h^b. Positive: more active for `attribute_a`, the group
        that the stereotype targets. Opposite signs cancel, over tokens and over pairs.

    Returns
    -------
    Tensor
        Float32 on the CPU, shape (layers, neurons), in units of activation, 0 or more unless
        signed; higher = cut first. 0: the neuron is blind to the word or, with "optipfair" or
        `signed`, its differences cancel.

    Raises
    ------
    ValueError
        No pairs, a pair that is not valid (`check_pairs`), such as one of unequal length; an
        unknown method, `signed` with another method than "activation", a model without GLU neurons,
        layers of unequal width, or activations that are not finite.

    Notes
    -----
    Sources: P. Martra, "Fairness Pruning" (2025), notebook 8_2, for "article"; optipfair 0.4.2 for
    "optipfair".

    Prompts of unequal length are not lined up from their end, since a position counts, too. On the
    default model and 18 pairs of names in three sentences, the activations behind the name differ
    by 0.044 on average; those of one prompt, moved by one position, by 0.021, and by two, as far as
    Lakisha moves them against Emily, by 0.042 (`experiments/unequal.py` prints these).
    """
    check_option("method", method, DIFFERENCE_METHODS)
    if signed and method != "activation":
        raise ValueError(
            f"signed: expected False with method={method!r}, which takes absolute values; got True"
        )
    glu_blocks(model)  # refuses a model without GLU neurons
    differences = partial(neuron_differences, model, tokenizer, pairs, batch_size=batch_size)
    if method == "activation":
        return differences(statistic="signed" if signed else "absolute")["down_proj_input"]
    tables = differences(
        points=("gate_proj", "up_proj"),
        statistic="absolute" if method == "article" else "pooled",
        positions="all",
    )
    total = tables["gate_proj"] + tables["up_proj"]
    return total if method == "article" else total / 2


# ---- what causes the gap


@full_precision()
@halving(2)
def attribution_scores(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[PromptPair],
    *,
    relative: bool = False,
    toward: Tensor | None = None,
    batch_size: int = 32,
) -> Tensor:
    """Score every MLP neuron by how much the gap narrows if the neuron is removed, to first order.

    ::

        ∂gap/∂m at m = 1

    with m * h in place of h, the input of `down_proj`: one m a neuron, for all tokens of both
    prompts (`m · h + (1 − m) · toward` where that is given). The gap is that of
    `next_token_divergence`, averaged over pairs. One forward and one backward pass a batch score
    all neurons.

    Parameters
    ----------
    relative : bool
        Score the effect on the headline of `compare`: in each category the mean over pairs is
        divided by the mean gap of these pairs, then the mean over categories is taken. Without it
        the categories with the largest gaps weigh most; on validation pairs that is gender, by he
        and she.
    toward : Tensor, optional
        Shape (layers, neurons), such as `fairlab.gating.mean_activations`: score a move toward it
        in place of a removal.

    Returns
    -------
    Tensor
        Float32 on the CPU, shape (layers, neurons), in nats, or with `relative` as a share of the
        gap (0.01 is one per cent); higher = cut first. Positive: the removal narrows the gap;
        negative: it widens it; 0: no effect to first order.

    Raises
    ------
    ValueError
        No pairs, a pair that is not measurable (`check_pairs`), a category without any gap with
        `relative`, a model without GLU neurons, layers of unequal width, or gradients that are not
        finite.

    Notes
    -----
    Source: P. Molchanov et al. (2017, arXiv 1611.06440), the first-order effect of a removal.

    `data/results/attribution.csv`: on the default model, for each of eight categories, 40 neurons
    at even ranks of this score are ranked by it as by removing them one by one (Spearman's
    correlation 0.999 or 1.000). A slope is exact for small effects alone: of the 40 best neurons,
    37 to 40 do narrow the gap when they are removed, but in another order (0.39 to 0.87). For the
    few neurons that are to be cut, see `refine_scores`.
    """
    sums = partial(_attribution_sums, toward=toward)
    return _effect_on_gap(sums, model, tokenizer, pairs, relative, batch_size)


@full_precision()
@halving(2)
def decision_scores(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[PromptPair],
    *,
    outcomes: Mapping[str, Outcomes] | None = None,
    toward: Tensor | None = None,
    batch_size: int = 32,
) -> Tensor:
    """Score every MLP neuron by how much nearer to 0 its removal brings the decision gap.

    To first order::

        mean over categories of ∂ |mean decision gap| / ∂m at m = 1

    with m as in `attribution_scores`, and `decision_gap` averaged over the pairs of a category
    before the absolute value: a neuron gets credit for treating one group worse as a rule, not for
    what cancels between sentences.

    Parameters
    ----------
    outcomes : dict of str to Outcomes, optional
        As in `decision_gap`.
    toward : Tensor, optional
        As in `attribution_scores`.

    Returns
    -------
    Tensor
        Float32 on the CPU, shape (layers, neurons), in nats; higher = cut first. Positive: the
        removal brings the two groups nearer; 0: no effect to first order.

    Raises
    ------
    ValueError
        What `decision_gap` refuses, a model without GLU neurons, layers of unequal width, or
        gradients that are not finite.
    """
    glu_blocks(model)  # refuses a model without GLU neurons
    check_room_for_slopes(model)
    pairs = as_pairs(pairs)
    gaps = decision_gap(model, tokenizer, pairs, outcomes=outcomes, batch_size=batch_size)
    categories = [pair.category for pair in pairs]
    different = list(dict.fromkeys(categories))
    weights = torch.zeros(len(pairs))  # ± 1 / (pairs of the category · categories)
    for category in different:
        members = torch.tensor([other == category for other in categories])
        sign = gaps[members].mean().sign().float()
        weights[members] = sign / members.sum() / len(different)
    slopes = 0  # then (layers, neurons)
    options = {"slopes": True, "batch_size": batch_size}
    for batch in decision_batches(model, tokenizer, pairs, outcomes, **options):
        measure = partial(_weighted_decisions, model, batch, weights[batch.pairs])
        slopes = slopes + gate_slopes(model, measure, toward=toward)
    return _score_table(slopes, "activations or gradients")


def _weighted_decisions(model: PreTrainedModel, batch: DecisionBatch, weights: Tensor) -> Tensor:
    gaps = decisions(model, batch)  # (pairs,)
    return (gaps * weights.to(gaps)).sum()


@full_precision()
@halving(2)
def patching_scores(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[PromptPair],
    *,
    relative: bool = False,
    batch_size: int = 32,
) -> Tensor:
    """Score every MLP neuron by how much the gap narrows if it is set to the pair's mean.

    To first order, with each of its activations replaced by the mean of the pair at that token::

        Σ_t over both prompts (h - (h^a + h^b) / 2) · ∂gap/∂h

    with h the input of `down_proj`. The gap, its cost, and all parameters, units and errors are
    those of `attribution_scores`; but both prompts of a pair need the same number of tokens.

    Notes
    -----
    Source: N. Nanda, "Attribution Patching" (2023).
    """
    pairs = as_pairs(pairs)
    for pair in pairs:
        encode_pair(tokenizer, pair)  # refuses one of unequal length, whose gap could be measured
    return _effect_on_gap(_patching_sums, model, tokenizer, pairs, relative, batch_size)


def _effect_on_gap(
    sums_of: Callable[..., tuple[Tensor, Tensor]],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[PromptPair],
    relative: bool,
    batch_size: int,
) -> Tensor:
    """Return the effect on the mean gap in nats, or as the mean share of the gap of a category."""
    glu_blocks(model)  # refuses a model without GLU neurons
    check_room_for_slopes(model)
    groups = defaultdict(list)  # the categories, or all pairs as one
    for pair in as_pairs(pairs):
        groups[pair.category if relative else ""].append(pair)
    sums = {}
    mine = share([(group, pair) for group, members in groups.items() for pair in members])
    for group in dict.fromkeys(group for group, _ in mine):
        members = [pair for of_group, pair in mine if of_group == group]
        slopes, gap = sums_of(model, tokenizer, members, batch_size)
        sums |= {("slopes", group): slopes, ("gap", group): gap}
    sums = summed(sums)
    effects = []
    for group, members in groups.items():
        slopes, gap = sums["slopes", group], sums["gap", group] / len(members)
        effect = _score_table(slopes / len(members), "activations or gradients")
        if relative and not gap:
            raise ValueError(
                f"relative: the pairs of category {group!r} have a gap of 0, which has no share"
            )
        effects.append(effect / gap.float() if relative else effect)
    return torch.stack(effects).mean(0)


def _attribution_sums(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: list[PromptPair],
    batch_size: int,
    toward: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Return the slopes of the sum of gaps, and that sum itself, which the same passes give."""
    slopes, gaps = 0, []  # then (layers, neurons), and a sum for each batch
    options = {"aligned": False, "slopes": True, "batch_size": batch_size}
    for batch in pair_batches(model, tokenizer, pairs, **options):
        measure = partial(_sum_of_gaps, model, batch, gaps)
        slopes = slopes + gate_slopes(model, measure, toward=toward)
    return slopes, torch.stack(gaps).sum()


def _patching_sums(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: list[PromptPair],
    batch_size: int,
) -> tuple[Tensor, Tensor]:
    """Return what `_attribution_sums` returns, with patches in place of gates."""
    slopes, gaps = 0, []  # then (layers, neurons), and a sum for each batch
    batches = pair_batches(model, tokenizer, pairs, slopes=True, batch_size=batch_size)
    for batch in _without_shared_rows(batches, batch_size // 2):
        measure = partial(_sum_of_gaps, model, batch, gaps)
        slopes = slopes + gate_slopes(model, measure, toward=_mean_of_both_prompts)
    return slopes, torch.stack(gaps).sum()


def _sum_of_gaps(model: PreTrainedModel, batch: PairBatch, seen: list[Tensor]) -> Tensor:
    """Return the sum of the gaps of a batch, and keep its value in `seen`."""
    total = divergence(next_log_p(model, batch), batch).sum()
    seen.append(total.detach().cpu())
    return total


def _mean_of_both_prompts(layer: int, h: Tensor) -> Tensor:
    """Return for each row the mean of its pair; the rows are all prompts a, then all prompts b."""
    precise = torch.promote_types(h.dtype, torch.float32)
    a, b = h.detach().to(precise).chunk(2)  # (pairs, tokens, neurons) each
    return ((a + b) / 2).repeat(2, 1, 1)


def _without_shared_rows(batches: Iterable[PairBatch], count: int) -> Iterator[PairBatch]:
    """Split batches into ones of at most `count` pairs, in which every pair has two rows of its
    own: the gradient at a row that two pairs share belongs to neither."""
    for batch in batches:
        for members in torch.arange(len(batch.pairs)).split(count):
            rows = torch.cat([batch.rows_a[members], batch.rows_b[members]])
            numbers = torch.arange(len(members))
            yield replace(
                batch,
                input_ids=batch.input_ids[rows],
                attention_mask=batch.attention_mask[rows],
                last=batch.last[rows],
                pairs=batch.pairs[members],
                pairs_on_device=batch.pairs_on_device[members],
                rows_a=numbers,
                rows_b=numbers + len(members),
                weights=batch.weights[members],
            )


def _score_table(table: Tensor, source: str) -> Tensor:
    """Return a table (layers, neurons) in float32; refuse values that are not finite."""
    table = table.float()
    if not torch.isfinite(table).all():
        raise ValueError(f"model: its {source} are not finite (NaN or infinity)")
    return table


# ---- what the model needs


def importance_scores(
    model: PreTrainedModel,
    *,
    method: Literal["maw", "maw_printed", "vow", "pon", "l2", "fisher"] = "maw",
    tokenizer: PreTrainedTokenizerBase | None = None,
    text: str | None = None,
) -> Tensor:
    """Score every MLP neuron by the size of its weights, or by what the loss on a text owes to it.

    Parameters
    ----------
    method : str
        "maw", "maw_printed", "vow", "pon" and "l2" are the formulas of `weight_scores`; "fisher" is
        `fisher_scores`.
    tokenizer, text : PreTrainedTokenizerBase, str
        Needed by "fisher", not used by the others.

    Returns
    -------
    Tensor
        Float32 on the CPU, shape (layers, neurons), 0 or more; higher = the model is assumed to
        need it more. The functions above say in which units, and what 0 means.

    Raises
    ------
    ValueError
        An unknown method, tokenizer or text missing, or what the functions above refuse.
    """
    check_option("method", method, (*WEIGHT_METHODS, "fisher"))
    if method in WEIGHT_METHODS:
        return weight_scores(model, method=method)
    needed = {"tokenizer": tokenizer, "text": text}
    missing = " and ".join(name for name, value in needed.items() if value is None)
    if missing:
        raise ValueError(
            f"{missing}: method='fisher' needs a tokenizer and a text, such as "
            'fairlab.load_text("calibration"); got None'
        )
    return fisher_scores(model, tokenizer, text)


def weight_scores(
    model: PreTrainedModel, *, method: Literal["maw", "maw_printed", "vow", "pon", "l2"] = "maw"
) -> Tensor:
    """Score every MLP neuron by the size of its gate row g and its up row u.

    ::

        maw          (max_j g_j + |min_j g_j|) + (max_j u_j + |min_j u_j|)
        maw_printed  max_j |g_j| + max_j |u_j|
        vow          var(g) + var(u)
        pon          ‖g‖₁ · ‖u‖₁
        l2           ‖g‖₂ + ‖u‖₂

    "maw" is the Maximum Absolute Weight as the article's code has it, "maw_printed" as its text has
    it: another score. "vow" is the Variance Of Weights (unbiased), "pon" the Product Of Norms.

    Returns
    -------
    Tensor
        Float32 on the CPU, shape (layers, neurons), in units of weight ("vow" and "pon": squared),
        0 or more; higher = the model is assumed to need it more. 0: all weights 0 ("vow": those
        of a row all equal; "pon": those of one row 0).

    Raises
    ------
    ValueError
        An unknown method, a model without GLU neurons, layers of unequal width, or weights that are
        not finite.

    Notes
    -----
    Sources: P. Martra, "Fairness Pruning" (2025) for "maw" and "maw_printed"; optipfair 0.4.2 for
    the other three.
    """
    check_option("method", method, WEIGHT_METHODS)
    table_shape(model)  # refuses layers of unequal width
    rows = []
    for mlp in glu_blocks(model):
        with weights_at_hand(mlp):
            gate_weight, up_weight, _ = glu_weights(mlp)
            gate = _row_sizes(gate_weight.float(), method)  # (neurons,)
            up = _row_sizes(up_weight.float(), method)
        rows.append(gate * up if method == "pon" else gate + up)
    # side by side on one device first: a GPU is waited for once, and not layer by layer
    table = torch.stack([row.to(rows[0].device) for row in rows]).cpu()  # (layers, neurons)
    return _score_table(table, "gate_proj or up_proj weights")


def _row_sizes(weight: Tensor, method: str) -> Tensor:
    """Return one number a row of a weight matrix, the formulas of `weight_scores`."""
    if method in ("maw", "maw_printed"):
        # torch.aminmax along a row takes six times as long as these two
        low, high = weight.amin(1).abs(), weight.amax(1)
        return high + low if method == "maw" else torch.maximum(high, low)
    if method == "vow":
        return weight.var(1)
    if method == "pon":
        return weight.abs().sum(1)
    return weight.norm(dim=1)


@full_precision()
def fisher_scores(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    *,
    toward: Tensor | None = None,
) -> Tensor:
    """Score every MLP neuron by how sensitive the loss on a text is to it.

    ::

        sqrt(mean over chunks of (∂loss/∂m)²) at m = 1

    with m * h in place of h, the input of `down_proj`: one m a neuron, for all tokens. `loss` is
    the mean next-token cross-entropy of a chunk.

    Parameters
    ----------
    text : str
        Plain prose that measures nothing else, such as `fairlab.load_text("calibration")`. It is
        tokenised as a whole and cut into chunks of 256 tokens, or fewer where the model reads fewer
        (BOS stands before each, where the tokenizer adds one), which run one at a time. A remainder
        shorter than a chunk is dropped; a text shorter than a chunk is one chunk.
    toward : Tensor, optional
        As in `attribution_scores`.

    Returns
    -------
    Tensor
        Float32 on the CPU, shape (layers, neurons), in nats, 0 or more; higher = the model is
        assumed to need it more. 0: no effect on the loss to first order.

    Raises
    ------
    ValueError
        A text of fewer than two tokens, a model without GLU neurons, layers of unequal width, or
        gradients that are not finite.

    Notes
    -----
    Source: P. Molchanov et al. (2019, arXiv 1906.10771).
    """
    glu_blocks(model)  # refuses a model without GLU neurons
    chunks = text_chunks(model, tokenizer, text, slopes=True)
    sums = {}  # then (layers, neurons); of a short text a process may have no chunk
    for chunk in progress(share(chunks), desc="calibration text", unit="chunk"):
        slopes = gate_slopes(model, partial(chunk_loss, model, chunk), toward=toward)
        squares = _score_table(slopes, "activations or gradients") ** 2
        sums["squares"] = sums.get("squares", 0) + squares
    return (summed(sums)["squares"] / len(chunks)).sqrt()


# ---- both in one number


def hybrid_scores(bias: Tensor, importance: Tensor, *, bias_weight: float = 0.5) -> Tensor:
    """Combine a bias and an importance score as the article does: react much, matter little.

    `w · N(bias) + (1 − w) · (1 − N(importance))`, `N(x) = (x − min) / (max − min + 1e-8)` within
    each layer.

    Parameters
    ----------
    bias, importance : Tensor
        Shape (layers, neurons).
    bias_weight : float
        The w above, from 0 (importance alone) to 1 (bias alone). The article takes 0.5, optipfair
        0.8.

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
    check_finite_tables({"bias": bias, "importance": importance})
    bias_weight = check_weight("bias_weight", bias_weight)
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
    is a weight against neurons on which much hangs, not a forecast of what their removal costs.

    The defaults were chosen on fairlab's validation pairs and the default model, for scores with
    `relative=True`. There 90 neurons narrow the gap by 38.0 %, and that of neutral pairs by 21.9 %,
    at 0.6 % of perplexity (`data/results/guard.csv`, which has 26 other settings). In that table
    more charge, or more protection, moves neutral pairs less, and narrows the gap less. More
    protection costs less perplexity, and so, on average, does a lower floor.

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
        (`bias ≤ charge · |neutral|`).

    Raises
    ------
    ValueError
        Unequal shapes, values that are not finite, an option out of range, or importance that is
        negative somewhere or 0 everywhere.
    """
    tables = {"bias": bias, "importance": importance}
    if neutral is not None:
        tables["neutral"] = neutral
    check_finite_tables(tables)
    charge = check_positive("charge", charge, or_zero=True)
    floor = check_positive("floor", floor)
    if not is_number(protect) or not 0 <= protect < 1:
        raise ValueError(f"protect: expected a number from 0 to below 1; got {protect!r}")
    if (importance < 0).any():  # its square would hide the sign
        raise ValueError(f"importance: expected values of 0 or more; got {importance.min():g}")
    damage = importance.double() ** 2  # (layers, neurons)
    if not damage.any():
        raise ValueError("importance: expected values that are not all 0")
    gain = bias if neutral is None else bias - charge * neutral.abs()
    scores = (gain / (damage + floor * damage.mean())).float()
    # neurons that must stay: those without a gain, and the most important ones
    scores[gain <= 0] = -math.inf
    protected = damage.flatten().topk(int(protect * damage.numel())).indices
    scores.view(-1)[protected] = -math.inf
    return scores


def check_tables(tables: Mapping[str, Tensor]) -> None:
    """Refuse, by name, what are no tables (layers, neurons) of one shape."""
    for argument, table in tables.items():
        check_kind(argument, table, Tensor, "a tensor of shape (layers, neurons)")
    shapes = [tuple(table.shape) for table in tables.values()]
    if len(shapes[0]) != 2 or 0 in shapes[0] or len(set(shapes)) > 1:
        expected = "the shape" if len(shapes) == 1 else "tables of one shape"
        raise ValueError(
            f"{', '.join(tables)}: expected {expected} (layers, neurons); "
            f"got {' and '.join(map(str, shapes))}"
        )


def check_finite_tables(tables: Mapping[str, Tensor]) -> None:
    """Refuse what `check_tables` refuses, and values that are not finite."""
    check_tables(tables)
    for argument, table in tables.items():
        if not torch.isfinite(table).all():
            raise ValueError(f"{argument}: expected finite values; got NaN or infinity")


def _min_max(table: Tensor) -> Tensor:
    """Scale each layer to the range from 0 to 1."""
    table = table.to(torch.promote_types(table.dtype, torch.float32))  # float16 rounds 1e-8 to 0
    low, high = table.amin(1, keepdim=True), table.amax(1, keepdim=True)
    return (table - low) / (high - low + 1e-8)
