"""Measure the article's cut and its relatives beside their controls, and freeze the table.

    python experiments/controls.py

Six ways to choose neurons, each at 1, 3 and 15 neurons a layer, all scored on pairs whose template
and words are both in the train split (or on the article's own pair), are read on pairs whose
template and words were both held out, each beside 20 random cuts of the same size. Writes
`controls.csv` and `controls_draws.csv` in `data/results/`. A run that was stopped goes on from
`build/controls/`.
"""

import frozen

import fairlab as fl

COUNTS = (1, 3, 15)


def choose(model, tokenizer) -> dict[str, fl.NeuronSelection]:
    """Return the selections by name, "method · count"."""
    train = frozen.train_pairs()
    importance = fl.importance_scores(model, method="maw")
    one_pair = fl.bias_scores(model, tokenizer, [fl.ARTICLE_PAIR], method="article")
    article = fl.bias_scores(model, tokenizer, train, method="article")
    optipfair = fl.bias_scores(model, tokenizer, train, method="optipfair")
    repaired = fl.bias_scores(model, tokenizer, train, method="activation")
    scores = {
        "article, own pair": fl.hybrid_scores(one_pair, importance, bias_weight=0.5),
        "article, train pairs": fl.hybrid_scores(article, importance, bias_weight=0.5),
        "optipfair": fl.hybrid_scores(optipfair, importance, bias_weight=0.8),
        "bias alone": fl.hybrid_scores(article, importance, bias_weight=1.0),
        "importance alone": fl.hybrid_scores(article, importance, bias_weight=0.0),
        "repaired hybrid": fl.hybrid_scores(repaired, importance, bias_weight=0.5),
    }
    cuts = {}
    for method, table in scores.items():
        for count in COUNTS:
            cuts[f"{method} · {count}"] = fl.select_neurons(table, count=count, how=method)
    return cuts


def main() -> None:
    """Measure and freeze the article's cuts."""
    model, tokenizer = fl.load_model()
    comparison = fl.compare(
        model,
        tokenizer,
        choose(model, tokenizer),
        frozen.held_out(tokenizer, part=0),
        n_random=20,
        seed=frozen.SEED,
        cache=frozen.BUILD / "controls",
    )
    frozen.write(model, comparison.table, comparison.draws, "controls", seconds=comparison.seconds)


if __name__ == "__main__":
    main()
