"""Ask whether gates on attention channels help, on validation pairs, and freeze the answer.

    python experiments/attention.py [gemma-3-270m]

What `o_proj` reads in a layer has one channel for each number of each head. Such a channel can be
scored and gated as an MLP neuron is: only the projection behind it is another. The balanced gates
of lesson 08 are solved anew for 0.2 % of the MLP neurons' number, with these candidates:

- the MLP neurons alone, as in the lesson;
- the attention channels alone;
- both together, so that the cheapest of all are taken.

Scored on training pairs and the extra sentences, read on validation pairs and the first part of the
evaluation text. Writes `data/results/attention.csv`; rows of the other model stay.
"""

import argparse
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import astuple
from functools import partial
from types import SimpleNamespace
from unittest import mock

import frozen
import pandas as pd
import torch
from frozen import keep_rows
from torch import Tensor, nn
from tqdm import tqdm

import fairlab as fl
from fairlab import gates as gates_room
from fairlab.gating import GateTables, mean_activations, solve_gates
from fairlab.passes import text_chunks
from fairlab.scores import attribution_scores, fisher_scores

FRACTION = 0.002
GOALS = (0.3, 0.5, 0.7, 0.9, 1.1)
CHARGES = (0.6, 0.9)


@contextmanager
def attention_in_place_of_mlp(model) -> Iterator[None]:
    """Let `gate` and all scores that are its slopes act on what `o_proj` reads."""
    blocks = []
    for layer in fl.decoder_layers(model):
        blocks.append(SimpleNamespace(down_proj=layer.self_attn.o_proj))
    widths = [block.down_proj.in_features for block in blocks]
    with (
        mock.patch.object(gates_room, "glu_blocks", lambda _: blocks),
        mock.patch.object(gates_room, "neuron_counts", lambda _: widths),
    ):
        yield


def attention_means(model, tokenizer, text: str) -> Tensor:
    """Return the mean of every attention channel over a text, shape (layers, channels)."""
    layers = fl.decoder_layers(model)
    sums = [0.0] * len(layers)

    def add(number: int, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        sums[number] = sums[number] + inputs[0][0].float().mean(0).cpu()  # (channels,)

    handles = []
    for number, layer in enumerate(layers):
        hook = partial(add, number)
        handles.append(layer.self_attn.o_proj.register_forward_pre_hook(hook))
    chunks = text_chunks(model, tokenizer, text)
    for chunk in chunks:
        with torch.no_grad():
            model(torch.tensor([chunk], device=model.device), use_cache=False)
    for handle in handles:
        handle.remove()
    return torch.stack(sums) / len(chunks)


def tables(model, tokenizer, mean: Tensor) -> GateTables:
    """Return what `solve_gates` needs, for whatever `gate` acts on."""
    pairs = frozen.train_pairs() + fl.load_pairs(split="extra")
    neutral = frozen.train_pairs("neutral") + fl.load_pairs(split="extra", kind="neutral")
    size = 32 if model.device.type == "cpu" else 128
    options = {"relative": True, "toward": mean, "batch_size": size}
    gap = attribution_scores(model, tokenizer, pairs, **options)
    side_effect = attribution_scores(model, tokenizer, neutral, **options)
    text = fl.load_text("calibration")
    return GateTables(gap, side_effect, fisher_scores(model, tokenizer, text, toward=mean), mean)


def joined(first: GateTables, second: GateTables) -> GateTables:
    """Put the neurons of two sets of tables side by side in each layer."""
    both = zip(astuple(first), astuple(second), strict=True)
    return GateTables(*(torch.cat(parts, dim=1) for parts in both))


@contextmanager
def gated(model, gates: Tensor, means: Tensor, width: int) -> Iterator[None]:
    """Apply gates: the first `width` columns are MLP neurons, the others attention channels."""
    with (
        fl.gate(model, gates[:, :width], means[:, :width]),
        attention_in_place_of_mlp(model),
        fl.gate(model, gates[:, width:], means[:, width:]),
    ):
        yield


def measure(model, tokenizer) -> pd.DataFrame:
    """Read every setting of the three sets of candidates."""
    text = fl.load_text("calibration")
    mlp = tables(model, tokenizer, mean_activations(model, tokenizer, text))
    means = attention_means(model, tokenizer, text)
    with attention_in_place_of_mlp(model):
        attention = tables(model, tokenizer, means)
    both = joined(mlp, attention)
    width = mlp.gap.shape[1]
    count = int(FRACTION * mlp.gap.numel())
    held_out = frozen.validation(tokenizer)
    before = frozen.quick_reading(model, tokenizer, held_out)

    rows = []
    candidates = {"MLP neurons": mlp, "attention channels": attention, "both": both}
    for name, table in candidates.items():
        for goal in tqdm(GOALS, desc=name, unit="goal"):
            for charge in CHARGES:
                setting = {"count": count, "goal": goal, "charge": charge}
                try:
                    gates = solve_gates(table, **setting)
                except ValueError as error:  # so many of them can't reach the goal
                    print(f"{name}: {error}")
                    continue
                if name == "attention channels":  # all MLP gates open
                    gates = torch.cat([torch.ones_like(mlp.gap), gates], dim=1)
                elif name == "MLP neurons":
                    gates = torch.cat([gates, torch.ones_like(attention.gap)], dim=1)
                with gated(model, gates, both.mean, width):
                    after = frozen.quick_reading(model, tokenizer, held_out)
                of_attention = (gates[:, width:] != 1).sum().item()
                row = {"candidates": name, **setting, "of_attention": of_attention}
                rows.append({**row, **frozen.quick_changes(held_out, before, after)})
    return pd.DataFrame(rows)


def main() -> None:
    """Measure one model, and keep the rows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", nargs="?", default=fl.DEFAULT_MODEL)
    name = parser.parse_args().name
    start = time.perf_counter()
    model, tokenizer = fl.load_model(name)
    rows = measure(model, tokenizer)
    seconds = round(time.perf_counter() - start)
    keep_rows(model, name, rows, "attention.csv", seconds=seconds)
    print(rows.to_string())


if __name__ == "__main__":
    main()
