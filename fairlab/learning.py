"""Gates by gradient descent: what a repair can reach when the slopes may follow the bend.

Contents: `learned_gates`.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fairlab.behavior import next_token_divergence
from fairlab.files import load_text
from fairlab.gates import frozen, gate
from fairlab.gating import NeuronGates
from fairlab.models import check_room_for_slopes
from fairlab.pairs import PromptPair
from fairlab.passes import (
    PairBatch,
    check_material,
    check_whole,
    chunk_loss,
    divergence,
    next_log_p,
    pair_batches,
    progress,
    text_chunks,
)
from fairlab.precision import full_precision
from fairlab.surgery import matching_blocks

LEARNING_RATE = 0.02
LOSS_WEIGHT = 5.0  # how much a nat of loss counts against a whole gap
PAIRS_A_CATEGORY = 3
NEUTRAL_PAIRS = 16
SEED = 0  # of the draws


@full_precision()
def learned_gates(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[PromptPair],
    neutral: Sequence[PromptPair],
    start: NeuronGates,
    *,
    text: str | None = None,
    steps: int = 60,
) -> NeuronGates:
    """Turn the neurons of given gates farther, or back, by gradient descent on training pairs.

    Each step draws 3 pairs of every category and 16 neutral ones, takes the next chunk of plain
    text, and moves the gates by Adam (step size 0.02) down the slope of ::

        change of the gap + |change of the neutral gap| + 5 · |change of the loss|

    The first two are relative to the gaps of the unchanged model, the loss is in nats. Which
    neurons are turned, and toward what, stays as in `start`: only the gates move. `balanced_gates`
    trust slopes at the unchanged model; here the slope is taken anew at every step.

    Parameters
    ----------
    pairs, neutral : list of PromptPair
        Demographic pairs, and neutral pairs in the same templates. Judge the gates on others.
    start : NeuronGates
        Where to begin, such as `balanced_gates`.
    text : str, optional
        Plain prose that should stay as likely as it was, `load_text("calibration")` by default. It
        is read in chunks as in `fisher_scores`.
    steps : int
        How many steps, 0 or more: the experiments take 60, and a few are enough to see that your
        model and pairs can be trained at all.

    Returns
    -------
    NeuronGates
        The same neurons with other gates, of any size and sign.

    Raises
    ------
    ValueError
        Gates for a model of another shape, fewer pairs than a step draws, a category without any
        gap, a negative number of steps, or what `next_token_divergence` refuses.
    """
    matching_blocks(model, start, NeuronGates, "start")
    check_room_for_slopes(model)
    steps = check_whole("steps", steps, 0)
    pairs, neutral = check_material(tokenizer, pairs, neutral, text)
    by_category: dict[str, list[PromptPair]] = {}
    for pair in sorted(pairs, key=lambda pair: pair.category):
        by_category.setdefault(pair.category, []).append(pair)
    together = {"neutral": neutral}
    _check_enough(by_category, PAIRS_A_CATEGORY, "pairs")
    _check_enough(together, NEUTRAL_PAIRS, "neutral")

    text = load_text("calibration") if text is None else text
    chunks = text_chunks(model, tokenizer, text, slopes=True)
    with torch.no_grad():
        losses = [chunk_loss(model, chunk).item() for chunk in chunks]
    demographic = _sampler(model, tokenizer, by_category, PAIRS_A_CATEGORY, "pairs")
    control = _sampler(model, tokenizer, together, NEUTRAL_PAIRS, "neutral")
    draw = random.Random(SEED)
    table, toward = start.tables()  # (layers, neurons) each
    table, toward = table.float(), toward.float()
    places = (table != 1).nonzero(as_tuple=True)
    values = table[places].clone().requires_grad_()  # (turned neurons,)
    adam = torch.optim.Adam([values], lr=LEARNING_RATE)
    for step in progress(range(steps), desc="learning", unit="step"):
        adam.zero_grad()
        gates = torch.ones_like(table).index_put(places, values)
        number = step % len(chunks)
        with frozen(model), torch.enable_grad(), gate(model, gates, toward):
            gap_change = demographic.change(model, tokenizer, draw)
            neutral_change = control.change(model, tokenizer, draw)
            loss_change = chunk_loss(model, chunks[number]) - losses[number]
            (gap_change + neutral_change.abs() + LOSS_WEIGHT * loss_change.abs()).backward()
        adam.step()
    learned = torch.ones_like(table).index_put(places, values.detach())
    return NeuronGates.from_tables(learned, toward, how=f"learned in {steps} steps: {start.how}")


@dataclass(frozen=True)
class _Sampler:
    """Groups of pairs, with their gaps in the unchanged model."""

    groups: dict[str, list[PromptPair]]
    gaps: dict[str, Tensor]
    size: int  # pairs that are drawn of each group

    def change(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, draw: random.Random
    ) -> Tensor:
        """Draw pairs; return by which share their gaps change, with gradients.

        The mean over groups of the relative change.
        """
        pairs, before, weights = [], [], []
        for name, group in self.groups.items():
            for index in draw.sample(range(len(group)), self.size):
                pairs.append(group[index])
                before.append(self.gaps[name][index])
                weights.append(1 / self.gaps[name].mean())
        before = torch.stack(before).float()  # (pairs,)
        weights = torch.stack(weights).float() / len(pairs)
        after = 0
        for batch in pair_batches(model, tokenizer, pairs, aligned=False, slopes=True):
            after = after + _weighted_gap(model, batch, weights)
        return after - (before @ weights).to(after.device)


def _weighted_gap(model: PreTrainedModel, batch: PairBatch, weights: Tensor) -> Tensor:
    """Return the weighted sum of a batch's gaps; `weights` has one for each pair of all batches."""
    gaps = divergence(next_log_p(model, batch), batch)  # (pairs,)
    return (gaps * weights[batch.pairs].to(gaps)).sum()


def _sampler(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    groups: dict[str, list[PromptPair]],
    size: int,
    argument: str,
) -> _Sampler:
    """Measure the gaps of the unchanged model; refuse a group without any."""
    gaps = {}
    for name, group in groups.items():
        gaps[name] = next_token_divergence(model, tokenizer, group)
        if not gaps[name].any():
            raise ValueError(
                f"{argument}: expected pairs with a gap, of which a change is a share; those of "
                f"{name!r} have a gap of 0"
            )
    return _Sampler(groups, gaps, size)


def _check_enough(groups: dict[str, list[PromptPair]], size: int, argument: str) -> None:
    for name, group in groups.items():
        if len(group) < size:
            raise ValueError(
                f"{argument}: expected at least {size} of each category; got {len(group)} of "
                f"{name!r}"
            )
