"""Measure what cuts by causal scores bring and cost, beside the article's, and freeze the table and
the best cut.

    python experiments/tradeoff.py

Seven ways to choose, at 3 neurons a layer, four of them also at 9 (0.2 and 0.6 %), scored on pairs
whose template and words are both in the train split, read on pairs whose template and words were
both held out, each beside 20 random cuts of the same size; the cut `BEST` also beside random cuts
that are matched on damage, and on the mean size of the activation. The options of `guarded_scores`
were chosen on the validation templates. Writes `tradeoff.csv`, `tradeoff_draws.csv` and
`selection_guarded.json` in `data/results/`. A run that was stopped goes on from `build/tradeoff/`.
"""

import random

import frozen
import pandas as pd
import torch
from torch import Tensor

import fairlab as fl
from fairlab.passes import text_chunks

COUNTS = (3, 9)
AT_BOTH_COUNTS = ("guarded", "article, own pair", "article, train pairs")
CATEGORIES = (
    "race",
    "gender",
    "religion",
    "nationality",
    "age",
    "disability",
    "appearance",
    "socioeconomic",
)
CACHE = frozen.BUILD / "tradeoff"
BEST = "guarded · 3"


def choose(model, tokenizer) -> dict[str, fl.NeuronSelection]:
    """Return the selections by name, "method · count"."""
    attribution = frozen.guard_tables(model, tokenizer, "attribution")
    patching = frozen.guard_tables(model, tokenizer, "patching")
    bias, fisher = attribution["bias"], attribution["importance"]
    maw = fl.importance_scores(model, method="maw")
    one_pair = fl.bias_scores(model, tokenizer, [fl.ARTICLE_PAIR], method="article")
    article = frozen.kept(
        CACHE / "article.pt",
        lambda: fl.bias_scores(model, tokenizer, frozen.train_pairs(), method="article"),
    )
    scores = {
        "guarded": attribution["score"],
        "guarded, no neutral charge": fl.guarded_scores(bias, fisher),
        "guarded, patching": patching["score"],
        "attribution alone": bias,
        "article, own pair": fl.hybrid_scores(one_pair, maw, bias_weight=0.5),
        "article, train pairs": fl.hybrid_scores(article, maw, bias_weight=0.5),
    }
    cuts = {}
    for method, table in scores.items():
        for count in COUNTS if method in AT_BOTH_COUNTS else COUNTS[:1]:
            cuts[f"{method} · {count}"] = fl.select_neurons(table, count=count, how=method)
    for count in COUNTS:
        cut = kept_rounds(model, tokenizer, attribution, count)
        cuts[f"guarded, in rounds · {count}"] = cut
    return cuts


def kept_rounds(model, tokenizer, tables: dict[str, Tensor], count: int) -> fl.NeuronSelection:
    """Return the cut of `in_rounds`, from its file if there is one."""
    path = CACHE / f"in_rounds-{count}.json"
    if not path.is_file():
        cut = in_rounds(model, tokenizer, tables, count)
        path.write_text(cut.to_json(), encoding="utf-8")
    return fl.NeuronSelection.from_json(path.read_text(encoding="utf-8"))


def in_rounds(model, tokenizer, tables: dict[str, Tensor], count: int) -> fl.NeuronSelection:
    """Choose a third of the neurons, score again with these cut, choose the next third, and so on.

    Each new scoring takes 12 pairs of every category and 60 neutral ones, drawn anew, and counts as
    much as all former scorings together.
    """
    bias, fisher, neutral = tables["bias"], tables["importance"], tables["neutral"]
    draw = random.Random(frozen.SEED)
    chosen: dict[int, list[int]] = {layer: [] for layer in range(len(fisher))}
    for start in range(0, count, count // 3):
        cut = fl.NeuronSelection(chosen, tuple(fisher.shape))
        if start:
            new_bias, new_neutral = scores_under(model, tokenizer, cut, draw)
            bias, neutral = (bias + new_bias) / 2, (neutral + new_neutral) / 2
        scores = fl.guarded_scores(bias, fisher, neutral=neutral)
        for layer, indices in cut.neurons.items():
            scores[layer, list(indices)] = -torch.inf  # is cut already
        for layer, indices in fl.select_neurons(scores, count=count // 3).neurons.items():
            chosen[layer] += indices
    note = f"guarded, in rounds: {count} in each layer"
    return fl.NeuronSelection(chosen, tuple(fisher.shape), note)


def scores_under(
    model, tokenizer, cut: fl.NeuronSelection, draw: random.Random
) -> tuple[Tensor, Tensor]:
    """Score new draws of demographic and of neutral pairs while a cut is in place."""
    pairs = []
    for category in CATEGORIES:
        pairs += draw.sample(fl.load_pairs(category, split="train"), 12)
    neutral = draw.sample(frozen.train_pairs("neutral"), 60)
    options = {"method": "attribution", "relative": True}
    with fl.ablate(model, cut):
        return (
            fl.bias_scores(model, tokenizer, pairs, **options),
            fl.bias_scores(model, tokenizer, neutral, **options),
        )


def activation_sizes(model, tokenizer) -> Tensor:
    """Compute the mean of |h| of every neuron over the calibration text: (layers, neurons)."""
    chunks = text_chunks(model, tokenizer, fl.load_text("calibration"))
    total = 0
    for chunk in chunks:
        ids = torch.tensor([chunk], device=model.device)  # (1, tokens)
        with fl.record(model, ["down_proj_input"]) as activations, torch.no_grad():
            model(input_ids=ids, use_cache=False)
        rows = [h[0].abs().mean(0) for _, h in sorted(activations.items())]  # each (neurons,)
        total = total + torch.stack(rows)
    return total / len(chunks)


def in_order(tables: list[pd.DataFrame], names: list[str]) -> pd.DataFrame:
    """Join tables of different selections; sort the selections as in `names`."""
    return pd.concat(tables).set_index("selection").loc[names].reset_index()


def main() -> None:
    """Measure and freeze the cuts, and the one that lessons take."""
    model, tokenizer = fl.load_model()
    cuts = choose(model, tokenizer)
    others = [name for name in cuts if name != BEST]
    similar = {
        "damage": frozen.guard_tables(model, tokenizer)["importance"],
        "activation": activation_sizes(model, tokenizer),
    }
    comparisons = []
    for names, match in ((others, None), ([BEST], similar)):
        comparison = fl.compare(
            model,
            tokenizer,
            {name: cuts[name] for name in names},
            frozen.held_out(tokenizer, part=1),
            n_random=20,
            seed=frozen.SEED,
            metric=False,
            match=match,
            cache=CACHE,
        )
        comparisons.append(comparison)
    table = in_order([comparison.table for comparison in comparisons], list(cuts))
    draws = in_order([comparison.draws for comparison in comparisons], list(cuts))
    seconds = sum(comparison.seconds for comparison in comparisons)
    frozen.write(model, table, draws, "tradeoff", seconds=seconds)
    path = frozen.RESULTS / "selection_guarded.json"
    path.write_text(cuts[BEST].to_json() + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
