"""Hold every score against planted neurons, at three strengths and five seeds, and freeze the
leaderboard.

    python experiments/planted.py

Of the 16 race templates in train and validation, each seed draws 8 whose pairs fit the detectors of
15 bias neurons and 15 decoys; the pairs of the other 8 are what the scores see. Writes
`data/results/planted.csv`. A run that was stopped goes on from `build/planted/`.
"""

import itertools
import json
import time

import frozen
import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

import fairlab as fl
from fairlab.evaluation.readings import bits_of

COSTS = (0.05, 0.15, 0.01)
SEEDS = range(5)
NEURONS = 15  # of each kind
REFINED = 100  # neurons that `refine_scores` tries
TOKENS = 512  # of each text


def beginning(tokenizer, name: str) -> str:
    """Return the first tokens of a text that comes with fairlab."""
    return tokenizer.decode(tokenizer(fl.load_text(name), verbose=False).input_ids[:TOKENS])


def all_scores(model, tokenizer, pairs, seed: int) -> dict[str, Tensor]:
    """Score the neurons of a model in every way that fairlab knows."""
    scores = {}
    for method in ("article", "optipfair", "activation", "attribution", "patching"):
        scores[method] = fl.bias_scores(model, tokenizer, pairs, method=method)
    text = beginning(tokenizer, "calibration")
    fisher = fl.importance_scores(model, method="fisher", tokenizer=tokenizer, text=text)
    maw = fl.importance_scores(model, method="maw")
    patching = scores["patching"]
    scores["article, hybrid"] = fl.hybrid_scores(scores["article"], maw)
    scores["attribution, guarded"] = fl.guarded_scores(scores["attribution"], fisher)
    scores["patching, guarded"] = fl.guarded_scores(patching, fisher)
    refined = fl.refine_scores(model, tokenizer, patching, pairs, count=REFINED)
    scores["patching, refined"] = refined
    generator = torch.Generator().manual_seed(seed)
    scores["random"] = torch.rand(fisher.shape, generator=generator)
    return scores


def measure(model, tokenizer, cost: float, seed: int) -> pd.DataFrame:
    """Return one row a score, with what the planted neurons do beside it."""
    fitted, seen = frozen.planted_split(seed)
    planted, bias, decoys = fl.plant_neurons(
        model, tokenizer, fitted, n=NEURONS, cost=cost, seed=seed
    )
    effects = effects_of(model, planted, bias, decoys, tokenizer, seen)
    rows = []
    for name, scores in all_scores(planted, tokenizer, seen, seed).items():
        quality = fl.score_planted(scores, bias, decoys)
        rows.append({"cost": cost, "seed": seed, "score": name, **quality, **effects})
    return pd.DataFrame(rows)


def effects_of(model, planted, bias, decoys, tokenizer, pairs) -> dict[str, float]:
    """Return the gap of the model as it was, planted, and with one kind of neurons ablated; and
    what the planting cost."""

    def gap(of) -> float:
        return fl.next_token_divergence(of, tokenizer, pairs).mean().item()

    effects = {"gap_before": gap(model), "gap_planted": gap(planted)}
    with fl.ablate(planted, bias):
        effects["gap_without_bias"] = gap(planted)
    with fl.ablate(planted, decoys):
        effects["gap_without_decoys"] = gap(planted)
    text = beginning(tokenizer, "evaluation")
    before = fl.perplexity(model, tokenizer, text)
    effects["perplexity_change"] = fl.perplexity(planted, tokenizer, text) / before - 1
    return effects


def main() -> None:
    """Measure what is not measured yet, and write the table."""
    model, tokenizer = fl.load_model()
    cache = frozen.BUILD / "planted" / bits_of(model)[:16]
    cache.mkdir(parents=True, exist_ok=True)
    tables = []
    for cost, seed in tqdm(list(itertools.product(COSTS, SEEDS)), unit="planting"):
        path = cache / f"{cost:g}-{seed}.json"
        if not path.is_file():
            start = time.perf_counter()
            table = measure(model, tokenizer, cost, seed)
            table["seconds"] = round(time.perf_counter() - start)
            part = path.with_suffix(".part")
            table.to_json(part, orient="records", double_precision=15)
            part.replace(path)
        tables.append(pd.DataFrame(json.loads(path.read_text(encoding="utf-8"))))
    table = pd.concat(tables).sort_values(["cost", "seed"], kind="stable", ignore_index=True)
    frozen.write_csv(table.assign(**frozen.provenance(model)), "planted.csv")
    means = table.groupby(["cost", "score"], sort=False).mean(numeric_only=True)
    print(means.drop(columns=["seed", "seconds"]).round(3).to_string())


if __name__ == "__main__":
    main()
