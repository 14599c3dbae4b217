"""Try what else than removing neurons could narrow the gap, on validation pairs; then read what was
chosen, held out.

    python experiments/tries.py

A neuron's activation h becomes `gate * h + (1 - gate) * toward`. A removal is a gate of 0 toward 0.
Tried beside the guarded removal: half of it; the neuron's mean over plain text in place of 0;
neurons from the whole model, not so many a layer; gates in closed form that are balanced against
neutral pairs; and learned ones, as an upper bound. All are scored on pairs whose template and words
are both in the train split, and read on the validation pairs, each beside random draws of as many
neurons in each layer with the same gates: 20 for removals and balanced gates, 10 for the others.

About seventy settings of the balanced gates were read on the same validation pairs. Chosen for 92
neurons was the one that narrows most for at most one per cent of perplexity, with neutral pairs
inside the range of random removals; for 276 neurons and two per cent the cheaper of the two best,
which lay a point apart. They alone are read on the held-out pairs, scored again on train and
validation pairs together; the smaller ones also as they were. The price that chose was read on the
first part of the evaluation text; the held-out rows have theirs from the second, which chose
nothing.

Writes `data/results/tries.csv`, and the gates of the smaller size to
`data/results/gates_balanced.csv`. Takes about an hour and a half on 2 CPU cores; a run that was
stopped goes on from `build/tries/` and `build/tradeoff/`; delete these to start anew.
"""

import os
import random
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from controls import ROOT, SEED, evaluation_text, write
from scipy.optimize import brentq
from tradeoff import scored

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
    token_losses,
)
from fairlab.statistics import jackknife_interval

CACHE = ROOT / "build" / "tries"
SETTINGS = (  # of the balanced gates
    {"count": 92, "goal": 1.1, "charge": 0.7, "floor": 3.0},
    {"count": 92, "goal": 1.1, "charge": 0.78, "floor": 3.0},
    {"count": 276, "goal": 2.1, "charge": 0.78, "floor": 2.0},
)
CHOSEN = SETTINGS[1:]


def train_pairs(**options) -> list[fl.PromptPair]:
    """Return the pairs that may choose neurons."""
    return fl.load_pairs(split="train", **options)


def all_but_held_out(**options) -> list[fl.PromptPair]:
    """Return the pairs that may choose neurons once the method is chosen."""
    return train_pairs(**options) + fl.load_pairs(split="validation", **options)


def pairs_to_read(read_on: str) -> dict[str, list[fl.PromptPair]]:
    """Return the people's and the neutral pairs that a reading takes.

    "held_out_all_neutral" has the neutral pairs of the held-out templates with any words, which are
    more.
    """
    split = "validation" if read_on == "validation" else "held_out"
    words = "any" if read_on == "held_out_all_neutral" else "split"
    neutral = fl.load_pairs(split=split, kind="neutral", words=words)
    return {"pairs": fl.load_pairs(split=split), "neutral": neutral}


def deal(
    model,
    cut: fl.NeuronSelection,
    *,
    own: fl.NeuronSelection,
    gates: torch.Tensor,
    toward: torch.Tensor,
):
    """Apply the gates of `own` to the neurons of a cut with as many in each layer, in order: an
    `ablation`."""
    dealt = torch.ones_like(gates)
    for layer, indices in cut.neurons.items():
        dealt[layer, list(indices)] = gates[layer, list(own.neurons[layer])]
    return fl.gate(model, dealt, toward)


def headline(model, batch: PairBatch, counts: torch.Tensor) -> torch.Tensor:
    """Compute the part of the headline that the pairs of a batch make up, with gradients if these
    are enabled."""
    return (divergence(next_log_p(model, batch), batch) * counts[batch.pairs]).sum()


def tables(
    model, tokenizer, chunks, toward: torch.Tensor, pairs, neutral
) -> tuple[torch.Tensor, ...]:
    """Compute the slope of the headline, Fisher's importance and the slope of the neutral gap, all
    around `toward`.

    Around 0 the first two are `bias_scores(method="attribution", relative=True)` and
    `importance_scores(method="fisher")`; the last one takes all neutral pairs together, as
    `compare` does.
    """
    slopes = []
    for some, categories in (
        (pairs, [pair.category for pair in pairs]),
        (neutral, ["neutral"] * len(neutral)),
    ):
        gaps = fl.next_token_divergence(model, tokenizer, some)
        sums = pd.Series(gaps.numpy()).groupby(categories).sum()
        counts = torch.tensor([1 / (sums[category] * len(sums)) for category in categories])
        total = torch.zeros_like(toward)
        for batch in pair_batches(model, tokenizer, some, batch_size=32):
            total += gate_slopes(model, partial(headline, model, batch, counts), toward=toward)
        slopes.append(total)
    squares = torch.zeros_like(toward)
    for chunk in progress(chunks, desc="calibration text", unit="chunk"):
        squares += gate_slopes(model, partial(chunk_loss, model, chunk), toward=toward) ** 2
    return slopes[0], (squares / len(chunks)).sqrt(), slopes[1]


def means(model, chunks: list[list[int]]) -> torch.Tensor:
    """Compute the mean activation of every neuron over the chunks, shape (layers, neurons)."""
    total = 0
    for chunk in chunks:
        with fl.record(model, ["down_proj_input"]) as activations, torch.no_grad():
            model(input_ids=torch.tensor([chunk]), use_cache=False)
        total += torch.stack([h[0].mean(0) for _, h in sorted(activations.items())])
    return total / len(chunks)


def balanced(
    gap, importance, neutral, *, count: int, goal: float, charge: float, floor: float
) -> torch.Tensor:
    """Compute the cheapest gates of `count` neurons that promise, to first order, a headline lower
    by `goal`.

    With d = 1 - gate and the damage D = F² + floor · mean F², sum D d² is least for d = t (gap -
    charge · neutral) / D. Unlike in `guarded_scores` the neutral slope keeps its sign: what one
    neuron takes from neutral words another gives back. No d goes beyond 1, so a gate lies between
    0, removed, and 2, doubled.
    """
    damage = importance.double() ** 2
    damage += floor * damage.mean()
    gain = gap.double() - charge * neutral.double()
    least = (gain**2 / damage).flatten().topk(count).values[-1]
    d = torch.where(gain**2 / damage >= least, gain / damage, 0)
    t = brentq(
        lambda t: ((d * t).clamp(-1, 1) * gap).sum().item() - goal, 0, 1e3 / d.abs().max().item()
    )
    return 1 - (d * t).clamp(-1, 1).float()


def learned(
    model,
    tokenizer,
    gates: torch.Tensor,
    toward: torch.Tensor,
    chunks: list[list[int]],
    *,
    steps: int,
) -> torch.Tensor:
    """Train the gates that are not 1 by Adam: down with the headline, while neutral pairs and the
    loss stay."""
    draw, chosen = random.Random(SEED), (gates != 1).nonzero(as_tuple=True)
    with torch.no_grad():
        losses = [chunk_loss(model, chunk).item() for chunk in chunks]
    looks = []
    demographic, neutral = train_pairs(), train_pairs(kind="neutral")
    by_category = pd.Series(demographic).groupby([pair.category for pair in demographic]).agg(list)
    for groups, each in ((by_category, 3), ({"neutral": neutral}, 16)):
        gaps = {c: fl.next_token_divergence(model, tokenizer, group) for c, group in groups.items()}
        looks.append((groups, gaps, each))
    values = gates[chosen].clone().requires_grad_()
    adam = torch.optim.Adam([values], lr=0.02)
    for number in progress(range(steps), desc="learning", unit="step"):
        adam.zero_grad()
        with fl.gate(model, torch.ones_like(gates).index_put(chosen, values), toward):
            changes = []
            for groups, gaps, each in looks:
                places = [
                    (c, i)
                    for c, group in groups.items()
                    for i in draw.sample(range(len(group)), each)
                ]
                before = torch.stack([gaps[c][i] for c, i in places]).float()
                counts = torch.stack([1 / gaps[c].mean() for c, _ in places]).float() / len(places)
                drawn = [groups[c][i] for c, i in places]
                parts = [
                    headline(model, batch, counts)
                    for batch in pair_batches(model, tokenizer, drawn)
                ]
                changes.append(sum(parts) - before @ counts)
            text = chunk_loss(model, chunks[number % len(chunks)]) - losses[number % len(chunks)]
            (changes[0] + changes[1].abs() + 5 * text.abs()).backward()
        adam.step()
    return torch.ones_like(gates).index_put(chosen, values.detach())


def balanced_name(setting: dict[str, float], note: str = "") -> str:
    """Return "method · number of neurons"."""
    return f"balanced, charge {setting['charge']}{note} · {setting['count']}"


def attempts(
    model, tokenizer, chunks, mean, around_mean
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Return gates and what they lead toward, by name, "method · number of neurons"."""
    guarded = fl.NeuronSelection.from_json(
        fl.data_path("results/selection_guarded.json").read_text(encoding="utf-8")
    )
    gap, importance, neutral = around_mean
    own = fl.guarded_scores(gap, importance, neutral=neutral)
    whole = fl.select_neurons(own, count=92, scope="model")
    tries = {}
    for name, selection, gate, toward in (
        ("removal", guarded, 0, torch.zeros_like(mean)),
        ("half a removal", guarded, 0.5, torch.zeros_like(mean)),
        ("mean", fl.select_neurons(own, count=3), 0, mean),
        ("mean, whole model", whole, 0, mean),
    ):
        gates = torch.ones_like(mean)
        for layer, indices in selection.neurons.items():
            gates[layer, list(indices)] = gate
        tries[f"{name} · {len(selection)}"] = gates, toward
    for setting in SETTINGS:
        tries[balanced_name(setting)] = balanced(*around_mean, **setting), mean
    start = tries[balanced_name(CHOSEN[0])][0]
    gates = scored("learned", lambda: learned(model, tokenizer, start, mean, chunks, steps=60))
    return tries | {"learned · 92": (gates, mean)}


def read(
    model, tokenizer, name: str, gates: torch.Tensor, toward: torch.Tensor, read_on: str
) -> pd.DataFrame:
    """Compare the gates, and random draws of neurons with the same gates, on some pairs."""
    path = CACHE / f"{read_on}, {name}.pkl"
    if not path.is_file():
        CACHE.mkdir(parents=True, exist_ok=True)
        own = fl.NeuronSelection(
            {n: row.nonzero().flatten().tolist() for n, row in enumerate(gates != 1)}, gates.shape
        )
        fl.compare(
            model,
            tokenizer,
            {name: own},
            **pairs_to_read(read_on),
            text=evaluation_text(tokenizer, 0 if read_on == "validation" else 1),
            n_random=20 if name.startswith(("removal", "balanced")) else 10,
            seed=SEED,
            ablation=partial(deal, own=own, gates=gates, toward=toward),
            metric=False,
        ).to_pickle(path)
    return pd.read_pickle(path).assign(read_on=read_on)


def on_wikitext(
    model, tokenizer, name: str, gates: torch.Tensor, toward: torch.Tensor
) -> pd.DataFrame:
    """Return the price on the first 4,096 tokens of WikiText-2's test pages, as a row; none without
    the data sets."""
    folder = os.environ.get("FAIRLAB_DATASETS")
    if not folder:
        print("FAIRLAB_DATASETS is not set: no price on WikiText")
        return pd.DataFrame()
    text = (Path(folder) / "wikitext2" / "wikitext-2-raw-v1_test.txt").read_text(encoding="utf-8")
    text = tokenizer.decode(tokenizer(text, verbose=False).input_ids[:4096])
    before = token_losses(model, tokenizer, text).numpy()
    with fl.gate(model, gates, toward):
        after = token_losses(model, tokenizer, text).numpy()
    columns = np.stack([after - before, np.ones(len(before))], 1)
    blocks = np.arange(len(before)) // 64
    low, high = jackknife_interval(columns, lambda sums: sums[:, 0] / sums[:, 1], [blocks])
    change = np.expm1([(after - before).mean(), low, high])
    row = {
        "selection": name,
        "measure": "perplexity",
        "category": "WikiText-2",
        "read_on": "WikiText-2",
    }
    row |= {"before": np.exp(before.mean()), "after": np.exp(after.mean())}
    return pd.DataFrame([row | dict(zip(("change", "low", "high"), change, strict=True))])


def freeze_gates(gates: torch.Tensor, toward: torch.Tensor) -> None:
    """Write the gates that lesson 07 takes, a row a neuron."""
    layers, neurons = places = (gates != 1).nonzero(as_tuple=True)
    table = pd.DataFrame(
        {"layer": layers, "neuron": neurons, "gate": gates[places], "toward": toward[places]}
    )
    table.to_csv(
        ROOT / "data" / "results/gates_balanced.csv",
        index=False,
        float_format="%.9g",
        lineterminator="\n",
    )


def main() -> None:
    """Measure the tries on validation pairs, choose, and read the chosen ones on held-out pairs."""
    model, tokenizer = fl.load_model()
    model.requires_grad_(False)
    chunks = text_chunks(tokenizer, fl.load_text("calibration"))
    mean = scored("mean", lambda: means(model, chunks))
    around = {
        draw.__name__: scored(
            f"mean-{draw.__name__}",
            lambda draw=draw: tables(model, tokenizer, chunks, mean, draw(), draw(kind="neutral")),
        )
        for draw in (train_pairs, all_but_held_out)
    }
    tries = attempts(model, tokenizer, chunks, mean, around["train_pairs"])
    readings = [read(model, tokenizer, name, *how, "validation") for name, how in tries.items()]
    small, large = (balanced(*around["all_but_held_out"], **setting) for setting in CHOSEN)
    freeze_gates(small, mean)
    held_out_tries = {
        balanced_name(CHOSEN[0]): tries[balanced_name(CHOSEN[0])][0],
        balanced_name(CHOSEN[0], ", all pairs"): small,
        balanced_name(CHOSEN[1], ", all pairs"): large,
    }
    readings += [
        read(model, tokenizer, name, gates, mean, "held_out")
        for name, gates in held_out_tries.items()
    ]
    chosen = balanced_name(CHOSEN[0], ", all pairs")
    readings.append(read(model, tokenizer, chosen, small, mean, "held_out_all_neutral"))
    seconds = sum(reading.attrs["seconds"] for reading in readings)
    readings.append(on_wikitext(model, tokenizer, chosen, small, mean))
    readings.append(on_wikitext(model, tokenizer, "removal · 90", *tries["removal · 90"]))
    table = pd.concat(readings, ignore_index=True)
    table.attrs["seconds"] = seconds
    write(model, table, "results/tries.csv")


if __name__ == "__main__":
    main()
