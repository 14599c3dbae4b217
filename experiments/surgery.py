"""Measure the article's surgery on its own pair at every setting of lesson 05's sliders, and freeze
the table.

    python experiments/surgery.py [--draws]

Neurons a layer × scope × bias weight × scale: 54 cuts, scored on the article's pair, read on it, on
the same two words in sentences of the validation templates (held-out ones are kept for the lessons
that judge), and on plain prose. Writes `data/results/surgery.csv`.

Beside each of them ten random cuts with as many neurons in each layer and the same scale, read on
the new sentences alone: `data/results/surgery_draws.csv`. Of settings that are the same cut only
the first has draws. With `--draws` this file alone is written (13 minutes).
"""

import argparse
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
N_RANDOM = 10  # random cuts beside each setting


def cuts(model, tokenizer) -> list[tuple[dict, fl.NeuronSelection]]:
    """Return each setting with the neurons it chooses."""
    bias = fl.bias_scores(model, tokenizer, [fl.ARTICLE_PAIR], method="article")
    importance = fl.importance_scores(model, method="maw")
    chosen = []
    for values in itertools.product(*SETTINGS.values()):
        setting = dict(zip(SETTINGS, values, strict=True))
        scores = fl.hybrid_scores(bias, importance, bias_weight=setting["bias_weight"])
        count = setting["neurons_a_layer"]
        if setting["scope"] == "model":
            count *= len(scores)  # layers
        selection = fl.select_neurons(scores, count=count, scope=setting["scope"])
        chosen.append((setting, selection))
    return chosen


def new_pairs() -> list[fl.PromptPair]:
    """Return the pairs with the article's two words in the validation sentences."""
    pairs = []
    for other in fl.load_pairs("race", split="validation"):
        if other.attribute_a == fl.ARTICLE_PAIR.attribute_a:
            pairs.append(other)
    return pairs


def mean_gap(model, tokenizer, pairs: list[fl.PromptPair]) -> float:
    """Return the mean gap of some pairs, in nats."""
    return fl.next_token_divergence(model, tokenizer, pairs).mean().item()


def read(model, tokenizer) -> dict[str, float | str]:
    """Return what a model does: four numbers and two texts."""
    pair = fl.ARTICLE_PAIR
    text_a, text_b = fl.generate(model, tokenizer, [pair.prompt_a, pair.prompt_b])
    evaluation_text = frozen.evaluation_text(tokenizer, part=0)
    return {
        "metric": fl.article_metric(model, tokenizer, pair),
        "gap, own pair": mean_gap(model, tokenizer, [pair]),
        "gap, new sentences": mean_gap(model, tokenizer, new_pairs()),
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


def settings_table(model, tokenizer, chosen) -> pd.DataFrame:
    """Return what each setting changes, a row each."""
    before = read(model, tokenizer)
    rows = []
    for setting, selection in tqdm(chosen, unit="cut"):
        with fl.ablate(model, selection, scale=setting["scale"]):
            after = read(model, tokenizer)
        rows.append({**setting, **changes(before, after)})
    return pd.DataFrame(rows)


def draws_table(model, tokenizer, chosen, n_random: int = N_RANDOM) -> pd.DataFrame:
    """Return what random cuts of the size and scale of each setting do to the gap.

    Settings that are the same cut have the same draws in common: those of the first. The seed is
    the place of the setting among all, from 0, so that no two settings share a draw.
    """
    pairs = new_pairs()
    before = mean_gap(model, tokenizer, pairs)
    seen = []
    rows = []
    for seed, (setting, selection) in enumerate(tqdm(chosen, unit="setting")):
        change = (selection.neurons, setting["scale"])
        if change in seen:
            continue
        seen.append(change)
        for draw, drawn in enumerate(fl.random_selections(selection, n_random, seed=seed)):
            with fl.ablate(model, drawn, scale=setting["scale"]):
                after = mean_gap(model, tokenizer, pairs)
            row = {"seed": seed, "draw": draw, "gap, new sentences": after / before - 1}
            rows.append({**setting, **row})
    return pd.DataFrame(rows)


def main() -> None:
    """Measure, and write the relative changes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--draws", action="store_true", help="write the random cuts alone")
    options = parser.parse_args()
    model, tokenizer = fl.load_model()
    chosen = cuts(model, tokenizer)
    tables = {"surgery_draws": draws_table}
    if not options.draws:
        tables = {"surgery": settings_table, **tables}
    for name, measure in tables.items():
        start = time.perf_counter()
        table = measure(model, tokenizer, chosen)
        seconds = round(time.perf_counter() - start)
        print(table.drop(columns=["text_a", "text_b"], errors="ignore").round(3).to_string())
        frozen.write_csv(table.assign(**frozen.provenance(model), seconds=seconds), f"{name}.csv")


if __name__ == "__main__":
    main()
