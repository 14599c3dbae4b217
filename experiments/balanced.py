"""Gates in closed form that are balanced against neutral pairs: what `tries.py` and
`gates_search.py` share. No script by itself.

A neuron's activation h becomes `gate * h + (1 - gate) * toward`, where `toward` is its mean over
plain text.

Contents: `mean_activations`, `slopes_around_mean`, `balanced_gates`.
"""

from collections.abc import Sequence
from functools import partial

import frozen
import pandas as pd
import torch
from scipy.optimize import brentq
from torch import Tensor

import fairlab as fl
from fairlab.gates import gate_slopes
from fairlab.passes import (
    PairBatch,
    chunk_loss,
    divergence,
    next_log_p,
    pair_batches,
    progress,
    text_chunks,
)

CACHE = frozen.BUILD / "tradeoff"


def mean_activations(model, tokenizer) -> Tensor:
    """Return the mean activation of every neuron over the calibration text, (layers, neurons)."""
    chunks = text_chunks(tokenizer, fl.load_text("calibration"))

    def compute() -> Tensor:
        total = 0
        for chunk in chunks:
            with fl.record(model, ["down_proj_input"]) as activations, torch.no_grad():
                model(input_ids=torch.tensor([chunk]), use_cache=False)
            total += torch.stack([h[0].mean(0) for _, h in sorted(activations.items())])
        return total / len(chunks)

    return frozen.kept(CACHE / "mean.pt", compute)


def slopes_around_mean(
    model, tokenizer, mean: Tensor, pairs, neutral, name: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the slope of the headline, Fisher's importance and the slope of the neutral gap, all
    of gates that lead toward the mean; kept by name.

    With 0 in place of the mean the first two are `bias_scores(method="attribution", relative=True)`
    and `importance_scores(method="fisher")`. The last one takes all neutral pairs together, as
    `compare` does.
    """

    def compute() -> tuple[Tensor, Tensor, Tensor]:
        categories = [pair.category for pair in pairs]
        one_category = ["neutral"] * len(neutral)
        return (
            gap_slope(model, tokenizer, pairs, categories, mean),
            fisher_importance(model, tokenizer, mean),
            gap_slope(model, tokenizer, neutral, one_category, mean),
        )

    return frozen.kept(CACHE / f"mean-{name}.pt", compute)


def gap_slope(model, tokenizer, pairs, categories: Sequence[str], toward: Tensor) -> Tensor:
    """Return the slope of the mean over categories of the gap's relative change."""
    gaps = pd.Series(fl.next_token_divergence(model, tokenizer, pairs).numpy())
    sums = gaps.groupby(categories).sum()
    shares = torch.tensor([1 / (sums[category] * len(sums)) for category in categories])
    total = torch.zeros_like(toward)
    for batch in pair_batches(model, tokenizer, pairs, batch_size=32):
        total += gate_slopes(model, partial(weighted_gap, model, batch, shares), toward=toward)
    return total


def weighted_gap(model, batch: PairBatch, weights: Tensor) -> Tensor:
    """Return the weighted sum of a batch's gaps, with gradients if these are enabled.

    `weights` has one number for each pair of all batches.
    """
    return (divergence(next_log_p(model, batch), batch) * weights[batch.pairs]).sum()


def fisher_importance(model, tokenizer, toward: Tensor) -> Tensor:
    """Return Fisher's importance of gates that lead toward the mean."""
    chunks = text_chunks(tokenizer, fl.load_text("calibration"))
    squares = torch.zeros_like(toward)
    for chunk in progress(chunks, desc="calibration text", unit="chunk"):
        squares += gate_slopes(model, partial(chunk_loss, model, chunk), toward=toward) ** 2
    return (squares / len(chunks)).sqrt()


def balanced_gates(
    gap: Tensor,
    importance: Tensor,
    neutral: Tensor,
    *,
    count: int,
    goal: float,
    charge: float,
    floor: float,
) -> Tensor:
    """Compute the cheapest gates of `count` neurons that promise, to first order, a headline lower
    by `goal`.

    With d = 1 - gate and the damage D = F² + floor · mean F², the sum of D d² is least for d = t
    (gap - charge · neutral) / D. Unlike in `guarded_scores` the neutral slope keeps its sign: what
    one neuron takes from neutral words another gives back. No d goes beyond 1, so a gate lies
    between 0, removed, and 2, doubled.

    Raises
    ------
    ValueError
        So many neurons can't reach the goal.
    """
    damage = importance.double() ** 2
    damage += floor * damage.mean()
    gain = gap.double() - charge * neutral.double()
    # what a neuron brings for its price decides which are turned
    worth = gain**2 / damage
    least = worth.flatten().topk(count).values[-1]
    direction = torch.where(worth >= least, gain / damage, 0)

    def surplus(t: float) -> float:
        """Return by how much the promise of d = t · direction lies above the goal."""
        return ((direction * t).clamp(-1, 1) * gap).sum().item() - goal

    largest = 1e3 / direction.abs().max().item()
    if surplus(largest) < 0:
        best = surplus(largest) + goal
        raise ValueError(f"goal: expected at most {best:.2f} of {count} neurons; got {goal}")
    t = brentq(surplus, 0, largest)
    return 1 - (direction * t).clamp(-1, 1).float()
