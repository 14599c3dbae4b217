"""Measure the article's surgery on its own pair at every setting of lesson 05's sliders, and freeze
the table.

    python experiments/surgery.py

Neurons a layer × scope × bias weight × scale: 54 cuts, scored on the article's pair, read on it, on
the same two words in sentences of the validation templates (held-out ones are kept for the lessons
that judge), and on plain prose. Writes `data/results/surgery.csv`.
"""

import itertools
import time

import frozen
import pandas as pd
from tqdm import tqdm

import fairlab as fl

SETTINGS = {
    "neurons_a_layer": (1, 3, 15),  # on average: with scope "model" the layers share them out
    "scope": ("layer", "model"),
    "bias_weight": (0.0, 0.5, 1.0),
    "scale": (0.0, 0.5, 2.0),
}


def read(model, tokenizer) -> dict[str, float | str]:
    """Return what a model does: four numbers and two texts."""
    pair = fl.ARTICLE_PAIR
    new_pairs = []
    for other in fl.load_pairs("race", split="validation"):
        if other.attribute_a == pair.attribute_a:
            new_pairs.append(other)
    text_a, text_b = fl.generate(model, tokenizer, [pair.prompt_a, pair.prompt_b])
    evaluation_text = frozen.evaluation_text(tokenizer, part=0)
    return {
        "metric": fl.article_metric(model, tokenizer, pair),
        "gap, own pair": fl.next_token_divergence(model, tokenizer, [pair]).item(),
        "gap, new sentences": fl.next_token_divergence(model, tokenizer, new_pairs).mean().item(),
        "perplexity": fl.perplexity(model, tokenizer, evaluation_text),
        "text_a": text_a,
        "text_b": text_b,
    }


def changes(before: dict[str, float | str], after: dict[str, float | str]) -> dict:
    """Return the relative changes of the numbers, and the new texts."""
    row = {}
    for name, value in after.items():
        row[name] = value if isinstance(value, str) else value / before[name] - 1
    return row


def main() -> None:
    """Measure, and write the relative changes."""
    start = time.perf_counter()
    model, tokenizer = fl.load_model()
    bias = fl.bias_scores(model, tokenizer, [fl.ARTICLE_PAIR], method="article")
    importance = fl.importance_scores(model, method="maw")
    before = read(model, tokenizer)
    rows = []
    for values in tqdm(list(itertools.product(*SETTINGS.values())), unit="cut"):
        setting = dict(zip(SETTINGS, values, strict=True))
        scores = fl.hybrid_scores(bias, importance, bias_weight=setting["bias_weight"])
        count = setting["neurons_a_layer"]
        if setting["scope"] == "model":
            count *= len(scores)  # layers
        selection = fl.select_neurons(scores, count=count, scope=setting["scope"])
        with fl.ablate(model, selection, scale=setting["scale"]):
            after = read(model, tokenizer)
        rows.append({**setting, **changes(before, after)})
    seconds = round(time.perf_counter() - start)
    table = pd.DataFrame(rows)
    print(table.iloc[:, :8].round(3).to_string())
    frozen.write_csv(table.assign(**frozen.provenance(model), seconds=seconds), "surgery.csv")


if __name__ == "__main__":
    main()
