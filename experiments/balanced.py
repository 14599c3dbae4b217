"""Gates that are balanced against neutral pairs, and learned ones: what `tries.py`,
`gates_search.py` and `models.py` share. No script by itself.

Contents: `kept_tables`; `learned_gates`, `Sampler`.
"""

import random
from collections.abc import Sequence
from dataclasses import astuple, dataclass

import frozen
import torch
from torch import Tensor

import fairlab as fl
from fairlab.gating import GateTables, gate_tables
from fairlab.passes import (
    PairBatch,
    chunk_loss,
    divergence,
    next_log_p,
    pair_batches,
    progress,
    text_chunks,
)


def kept_tables(model, tokenizer, pairs, neutral, name: str) -> GateTables:
    """Return what `solve_gates` needs, kept by name in `build/tradeoff/`."""

    def compute() -> tuple[Tensor, ...]:
        return astuple(gate_tables(model, tokenizer, pairs, neutral))

    return GateTables(*frozen.kept(frozen.BUILD / "tradeoff" / f"gates-{name}.pt", compute))


@dataclass(frozen=True)
class Sampler:
    """Groups of pairs, with their gaps in the unchanged model."""

    groups: dict[str, list[fl.PromptPair]]
    gaps: dict[str, Tensor]
    size: int  # pairs that are drawn of each group

    def change(self, model, tokenizer, draw: random.Random) -> Tensor:
        """Draw pairs and return the mean relative change of their gaps, with gradients."""
        pairs, before, weights = [], [], []
        for name, group in self.groups.items():
            for index in draw.sample(range(len(group)), self.size):
                pairs.append(group[index])
                before.append(self.gaps[name][index])
                weights.append(1 / self.gaps[name].mean())
        before = torch.stack(before).float()
        weights = torch.stack(weights).float() / len(pairs)
        after = 0
        for batch in pair_batches(model, tokenizer, pairs):
            after = after + weighted_gap(model, batch, weights)
        return after - (before @ weights).to(model.device)


def weighted_gap(model, batch: PairBatch, weights: Tensor) -> Tensor:
    """Return the weighted sum of a batch's gaps, with gradients if these are enabled.

    `weights` has one number for each pair of all batches.
    """
    gaps = divergence(next_log_p(model, batch), batch)  # (pairs,)
    return (gaps * weights[batch.pairs].to(gaps.device)).sum()


def samplers(model, tokenizer) -> tuple[Sampler, Sampler]:
    """Return what demographic and what neutral training pairs are drawn from."""
    by_category = {}
    for pair in sorted(frozen.train_pairs(), key=lambda pair: pair.category):
        by_category.setdefault(pair.category, []).append(pair)
    neutral = {"neutral": frozen.train_pairs("neutral")}
    both = []
    for groups, size in ((by_category, 3), (neutral, 16)):
        gaps = {}
        for name, group in groups.items():
            gaps[name] = fl.next_token_divergence(model, tokenizer, group)
        both.append(Sampler(groups, gaps, size))
    return both[0], both[1]


def learned_gates(model, tokenizer, start: Tensor, toward: Tensor, steps: int = 60) -> Tensor:
    """Train the gates that are not 1 by Adam: down with the headline, while neutral pairs and the
    loss stay."""
    draw = random.Random(frozen.SEED)
    demographic, neutral = samplers(model, tokenizer)
    chunks = text_chunks(tokenizer, fl.load_text("calibration"))
    with torch.no_grad():
        losses = [chunk_loss(model, chunk).item() for chunk in chunks]
    places = (start != 1).nonzero(as_tuple=True)
    values = start[places].clone().requires_grad_()
    adam = torch.optim.Adam([values], lr=0.02)
    for step in progress(range(steps), desc="learning", unit="step"):
        adam.zero_grad()
        gates = torch.ones_like(start).index_put(places, values)
        number = step % len(chunks)
        with fl.gate(model, gates, toward):
            headline = demographic.change(model, tokenizer, draw)
            neutral_change = neutral.change(model, tokenizer, draw)
            loss_change = chunk_loss(model, chunks[number]) - losses[number]
            (headline + neutral_change.abs() + 5 * loss_change.abs()).backward()
        adam.step()
    return torch.ones_like(start).index_put(places, values.detach())


def categories_of(pairs: Sequence[fl.PromptPair]) -> list[str]:
    """Return the different categories of pairs, in order."""
    return list(dict.fromkeys(pair.category for pair in pairs))
