"""Try what else than removing neurons could narrow the gap, on validation pairs; then read what was
chosen, held out.

    python experiments/tries.py

A neuron's activation h becomes `gate * h + (1 - gate) * toward`. A removal is a gate of 0 toward 0.
Tried beside the guarded removal: half of it; the neuron's mean over plain text in place of 0;
neurons from the whole model, not so many a layer; gates in closed form that are balanced against
neutral pairs (`balanced.py`); and learned ones, as an upper bound. All are scored on pairs whose
template and words are both in the train split, and read on the validation pairs, each beside random
draws of as many neurons in each layer with the same gates: 20 for removals and balanced gates, 10
for the others.

The settings in `CHOSEN` were found in a search such as `gates_search.py` repeats. They alone are
read on the held-out pairs, scored again on train and validation pairs together; the smaller one
also as it was. The perplexity that chose was read on the first part of the evaluation text; the
held-out rows have theirs from the second, which chose nothing.

Writes `tries.csv` and `tries_draws.csv` in `data/results/`, and the gates of the smaller size to
`data/results/gates_balanced.csv`. A run that was stopped goes on from `build/tries/` and
`build/tradeoff/`; delete these to start anew.
"""

import os
import random
from dataclasses import dataclass
from pathlib import Path

import frozen
import numpy as np
import pandas as pd
import torch
from balanced import balanced_gates, mean_activations, slopes_around_mean, weighted_gap
from torch import Tensor

import fairlab as fl
from fairlab.passes import chunk_loss, pair_batches, progress, text_chunks, token_losses
from fairlab.statistics import jackknife_interval

CACHE = frozen.BUILD / "tries"
SETTINGS = (  # of the balanced gates
    {"count": 92, "goal": 1.1, "charge": 0.7, "floor": 3.0},
    {"count": 92, "goal": 1.1, "charge": 0.78, "floor": 3.0},
    {"count": 276, "goal": 2.1, "charge": 0.78, "floor": 2.0},
)
CHOSEN = SETTINGS[1:]
STEPS = 60  # of learning
BLOCK = 64  # tokens of WikiText that are left out together


@dataclass(frozen=True)
class Gates:
    """What is done to the neurons: both tables have the shape (layers, neurons)."""

    name: str  # "method · number of neurons"
    gates: Tensor  # 1: left as it is
    toward: Tensor  # what a neuron at gate 0 does instead

    @property
    def selection(self) -> fl.NeuronSelection:
        """The neurons whose gate is not 1."""
        neurons = {}
        for layer, changed in enumerate(self.gates != 1):
            neurons[layer] = changed.nonzero().flatten().tolist()
        return fl.NeuronSelection(neurons, tuple(self.gates.shape))

    def on(self, model, cut: fl.NeuronSelection):
        """Apply the gates, in order, to the neurons of a cut with as many in each layer: an
        `ablation` of `compare`."""
        moved = torch.ones_like(self.gates)
        for layer, indices in cut.neurons.items():
            row = self.gates[layer]
            moved[layer, list(indices)] = row[row != 1]
        return fl.gate(model, moved, self.toward)


def removals(slopes, mean: Tensor) -> list[Gates]:
    """Return the guarded removal and its relatives: every chosen neuron has the same gate."""
    path = frozen.RESULTS / "selection_guarded.json"
    guarded = fl.NeuronSelection.from_json(path.read_text(encoding="utf-8"))
    gap, importance, neutral = slopes
    scores = fl.guarded_scores(gap, importance, neutral=neutral)
    of_each_layer = fl.select_neurons(scores, count=3)
    of_whole_model = fl.select_neurons(scores, count=92, scope="model")
    zero = torch.zeros_like(mean)
    return [
        equal_gates("removal", guarded, 0, zero),
        equal_gates("half a removal", guarded, 0.5, zero),
        equal_gates("mean", of_each_layer, 0, mean),
        equal_gates("mean, whole model", of_whole_model, 0, mean),
    ]


def equal_gates(method: str, cut: fl.NeuronSelection, gate: float, toward: Tensor) -> Gates:
    """Give all neurons of a cut the same gate."""
    gates = torch.ones_like(toward)
    for layer, indices in cut.neurons.items():
        gates[layer, list(indices)] = gate
    return Gates(f"{method} · {len(cut)}", gates, toward)


def balanced(slopes, mean: Tensor, setting: dict[str, float], note: str = "") -> Gates:
    """Return the balanced gates of a setting."""
    name = f"balanced, charge {setting['charge']}{note} · {setting['count']}"
    return Gates(name, balanced_gates(*slopes, **setting), mean)


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
            after += weighted_gap(model, batch, weights)
        return after - before @ weights


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


def learned_gates(model, tokenizer, start: Gates, steps: int) -> Tensor:
    """Train the gates that are not 1 by Adam: down with the headline, while neutral pairs and the
    loss stay."""
    draw = random.Random(frozen.SEED)
    demographic, neutral = samplers(model, tokenizer)
    chunks = text_chunks(tokenizer, fl.load_text("calibration"))
    with torch.no_grad():
        losses = [chunk_loss(model, chunk).item() for chunk in chunks]
    places = (start.gates != 1).nonzero(as_tuple=True)
    values = start.gates[places].clone().requires_grad_()
    adam = torch.optim.Adam([values], lr=0.02)
    for step in progress(range(steps), desc="learning", unit="step"):
        adam.zero_grad()
        gates = torch.ones_like(start.gates).index_put(places, values)
        number = step % len(chunks)
        with fl.gate(model, gates, start.toward):
            headline = demographic.change(model, tokenizer, draw)
            neutral_change = neutral.change(model, tokenizer, draw)
            loss_change = chunk_loss(model, chunks[number]) - losses[number]
            (headline + neutral_change.abs() + 5 * loss_change.abs()).backward()
        adam.step()
    return torch.ones_like(start.gates).index_put(places, values.detach())


def read(model, tokenizer, gates: Gates, read_on: str) -> fl.Comparison:
    """Compare the gates, and random draws of neurons with the same gates, on some pairs.

    `read_on`: "validation", "held_out", or "held_out_all_neutral" with all neutral pairs of the
    held-out templates.
    """
    path = CACHE / f"{read_on}, {gates.name}.comparison"
    if not path.is_file():
        if read_on == "validation":
            pairs_and_text = frozen.validation(tokenizer)
        else:
            words = "any" if read_on == "held_out_all_neutral" else "split"
            pairs_and_text = frozen.held_out(tokenizer, part=1, neutral_words=words)
        comparison = fl.compare(
            model,
            tokenizer,
            {gates.name: gates.selection},
            pairs_and_text,
            n_random=20 if gates.name.startswith(("removal", "balanced")) else 10,
            seed=frozen.SEED,
            metric=False,
            ablation=gates.on,
        )
        CACHE.mkdir(parents=True, exist_ok=True)
        pd.to_pickle(comparison, path)
    return pd.read_pickle(path)


def wikitext_row(model, tokenizer, gates: Gates) -> pd.DataFrame:
    """Return the perplexity on the first 4,096 tokens of WikiText-2's test pages, as a row; none
    without the data sets."""
    folder = os.environ.get("FAIRLAB_DATASETS")
    if not folder:
        print("FAIRLAB_DATASETS is not set: no perplexity on WikiText")
        return pd.DataFrame()
    path = Path(folder) / "wikitext2" / "wikitext-2-raw-v1_test.txt"
    ids = tokenizer(path.read_text(encoding="utf-8"), verbose=False).input_ids
    text = tokenizer.decode(ids[:4096])
    before = token_losses(model, tokenizer, text).numpy()
    with fl.gate(model, gates.gates, gates.toward):
        after = token_losses(model, tokenizer, text).numpy()
    row = {
        "selection": gates.name,
        "measure": "perplexity",
        "row": "text",
        "category": "WikiText-2",
        "before": np.exp(before.mean()),
        "after": np.exp(after.mean()),
    }
    row["change"], row["low"], row["high"] = perplexity_change(after - before)
    return pd.DataFrame([row])


def perplexity_change(rise: np.ndarray) -> np.ndarray:
    """Return the relative change of the perplexity, and its 95 % interval over blocks of text, from
    the rise of each token's loss."""
    columns = np.stack([rise, np.ones(len(rise))], 1)
    blocks = np.arange(len(rise)) // BLOCK
    low, high = jackknife_interval(columns, lambda sums: sums[:, 0] / sums[:, 1], [blocks])
    return np.expm1([rise.mean(), low, high])


def write_gates(gates: Gates) -> None:
    """Write the gates that lesson 07 takes, a row a neuron."""
    places = (gates.gates != 1).nonzero(as_tuple=True)
    table = pd.DataFrame(
        {
            "layer": places[0],
            "neuron": places[1],
            "gate": gates.gates[places],
            "toward": gates.toward[places],
        }
    )
    frozen.write_csv(table, "gates_balanced.csv", float_format="%.9g")


def tries(model, tokenizer, slopes, mean: Tensor) -> list[Gates]:
    """Return all that is read on validation pairs."""
    attempts = removals(slopes, mean)
    attempts += [balanced(slopes, mean, setting) for setting in SETTINGS]
    start = balanced(slopes, mean, CHOSEN[0])
    path = frozen.BUILD / "tradeoff" / "learned.pt"
    learned = frozen.kept(path, lambda: learned_gates(model, tokenizer, start, STEPS))
    return [*attempts, Gates("learned · 92", learned, mean)]


def main() -> None:
    """Measure the tries on validation pairs, and read the chosen ones on held-out pairs."""
    model, tokenizer = fl.load_model()
    model.requires_grad_(False)
    mean = mean_activations(model, tokenizer)
    train, neutral = frozen.train_pairs(), frozen.train_pairs("neutral")
    slopes = slopes_around_mean(model, tokenizer, mean, train, neutral, "train_pairs")
    # once the settings are chosen, the validation pairs may choose neurons, too
    train += fl.load_pairs(split="validation")
    neutral += fl.load_pairs(split="validation", kind="neutral")
    all_slopes = slopes_around_mean(model, tokenizer, mean, train, neutral, "all_but_held_out")

    attempts = tries(model, tokenizer, slopes, mean)
    small, large = (balanced(all_slopes, mean, setting, ", all pairs") for setting in CHOSEN)
    write_gates(small)
    readings = [(gates, "validation") for gates in attempts]
    readings += [
        (balanced(slopes, mean, CHOSEN[0]), "held_out"),
        (small, "held_out"),
        (large, "held_out"),
        (small, "held_out_all_neutral"),
    ]
    tables, draws, seconds = [], [], 0.0
    for gates, read_on in readings:
        comparison = read(model, tokenizer, gates, read_on)
        tables.append(comparison.table.assign(read_on=read_on))
        draws.append(comparison.draws.assign(read_on=read_on))
        seconds += comparison.seconds
    for gates in (small, attempts[0]):
        row = wikitext_row(model, tokenizer, gates)
        tables.append(row.assign(read_on="WikiText-2"))

    draws = pd.concat(draws, ignore_index=True)
    draws.insert(4, "read_on", draws.pop("read_on"))
    table = pd.concat(tables, ignore_index=True)
    frozen.write(model, table, draws, "tries", seconds=seconds)


if __name__ == "__main__":
    main()
