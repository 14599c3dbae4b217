"""Which neurons, as the options say: by a recipe's name, or by the scores that are named.

Contents: `check_choice`, `check_neutral_is_used` (before the model loads); `is_causal`,
`score_tables`, `ranking_of`, `choose_neurons`.
"""

import fairlab as fl
from fairlab.cli.pairs import neutral_pairs, pairs_for


def check_choice(method, bias_weight, fraction=0.002, also=()):
    """Refuse a method that is not known, and numbers out of range."""
    from fairlab import scores
    from fairlab.passes import check_option

    name, _, importance = method.partition("+")
    known = (*scores.DIFFERENCE_METHODS, *scores.CAUSAL_METHODS)
    if "+" not in method:
        known = ("guarded", *known, *also)
    check_option("method", name, known)
    if importance:
        check_option("method", importance, (*scores.WEIGHT_METHODS, "fisher"))
    if not 0 <= bias_weight <= 1:
        raise ValueError(f"bias_weight: expected a number from 0 to 1; got {bias_weight!r}")
    if not 0 < fraction < 1:
        raise ValueError(
            f"fraction: expected a float between 0 and 1 (0.002 is 0.2 %); got {fraction!r}"
        )


def check_neutral_is_used(method, pair_options):
    """Refuse neutral pairs where the method that chooses takes none, and nothing else does."""
    if (pair_options.neutral or pair_options.words) and not is_causal(method):
        raise ValueError(
            f"neutral, neutral_words: {method} takes no neutral pairs; leave them out, or take "
            "--method guarded"
        )


def is_causal(method):
    """Say whether a method asks what causes the gap: its scores are guarded, not hybrid."""
    return method == "guarded" or method.partition("+")[0] in ("attribution", "patching")


def score_tables(loaded, pairs, method, bias_weight, pair_options, batch_size):
    """Return the tables of a method: its score, and what that is made of."""
    from fairlab.recipes import guarded_tables

    bias_method, _, importance_method = method.partition("+")
    text = fl.load_text("calibration", pair_options.language)
    if is_causal(method):
        neutral = neutral_pairs(loaded[1], pair_options, pairs, "train")
        return guarded_tables(
            *loaded,
            pairs,
            # patching compares these token by token, too
            pairs_for(loaded[1], neutral, method, what="neutral pairs"),
            text=text,
            method="attribution" if method == "guarded" else bias_method,
            importance=importance_method or "fisher",
            batch_size=batch_size,
        )
    bias = fl.bias_scores(*loaded, pairs, method=bias_method, batch_size=batch_size)
    importance = fl.importance_scores(
        loaded[0], method=importance_method or "maw", tokenizer=loaded[1], text=text
    )
    combined = fl.hybrid_scores(bias, importance, bias_weight=bias_weight)
    return {"score": combined, "bias": bias, "importance": importance}


def ranking_of(tables):
    """Return the neurons with their scores as one table, the highest score first."""
    import pandas as pd

    index = pd.MultiIndex.from_product(map(range, tables["score"].shape))
    index.names = ["layer", "neuron"]
    columns = {name: values.flatten() for name, values in tables.items()}
    ranking = pd.DataFrame(columns, index).reset_index()
    return ranking.sort_values("score", ascending=False, kind="stable")


def choose_neurons(loaded, pairs, method, bias_weight, fraction, batch_size, pair_options):
    """Choose the neurons by a recipe's name, or by the scores that are named."""
    options = {"fraction": fraction, "batch_size": batch_size}
    if method == "guarded":
        neutral = neutral_pairs(loaded[1], pair_options, pairs, "train")
        text = fl.load_text("calibration", pair_options.language)
        return fl.guarded_cut(*loaded, pairs, neutral, text=text, **options)
    if method == "article":
        return fl.article_cut(*loaded, pairs, bias_weight=bias_weight, **options)
    tables = score_tables(loaded, pairs, method, bias_weight, pair_options, batch_size)
    scores = tables["score"]  # (layers, neurons)
    # hybrid scores are scaled within each layer, so only causal ones compare across layers
    if is_causal(method):
        how, scope = f"{method}, guarded, {len(pairs)} pairs", "model"
    else:
        how, scope = f"{method}, bias weight {bias_weight:g}, {len(pairs)} pairs", "layer"
    return fl.select_neurons(scores, fraction=fraction, scope=scope, how=how)
