"""Hold every score against planted neurons, at three strengths and five seeds, and freeze the
leaderboard.

    python experiments/planted.py

Of the 16 race templates in train and validation, each seed draws 8 whose pairs fit the detectors of
15 bias neurons and 15 decoys; the pairs of the other 8 are what the scores see. Writes
`data/results/planted.csv`. Takes a bit over an hour on one CPU core; a run that was stopped goes on
from `build/planted/`.
"""

import json
import random
import time

import pandas as pd
import torch
from controls import ROOT, provenance
from tqdm import tqdm

import fairlab as fl
from fairlab.evaluation.readings import bits_of

COSTS = (0.05, 0.15, 0.01)
SEEDS = range(5)
NEURONS = 15  # of each kind
REFINED = 100  # neurons that `refine_scores` tries


def split(seed: int) -> tuple[list[fl.PromptPair], list[fl.PromptPair]]:
    """Return the pairs that the detectors are fitted to, and those that the scores see."""
    pairs = fl.load_pairs("race", split="train") + fl.load_pairs("race", split="validation")
    templates = sorted({pair.template for pair in pairs})
    fitted = set(random.Random(seed).sample(templates, len(templates) // 2))
    return [p for p in pairs if p.template in fitted], [
        p for p in pairs if p.template not in fitted
    ]


def first_tokens(tokenizer, name: str, count: int) -> str:
    """Return the beginning of a text that comes with fairlab."""
    text = fl.data_path(name).read_text(encoding="utf-8")
    return tokenizer.decode(tokenizer(text, verbose=False).input_ids[:count])


def all_scores(model, tokenizer, pairs, seed) -> dict[str, torch.Tensor]:
    """Score the neurons of a model in every way that fairlab knows."""
    methods = ("article", "optipfair", "activation", "attribution", "patching")
    scores = {method: fl.bias_scores(model, tokenizer, pairs, method=method) for method in methods}
    text = first_tokens(tokenizer, "text/calibration_en.txt", 512)
    fisher = fl.importance_scores(model, method="fisher", tokenizer=tokenizer, text=text)
    return scores | {
        "article, hybrid": fl.hybrid_scores(
            scores["article"], fl.importance_scores(model, method="maw")
        ),
        "attribution, guarded": fl.guarded_scores(scores["attribution"], fisher),
        "patching, guarded": fl.guarded_scores(scores["patching"], fisher),
        "patching, refined": fl.refine_scores(
            model, tokenizer, scores["patching"], pairs, count=REFINED
        ),
        "random": torch.rand(fisher.shape, generator=torch.Generator().manual_seed(seed)),
    }


def measure(model, tokenizer, cost: float, seed: int) -> pd.DataFrame:
    """Return one row a score, with what the planted neurons do beside it."""
    fitted, seen = split(seed)
    text = first_tokens(tokenizer, "text/evaluation_en.txt", 512)

    def gap(of) -> float:
        return fl.next_token_divergence(of, tokenizer, seen).mean().item()

    planted, bias, decoys = fl.plant_neurons(
        model, tokenizer, fitted, n=NEURONS, cost=cost, seed=seed
    )
    effects = {"gap_before": gap(model), "gap_planted": gap(planted)}
    for name, selection in (("gap_without_bias", bias), ("gap_without_decoys", decoys)):
        with fl.ablate(planted, selection):
            effects[name] = gap(planted)
    before, after = (fl.perplexity(of, tokenizer, text) for of in (model, planted))
    effects["perplexity_change"] = after / before - 1
    rows = [
        {"cost": cost, "seed": seed, "score": name}
        | fl.score_planted(scores, bias, decoys)
        | effects
        for name, scores in all_scores(planted, tokenizer, seen, seed).items()
    ]
    return pd.DataFrame(rows)


def main() -> None:
    """Measure what is not measured yet, and write the table with its provenance in every row."""
    model, tokenizer = fl.load_model()
    cache = ROOT / "build" / "planted" / bits_of(model)[:16]
    cache.mkdir(parents=True, exist_ok=True)
    tables = []
    for cost, seed in tqdm([(cost, seed) for cost in COSTS for seed in SEEDS], unit="planting"):
        path = cache / f"{cost:g}-{seed}.json"
        if not path.is_file():
            start = time.perf_counter()
            table = measure(model, tokenizer, cost, seed).assign(
                seconds=round(time.perf_counter() - start)
            )
            part = path.with_suffix(".part")
            part.write_text(table.to_json(orient="records", double_precision=15), encoding="utf-8")
            part.replace(path)
        tables.append(pd.DataFrame(json.loads(path.read_text(encoding="utf-8"))))
    table = (
        pd.concat(tables)
        .sort_values(["cost", "seed"], kind="stable", ignore_index=True)
        .assign(**provenance(model))
    )
    path = ROOT / "data" / "results/planted.csv"
    table.to_csv(path, index=False, float_format="%.6g", lineterminator="\n")
    print(
        table.groupby(["cost", "score"], sort=False)
        .mean(numeric_only=True)
        .iloc[:, 1:10]
        .round(3)
        .to_string()
    )


if __name__ == "__main__":
    main()
