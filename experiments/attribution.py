"""Measure how well attribution foretells what removing a neuron alone does to the gap.

    python experiments/attribution.py

For each category, on eight of its training pairs: attribution of all neurons, and the change of
the gap when neurons are removed one by one: 40 at even ranks of the attribution, and its 40 best.
Writes Spearman's rank correlation of the two in `data/results/attribution.csv`, with the number of
the 40 best that narrow the gap. Reads training pairs alone, and chooses nothing.
"""

import math
import random

import frozen
import pandas as pd
import torch
from scipy.stats import spearmanr
from torch import Tensor

import fairlab as fl

NEURONS = 40
PAIRS = 8


def main() -> None:
    """Measure each category and freeze the table."""
    model, tokenizer = fl.load_model()
    train = frozen.train_pairs()
    rows = []
    for category in frozen.categories_of(train):
        of_category = [pair for pair in train if pair.category == category]
        pairs = random.Random(frozen.SEED).sample(of_category, PAIRS)
        rows.append({"category": category, "pairs": PAIRS, **row_of(model, tokenizer, pairs)})
        print(rows[-1])
    table = pd.DataFrame(rows).assign(**frozen.provenance(model), seed=frozen.SEED)
    frozen.write_csv(table, "attribution.csv", float_format="%.3f")


def row_of(model, tokenizer, pairs: list[fl.PromptPair]) -> dict[str, float]:
    """Compare attribution with removals: the columns of one category."""
    scores = fl.bias_scores(model, tokenizer, pairs, method="attribution")  # (layers, neurons)
    ranks = scores.flatten().argsort(descending=True)
    step = len(ranks) // NEURONS
    even = ranks[step // 2 :: step][:NEURONS]
    best = ranks[:NEURONS]
    removed_even = removed_alone(model, tokenizer, scores, even, pairs)
    removed_best = removed_alone(model, tokenizer, scores, best, pairs)
    foretold = scores.flatten()
    return {
        "neurons": NEURONS,
        "spearman_even": spearmanr(foretold[even], removed_even).statistic,
        "spearman_best": spearmanr(foretold[best], removed_best).statistic,
        "best_that_narrow": int((removed_best > 0).sum()),
    }


def removed_alone(model, tokenizer, scores: Tensor, places: Tensor, pairs) -> Tensor:
    """Return by how much the gap narrows when each neuron is removed alone, shape (places,)."""
    shortlist = torch.full_like(scores, -math.inf)
    shortlist.view(-1)[places] = scores.flatten()[places]
    exact = fl.refine_scores(model, tokenizer, shortlist, pairs, count=len(places))
    return exact.flatten()[places]


if __name__ == "__main__":
    main()
