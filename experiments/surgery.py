"""Measure the article's surgery on its own pair at every setting of lesson 05's sliders, and freeze
the table.

    python experiments/surgery.py

Neurons a layer × scope × bias weight × scale: 54 cuts, scored on the article's pair, read on it, on
the same two words in sentences of the validation templates (held-out ones are kept for the lessons
that judge), and on plain prose. Writes `data/results/surgery.csv`. Takes about ten minutes on 2 CPU
cores.
"""

import itertools
import time

import pandas as pd
from controls import ROOT, evaluation_text, provenance
from tqdm import tqdm

import fairlab as fl

SETTINGS = {
    "neurons_a_layer": (1, 3, 15),  # on average: with scope "model" the layers share them out
    "scope": ("layer", "model"),
    "bias_weight": (0.0, 0.5, 1.0),
    "scale": (0.0, 0.5, 2.0),
}


def measure(model, tokenizer) -> dict[str, float | str]:
    """Return what one setting does: two texts and four numbers."""
    pair = fl.ARTICLE_PAIR
    new = [
        p for p in fl.load_pairs("race", split="validation") if p.attribute_a == pair.attribute_a
    ]
    text_a, text_b = fl.generate(model, tokenizer, [pair.prompt_a, pair.prompt_b])
    return {
        "metric": fl.article_metric(model, tokenizer, pair),
        "gap, own pair": fl.next_token_divergence(model, tokenizer, [pair]).item(),
        "gap, new sentences": fl.next_token_divergence(model, tokenizer, new).mean().item(),
        "perplexity": fl.perplexity(model, tokenizer, evaluation_text(tokenizer, 0)),
        "text_a": text_a,
        "text_b": text_b,
    }


def main() -> None:
    """Measure, and write the relative changes with their provenance in every row."""
    start = time.perf_counter()
    model, tokenizer = fl.load_model()
    bias = fl.bias_scores(model, tokenizer, [fl.ARTICLE_PAIR], method="article")
    importance = fl.importance_scores(model, method="maw")
    before = measure(model, tokenizer)
    rows = []
    for values in tqdm(list(itertools.product(*SETTINGS.values())), unit="cut"):
        count, scope, weight, scale = values
        scores = fl.hybrid_scores(bias, importance, bias_weight=weight)
        layers = len(scores) if scope == "model" else 1
        selection = fl.select_neurons(scores, count=count * layers, scope=scope)
        with fl.ablate(model, selection, scale=scale):
            after = measure(model, tokenizer)
        change = {
            name: value if isinstance(value, str) else value / before[name] - 1
            for name, value in after.items()
        }
        rows.append(dict(zip(SETTINGS, values, strict=True)) | change)
    table = pd.DataFrame(rows).assign(
        **provenance(model), seconds=round(time.perf_counter() - start)
    )
    path = ROOT / "data" / "results/surgery.csv"
    table.to_csv(path, index=False, float_format="%.6g", lineterminator="\n")
    print(table.iloc[:, :8].round(3).to_string())


if __name__ == "__main__":
    main()
