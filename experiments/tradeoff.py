"""Measure what cuts by causal scores bring and cost, beside the article's, and freeze the table and
the best cut.

    python experiments/tradeoff.py

Seven ways to choose, at 3 and 9 neurons a layer (0.2 and 0.6 %), scored on pairs whose template and
words are both in the train split, read on pairs whose template and words were both held out, each
beside 20 random cuts of the same size, those in `TOUGHER` also beside random cuts that are matched
on damage. The options of `guarded_scores` were chosen on the validation templates. Writes
`data/results/tradeoff.csv` and `data/results/selection_guarded.json`. Takes about half an hour on 2
CPU cores; a run that was stopped goes on from `build/tradeoff/`.
"""

import random

import torch
from controls import ROOT, SEED, freeze

import fairlab as fl

COUNTS = (3, 9)
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
CACHE = ROOT / "build" / "tradeoff"
TOUGHER = ("guarded · 3",)


def scored(name: str, compute) -> torch.Tensor:
    """Compute a table of scores, or read it from an earlier run."""
    path = CACHE / f"{name}.pt"
    if not path.is_file():
        CACHE.mkdir(parents=True, exist_ok=True)
        torch.save(compute(), path)
    return torch.load(path)


def in_rounds(model, tokenizer, demographic, neutral, fisher, *, count: int) -> fl.NeuronSelection:
    """Choose a third of the neurons, score again with these cut, choose the next third, and so on.

    Each new look takes 12 pairs of every category and 60 neutral ones, drawn anew, and counts as
    much as all former looks together.
    """
    draw = random.Random(SEED)
    chosen: dict[int, list[int]] = {layer: [] for layer in range(len(fisher))}
    for start in range(0, count, count // 3):
        cut = fl.NeuronSelection(chosen, tuple(fisher.shape))
        if start:
            pairs = []
            for category in CATEGORIES:
                pairs += draw.sample(fl.load_pairs(category, split="train"), 12)
            neutral_pairs = draw.sample(fl.load_pairs(split="train", kind="neutral"), 60)
            with fl.ablate(model, cut):
                looks = [
                    fl.bias_scores(model, tokenizer, some, method="attribution", relative=True)
                    for some in (pairs, neutral_pairs)
                ]
            demographic, neutral = (demographic + looks[0]) / 2, (neutral + looks[1]) / 2
        scores = fl.guarded_scores(demographic, fisher, neutral=neutral)
        for layer, indices in cut.neurons.items():
            scores[layer, list(indices)] = -torch.inf
        for layer, indices in fl.select_neurons(scores, count=count // 3).neurons.items():
            chosen[layer] += indices
    return fl.NeuronSelection(
        chosen, tuple(fisher.shape), f"guarded, in rounds: {count} in each layer"
    )


def choose(model, tokenizer) -> dict[str, fl.NeuronSelection]:
    """Return the selections by name, "method · count"."""
    pairs, neutral = fl.load_pairs(split="train"), fl.load_pairs(split="train", kind="neutral")
    text = fl.load_text("calibration")
    fisher = scored(
        "fisher",
        lambda: fl.importance_scores(model, method="fisher", tokenizer=tokenizer, text=text),
    )
    causal = {
        (method, kind): scored(
            f"{method}-{kind}",
            lambda method=method, some=some: fl.bias_scores(
                model, tokenizer, some, method=method, relative=True
            ),
        )
        for method in ("attribution", "patching")
        for kind, some in (("pairs", pairs), ("neutral", neutral))
    }
    maw = fl.importance_scores(model, method="maw")
    own = fl.bias_scores(model, tokenizer, [fl.ARTICLE_PAIR], method="article")
    article = scored("article", lambda: fl.bias_scores(model, tokenizer, pairs, method="article"))
    attribution = causal["attribution", "pairs"]
    scores = {
        "guarded": fl.guarded_scores(attribution, fisher, neutral=causal["attribution", "neutral"]),
        "guarded, no neutral charge": fl.guarded_scores(attribution, fisher),
        "guarded, patching": fl.guarded_scores(
            causal["patching", "pairs"], fisher, neutral=causal["patching", "neutral"]
        ),
        "attribution alone": attribution,
        "article, own pair": fl.hybrid_scores(own, maw, bias_weight=0.5),
        "article, train pairs": fl.hybrid_scores(article, maw, bias_weight=0.5),
    }
    cuts = {
        f"{method} · {count}": fl.select_neurons(table, count=count, how=method)
        for method, table in scores.items()
        for count in COUNTS
        if count == 3 or method == "guarded" or method.startswith("article")
    }
    for count in COUNTS:
        path = CACHE / f"in_rounds-{count}.json"
        if not path.is_file():
            tables = attribution, causal["attribution", "neutral"], fisher
            path.write_text(
                in_rounds(model, tokenizer, *tables, count=count).to_json(), encoding="utf-8"
            )
        cuts[f"guarded, in rounds · {count}"] = fl.NeuronSelection.from_json(
            path.read_text(encoding="utf-8")
        )
    return cuts


def main() -> None:
    """Measure and freeze the cuts, and the one that lessons take."""
    model, tokenizer = fl.load_model()
    cuts = choose(model, tokenizer)
    freeze(
        model, tokenizer, cuts, "results/tradeoff.csv", CACHE, part=1, metric=False, tougher=TOUGHER
    )
    (ROOT / "data" / "results/selection_guarded.json").write_text(
        cuts["guarded · 3"].to_json() + "\n", encoding="utf-8"
    )


if __name__ == "__main__":
    main()
