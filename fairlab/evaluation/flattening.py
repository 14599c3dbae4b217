"""What a mere flattening of all predictions does, at the price of a cut.

Contents: `losses_at_scales`, `flattened_gaps`, `lowest_scale`.

Multiplying all logits by a factor below 1 can narrow a gap without any surgery. A cut that brings
less than the flattening of the same price is no achievement.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.interpolate import CubicSpline
from scipy.optimize import brentq, minimize_scalar
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fairlab.capture import run_pairs
from fairlab.pairs import PromptPair
from fairlab.passes import (
    WINDOW,
    PairBatch,
    divergence,
    halving,
    log_probabilities,
    losses_by_scale,
)

SCALES = np.linspace(1, 0, 21)  # factors on the logits; at 0 every token is as likely as any other


@dataclass(frozen=True)
class Flattening:
    """The gaps of the demographic pairs before and after all logits are multiplied by a factor."""

    scale: float
    before: NDArray  # (pairs,) in nats
    after: NDArray  # (pairs,)


def losses_at_scales(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str
) -> Tensor:
    """Compute the losses of a text's tokens with all logits multiplied by each of `SCALES`.

    Shape (tokens, scales), in nats. The first column, at the factor 1, is what `token_losses`
    returns.
    """
    return losses_by_scale(model, tokenizer, text, window=WINDOW, scales=tuple(SCALES))


@halving(2)
def flattened_gaps(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[PromptPair],
    losses: Tensor,
    prices: Sequence[float],
    batch_size: int,
) -> list[Flattening]:
    """Find the flattening that costs no more than each price, and measure the gaps under it.

    A price is a rise of the mean loss, in nats; `losses` are those of `losses_at_scales`.
    """
    of_scales = losses.mean(0)  # (scales,)
    scales = [lowest_scale(SCALES, of_scales, price) for price in prices]
    gaps = np.zeros((1 + len(scales), len(pairs)))

    def see_next(batch: PairBatch, log_p: Tensor) -> None:
        for number, scale in enumerate([1.0, *scales]):
            flat = log_probabilities(log_p * scale)  # (prompts, vocabulary)
            gaps[number, batch.pairs] = divergence(flat, batch).cpu()

    run_pairs(model, tokenizer, pairs, see_next=see_next, aligned=False, batch_size=batch_size)
    return [
        Flattening(scale, gaps[0], after) for scale, after in zip(scales, gaps[1:], strict=True)
    ]


def lowest_scale(scales: ArrayLike, losses: ArrayLike, price: float) -> float:
    """Find the lowest factor on the logits that does not cost more than a price.

    The loss is a convex curve of the factor, whose minimum need not be at 1: an over-confident
    model gets better by a mild flattening. A price below 0 counts as 0. The curve is a cubic spline
    through the given points.
    """
    order = np.argsort(scales)
    curve = CubicSpline(np.asarray(scales)[order], np.asarray(losses, float)[order])
    allowed = float(curve(1.0)) + max(price, 0.0)
    if curve(0.0) <= allowed:  # even a model that guesses evenly costs no more
        return 0.0
    minimum = minimize_scalar(curve, bounds=(0, 1), method="bounded").x
    if curve(minimum) >= allowed:  # the minimum is at 1 itself: a price of 0 buys nothing
        return 1.0

    def excess(scale: float) -> float:
        return float(curve(scale)) - allowed

    return brentq(excess, 0, minimum)
