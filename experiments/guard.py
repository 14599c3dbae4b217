"""Measure what the guard of `guarded_scores` is good for, and a grid of its options.

    python experiments/guard.py

1. Of the 60 neurons with the highest guarded scores: how F² (Fisher's importance, squared) and the
   plain slope rank the true rise of the loss when each is removed alone. Spearman's rank
   correlation, on the text that Fisher's importance comes from, and on the first 2,048 tokens of
   the evaluation text.
2. The change of the perplexity when 92 neurons are chosen with Fisher's importance, and with "maw"
   in its place.
3. Charge, protect and floor: 27 settings, the defaults among them, with 3 neurons in each layer.
   Writes `data/results/guard.csv`, which the docstring of `guarded_scores` quotes.

The numbers of 1 and 2 are printed and kept in no file.

Neurons are scored on pairs whose template and words are both in the train split, and read on the
validation pairs and the first 2,048 tokens of the evaluation text.
"""

import itertools
from functools import partial

import frozen
import pandas as pd
import torch
from scipy.stats import spearmanr
from torch import Tensor
from tqdm import tqdm

import fairlab as fl
from fairlab.gates import gate_slopes
from fairlab.passes import chunk_loss, text_chunks

CANDIDATES = 60
CHARGES = (0.7, 0.85, 1.0)
PROTECTS = (0.01, 0.03, 0.1)
FLOORS = (1.0, 4.0, 16.0)


def candidates(scores: Tensor, count: int) -> list[tuple[int, int]]:
    """Return (layer, neuron) of the highest scores."""
    places = scores.flatten().topk(count).indices.tolist()
    return [divmod(place, scores.shape[1]) for place in places]


def mean_loss(model, chunks: list[list[int]]) -> float:
    """Return the mean next-token loss over chunks of a text, in nats."""
    with torch.no_grad():
        return sum(chunk_loss(model, chunk).item() for chunk in chunks) / len(chunks)


def rises(model, chunks: list[list[int]], neurons: list[tuple[int, int]], shape) -> list[float]:
    """Return by how much the loss rises when each neuron is removed alone, in nats."""
    before = mean_loss(model, chunks)
    changes = []
    for layer, neuron in tqdm(neurons, desc="removals", unit="neuron"):
        with fl.ablate(model, fl.NeuronSelection({layer: [neuron]}, shape)):
            changes.append(mean_loss(model, chunks) - before)
    return changes


def rank_correlations(
    model, tokenizer, tables: dict[str, Tensor], text: str, count: int = CANDIDATES
) -> dict[str, float]:
    """Correlate what forecasts the rise of the loss with the rise, over the best candidates."""
    neurons = candidates(fl.guarded_scores(**tables), count)
    chunks = text_chunks(model, tokenizer, text)
    slope = torch.zeros_like(tables["importance"])  # (layers, neurons)
    for chunk in chunks:
        slope += gate_slopes(model, partial(chunk_loss, model, chunk)) / len(chunks)
    layers, indices = zip(*neurons, strict=True)
    squares = tables["importance"][layers, indices] ** 2
    forecast = -slope[layers, indices]  # a removal turns the gate down
    rise = torch.tensor(rises(model, chunks, neurons, tuple(slope.shape)))
    return {
        "F² and the rise": spearmanr(squares, rise).statistic,
        "F² and the size of the rise": spearmanr(squares, rise.abs()).statistic,
        "slope and the rise": spearmanr(forecast, rise).statistic,
    }


def perplexity_changes(
    model, tokenizer, tables: dict[str, Tensor], held_out: fl.HeldOut, count: int = 92
) -> dict[str, dict[str, float]]:
    """Choose neurons with Fisher's importance and with "maw"; return the changes of each cut."""
    before = frozen.quick_reading(model, tokenizer, held_out)
    importances = {
        "fisher": tables["importance"],
        "maw": fl.importance_scores(model, method="maw"),
    }
    changes = {}
    for name, importance in importances.items():
        scores = fl.guarded_scores(
            tables["bias"],
            importance,
            neutral=tables["neutral"],
            charge=1,
            protect=0.1,
            floor=1,
        )
        cut = fl.select_neurons(scores, count=count, scope="model")
        with fl.ablate(model, cut):
            after = frozen.quick_reading(model, tokenizer, held_out)
        changes[name] = frozen.quick_changes(held_out, before, after)
    return changes


def settings() -> list[dict[str, float]]:
    """List the settings of the grid; the defaults are among them."""
    grid = []
    for charge, protect, floor in itertools.product(CHARGES, PROTECTS, FLOORS):
        grid.append({"charge": charge, "protect": protect, "floor": floor})
    return grid


def search(
    model, tokenizer, tables: dict[str, Tensor], held_out: fl.HeldOut, grid, count: int = 3
) -> pd.DataFrame:
    """Read the guarded cut of each setting; return a row for each."""
    before = frozen.quick_reading(model, tokenizer, held_out)
    rows = []
    for setting in tqdm(grid, unit="setting"):
        cut = fl.select_neurons(fl.guarded_scores(**tables, **setting), count=count)
        with fl.ablate(model, cut):
            after = frozen.quick_reading(model, tokenizer, held_out)
        changes = frozen.quick_changes(held_out, before, after)
        rows.append({**setting, "neurons": len(cut), **changes})
    return pd.DataFrame(rows)


def main() -> None:
    """Measure all three, print the numbers and write the grid."""
    model, tokenizer = fl.load_model()
    tables = frozen.guard_tables(model, tokenizer)
    del tables["score"]  # made anew here, with other options
    held_out = frozen.validation(tokenizer)
    texts = {"calibration": fl.load_text("calibration"), "evaluation": held_out.text}
    for name, text in texts.items():
        for question, value in rank_correlations(model, tokenizer, tables, text).items():
            print(f"{CANDIDATES} candidates, {name} text: {question}: {value:.2f}")
    for name, changes in perplexity_changes(model, tokenizer, tables, held_out).items():
        values = ", ".join(f"{measure} {change:+.1%}" for measure, change in changes.items())
        print(f"92 neurons, importance {name!r}: {values}")
    table = search(model, tokenizer, tables, held_out, settings())
    print(table.round(4).to_string(index=False))
    frozen.write_csv(table.assign(**frozen.provenance(model)), "guard.csv")


if __name__ == "__main__":
    main()
