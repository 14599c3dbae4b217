"""Ask why attribution fails where planted neurons are strong: is it the slope, or the way to zero?

    python experiments/planted_slopes.py

Plants as `planted.py` does at the highest price, with the same seeds, and turns each planted neuron
alone all the way to zero, halfway there, and likewise to the mean of the pair. Writes what the
slopes promised and what the gap did in `data/results/planted_slopes.csv`. A run that was stopped
goes on from `build/planted_slopes/`.
"""

import itertools
import math

import frozen
import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

import fairlab as fl
from fairlab.evaluation.readings import bits_of
from fairlab.models import decoder_layers
from fairlab.passes import layer_inputs, skipping

COST = 0.15  # the highest of `planted.py`
SEEDS = range(5)
NEURONS = 15  # of each kind
GATES = {"half": 0.5, "exact": 0.0}


def mean_of_pair(layer: int, h: Tensor) -> Tensor:
    """Return for each row the mean of its pair; the rows are all prompts a, then all prompts b."""
    a, b = h.chunk(2)  # (pairs, tokens, neurons) each
    return ((a + b) / 2).repeat(2, 1, 1)


WAYS = {"zero": None, "mean": mean_of_pair}  # where a neuron is turned to


def batches(tokenizer, pairs: list[fl.PromptPair]) -> list[Tensor]:
    """Return token ids without padding: prompts a and then prompts b of the pairs of one length."""
    by_length = {}
    for pair in pairs:
        both = tokenizer([pair.prompt_a, pair.prompt_b]).input_ids
        by_length.setdefault(len(both[0]), []).append(both)
    return [
        torch.tensor([one for one, _ in some] + [other for _, other in some])
        for some in by_length.values()
    ]


def gaps(model, ids: Tensor) -> Tensor:
    """Return the gap of each pair of a batch in nats, shape (pairs,)."""
    logits = model(input_ids=ids, logits_to_keep=1, use_cache=False).logits[:, -1]
    a, b = logits.log_softmax(-1).chunk(2)  # (pairs, vocabulary) each
    mixture = torch.logaddexp(a, b) - math.log(2)
    return ((a.exp() * (a - mixture)).sum(-1) + (b.exp() * (b - mixture)).sum(-1)) / 2


def lengths(model, ids: Tensor, layers: set[int]) -> dict[str, Tensor]:
    """Return how far the neurons are from zero and from the mean of their pair.

    Summed over the tokens of both prompts and over the pairs; shape (layers, neurons) each.
    """
    table = torch.zeros(model.config.num_hidden_layers, model.config.intermediate_size)
    found = {way: table.clone() for way in WAYS}

    def look(layer: int, h: Tensor) -> Tensor:
        found["zero"][layer] = h.abs().sum((0, 1))
        found["mean"][layer] = (h - mean_of_pair(layer, h)).abs().sum((0, 1))
        return h  # so that nothing changes

    gates = torch.ones_like(table)
    gates[sorted(layers)] = 0
    with fl.gate(model, gates, look):
        gaps(model, ids)
    return found


@torch.no_grad()
def turned(model, tokenizer, pairs, neurons: list[tuple[int, int]]) -> pd.DataFrame:
    """Return a row a neuron: by how much the mean gap narrows when it alone is turned to zero or to
    the mean of the pair, or halfway; and how long the way is, per pair."""
    rows = pd.DataFrame(0.0, index=range(len(neurons)), columns=[])
    for way, end in itertools.product(WAYS, ("half", "exact", "way")):
        rows[f"{way}_{end}"] = 0.0
    layers = decoder_layers(model)
    for ids in batches(tokenizer, pairs):
        with layer_inputs(layers) as inputs:
            before = gaps(model, ids).sum()
        far = lengths(model, ids, {layer for layer, _ in neurons})
        for place, (layer, neuron) in enumerate(neurons):
            for way, target in WAYS.items():
                rows.loc[place, f"{way}_way"] += far[way][layer, neuron].item()
                for end, value in GATES.items():
                    gates = torch.ones_like(far[way])
                    gates[layer, neuron] = value
                    with fl.gate(model, gates, target), skipping(layers[:layer], inputs[layer]):
                        after = gaps(model, ids).sum()
                    rows.loc[place, f"{way}_{end}"] += (before - after).item()
    return rows / len(pairs)


def measure(model, tokenizer, seed: int) -> pd.DataFrame:
    """Return one row a planted neuron: slopes, turns and ways."""
    fitted, seen = frozen.planted_split(seed)
    changed, bias, decoys = fl.plant_neurons(
        model, tokenizer, fitted, n=NEURONS, cost=COST, seed=seed
    )
    rows = [
        {"cost": COST, "seed": seed, "kind": kind, "layer": layer, "neuron": neuron}
        for kind, selection in {"bias": bias, "decoy": decoys}.items()
        for layer, some in selection.neurons.items()
        for neuron in some
    ]
    table = pd.DataFrame(rows)
    places = [*zip(table.layer, table.neuron, strict=True)]
    for way, method in {"zero": "attribution", "mean": "patching"}.items():
        scores = fl.bias_scores(changed, tokenizer, seen, method=method)
        table[f"{way}_slope"] = [scores[place].item() for place in places]
    return table.join(turned(changed, tokenizer, seen, places))


def main() -> None:
    """Measure what is not measured yet, and write the table."""
    model, tokenizer = fl.load_model()
    tables = []
    for seed in tqdm(SEEDS, unit="planting"):
        path = frozen.BUILD / "planted_slopes" / bits_of(model)[:16] / f"{COST:g}-{seed}.pt"
        found = frozen.kept(path, lambda seed=seed: measure(model, tokenizer, seed).to_dict("list"))
        tables.append(pd.DataFrame(found))
    table = pd.concat(tables, ignore_index=True)
    frozen.write_csv(table.assign(**frozen.provenance(model)), "planted_slopes.csv")
    means = table.groupby("kind").mean(numeric_only=True)
    print(means.drop(columns=["cost", "seed", "layer", "neuron"]).round(4).T.to_string())


if __name__ == "__main__":
    main()
