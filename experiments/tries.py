"""Try what else than removing neurons could narrow the gap, on validation pairs; then read what was
chosen, held out.

    python experiments/tries.py

A neuron's activation h becomes `gate * h + (1 - gate) * toward`. A removal is a gate of 0 toward 0.
Tried beside the guarded removal: half of it; the neuron's mean over plain text in place of 0;
neurons from the whole model, not so many a layer; gates in closed form that are balanced against
neutral pairs (`fairlab.balanced_gates`); and learned ones. All are scored on pairs whose template
and words are both in the train split, and read on the validation pairs, each beside random draws of
as many neurons in each layer with the same gates: 20 for the guarded removal and balanced
gates, 10 for the others.

The settings in `CHOSEN` were found in a search such as `gates_search.py` repeats. They alone are
read on the held-out pairs, scored again on train and validation pairs together; the smaller one
also as it was. The perplexity that chose was read on the first part of the evaluation text; the
held-out rows have theirs from the second, which chose nothing.

Writes `tries.csv` and `tries_draws.csv` in `data/results/`, and the gates of the smaller size to
`data/results/gates_balanced.csv`. A run that was stopped goes on from `build/tries/` and
`build/tradeoff/`; delete these to start anew.
"""

import json
import os
from pathlib import Path

import frozen
import numpy as np
import pandas as pd
import torch
from torch import Tensor

import fairlab as fl
from fairlab.gating import GateTables, solve_gates
from fairlab.passes import token_losses
from fairlab.statistics import jackknife_interval

CACHE = frozen.BUILD / "tries"
SETTINGS = (  # of the balanced gates
    {"count": 92, "goal": 1.1, "charge": 0.7, "floor": 3.0},
    {"count": 92, "goal": 1.1, "charge": 0.78, "floor": 3.0},
    {"count": 276, "goal": 2.1, "charge": 0.78, "floor": 2.0},
)
CHOSEN = SETTINGS[1:]
BLOCK = 64  # tokens of WikiText that are left out together


def removals(tables: GateTables) -> dict[str, fl.NeuronGates]:
    """Return the guarded removal and its relatives: every chosen neuron has the same gate."""
    path = frozen.RESULTS / "selection_guarded.json"
    guarded = fl.NeuronSelection.from_json(path.read_text(encoding="utf-8"))
    scores = fl.guarded_scores(tables.gap, tables.importance, neutral=tables.neutral)
    of_each_layer = fl.select_neurons(scores, count=3)
    of_whole_model = fl.select_neurons(scores, count=92, scope="model")
    zero = torch.zeros_like(tables.mean)
    return dict(
        [
            equal_gates("removal", guarded, 0, zero),
            equal_gates("half a removal", guarded, 0.5, zero),
            equal_gates("mean", of_each_layer, 0, tables.mean),
            equal_gates("mean, whole model", of_whole_model, 0, tables.mean),
        ]
    )


def equal_gates(
    method: str, cut: fl.NeuronSelection, gate: float, toward: Tensor
) -> tuple[str, fl.NeuronGates]:
    """Give all neurons of a cut the same gate; return a name and the gates."""
    values = torch.ones_like(toward)  # (layers, neurons)
    for layer, indices in cut.neurons.items():
        values[layer, list(indices)] = gate
    return f"{method} · {len(cut)}", fl.NeuronGates.from_tables(values, toward, how=method)


def balanced(
    tables: GateTables, setting: dict[str, float], note: str = ""
) -> tuple[str, fl.NeuronGates]:
    """Return the balanced gates of a setting, with a name."""
    name = f"balanced, charge {setting['charge']}{note} · {setting['count']}"
    solved = solve_gates(tables, **setting)
    return name, fl.NeuronGates.from_tables(solved, tables.mean, how=name)


def read(
    model, tokenizer, name: str, gates: fl.NeuronGates, read_on: str
) -> tuple[pd.DataFrame, pd.DataFrame, float]:
    """Compare the gates, and random draws of neurons with the same gates, on some pairs.

    Returns the table, the draws and the seconds of the comparison.

    `read_on`: "validation", "held_out", or "held_out_all_neutral" with all neutral pairs of the
    held-out templates.
    """
    path = CACHE / f"{read_on}, {name}.json"
    if not path.is_file():
        if read_on == "validation":
            pairs_and_text = frozen.validation(tokenizer)
        else:
            words = "any" if read_on == "held_out_all_neutral" else "split"
            pairs_and_text = frozen.held_out(tokenizer, part=1, neutral_words=words)
        comparison = fl.compare(
            model,
            tokenizer,
            {name: gates},
            pairs_and_text,
            n_random=20 if name.startswith(("removal", "balanced")) else 10,
            seed=frozen.SEED,
            metric=False,
        )
        CACHE.mkdir(parents=True, exist_ok=True)
        tables = [comparison.table.to_dict("list"), comparison.draws.to_dict("list")]
        path.write_text(json.dumps([*tables, comparison.seconds]), encoding="utf-8")
    table, draws, seconds = json.loads(path.read_text(encoding="utf-8"))
    return pd.DataFrame(table), pd.DataFrame(draws), seconds


def wikitext_row(model, tokenizer, name: str, gates: fl.NeuronGates) -> pd.DataFrame:
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
    with fl.gated(model, gates):
        after = token_losses(model, tokenizer, text).numpy()
    row = {
        "selection": name,
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


def write_gates(gates: fl.NeuronGates) -> None:
    """Write the gates that lesson 08 takes, a row a neuron."""
    rows = []
    for layer, row in gates.gates.items():
        for neuron, (value, toward) in row.items():
            rows.append({"layer": layer, "neuron": neuron, "gate": value, "toward": toward})
    frozen.write_csv(pd.DataFrame(rows), "gates_balanced.csv", float_format="%.9g")


def tries(model, tokenizer, tables: GateTables) -> dict[str, fl.NeuronGates]:
    """Return all that is read on validation pairs."""
    attempts = removals(tables)
    attempts.update(balanced(tables, setting) for setting in SETTINGS)
    _, start = balanced(tables, CHOSEN[0])
    pairs, neutral = frozen.train_pairs(), frozen.train_pairs("neutral")
    path = frozen.BUILD / "tradeoff" / "learned.json"
    if not path.is_file():
        learned = fl.learned_gates(model, tokenizer, pairs, neutral, start)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(learned.to_json(), encoding="utf-8")
    learned = fl.NeuronGates.from_json(path.read_text(encoding="utf-8"))
    attempts["learned · 92"] = learned
    return attempts


def main() -> None:
    """Measure the tries on validation pairs, and read the chosen ones on held-out pairs."""
    model, tokenizer = fl.load_model()
    model.requires_grad_(False)
    train, neutral = frozen.train_pairs(), frozen.train_pairs("neutral")
    tables = frozen.gate_tables(model, tokenizer, train, neutral, "train_pairs")
    # once the settings are chosen, the validation pairs may choose neurons, too
    train += fl.load_pairs(split="validation")
    neutral += fl.load_pairs(split="validation", kind="neutral")
    all_tables = frozen.gate_tables(model, tokenizer, train, neutral, "all_but_held_out")

    attempts = tries(model, tokenizer, tables)
    small, large = (balanced(all_tables, setting, ", all pairs") for setting in CHOSEN)
    write_gates(small[1])
    readings = [(*attempt, "validation") for attempt in attempts.items()]
    readings += [
        (*balanced(tables, CHOSEN[0]), "held_out"),
        (*small, "held_out"),
        (*large, "held_out"),
        (*small, "held_out_all_neutral"),
    ]
    parts, draws, seconds = [], [], 0.0
    for name, gates, read_on in readings:
        table, drawn, took = read(model, tokenizer, name, gates, read_on)
        parts.append(table.assign(read_on=read_on))
        draws.append(drawn.assign(read_on=read_on))
        seconds += took
    for name, gates in (small, next(iter(attempts.items()))):
        row = wikitext_row(model, tokenizer, name, gates)
        parts.append(row.assign(read_on="WikiText-2"))

    draws = pd.concat(draws, ignore_index=True)
    draws.insert(4, "read_on", draws.pop("read_on"))
    table = pd.concat(parts, ignore_index=True)
    frozen.write(model, table, draws, "tries", seconds=seconds)


if __name__ == "__main__":
    main()
