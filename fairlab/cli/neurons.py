"""Which neurons, as the options say: by a recipe's name, or by the scores that are named.

Contents: `check_choice`, `check_neutral_is_used`, `check_size`, `chosen_on`, `pairs_taken` (before
the model loads); `is_causal`, `scope_of`, `score_tables`, `ranking_of`, `choose_neurons`.
"""

import fairlab as fl
from fairlab.cli.pairs import choosing_and_held_out, neutral_pairs, pairs_for


def check_choice(method, bias_weight, fraction=0.002, also=()):
    """Refuse a method that is not known, and numbers out of range."""
    from fairlab import scores
    from fairlab.passes import check_fraction, check_option, check_weight

    name, _, importance = method.partition("+")
    known = (*scores.DIFFERENCE_METHODS, *scores.CAUSAL_METHODS)
    if "+" not in method:
        known = ("guarded", *known, *also)
    check_option("method", name, known)
    if importance:
        check_option("method", importance, (*scores.WEIGHT_METHODS, "fisher"))
    check_weight("bias_weight", bias_weight)
    check_fraction(fraction)


def check_neutral_is_used(method, pair_options):
    """Refuse neutral pairs where the method that chooses takes none, and nothing else does."""
    if (pair_options.neutral or pair_options.words) and not is_causal(method):
        raise ValueError(
            f"neutral, neutral_words: {method} takes no neutral pairs; leave them out, or take "
            "--method guarded"
        )


def check_size(model, methods, fraction=None, cut=None):
    """Refuse a model or a fraction without neurons to cut, and a cut for another shape.

    It needs the configuration alone, and none of the weights.
    """
    from fairlab.gates import table_shape
    from fairlab.models import empty_model
    from fairlab.surgery import count_of_fraction, matching_blocks

    empty = empty_model(model)
    layers, width = table_shape(empty)
    if cut:
        matching_blocks(empty, getattr(cut, "selection", cut))
    for method in methods if fraction else ():
        count_of_fraction(fraction, width if scope_of(method) == "layer" else layers * width)


def chosen_on(tokenizer, options, choosing, methods):
    """Return what each method chooses on: its pairs, and neutral ones, or None if it takes none."""
    found = {}
    for method in methods:
        pairs, neutral = pairs_for(tokenizer, choosing, method), None
        if is_causal(method):
            neutral = neutral_pairs(tokenizer, options, pairs, "train")
            # patching compares these token by token, too
            neutral = pairs_for(tokenizer, neutral, method, argument="neutral")
        found[method] = pairs, neutral
    return found


def pairs_taken(model, method, options, fraction=None):
    """Return the pairs and the neutral pairs on which a method chooses.

    It needs the tokenizer of a model alone, and refuses what the method can't choose on, or cut.
    """
    from fairlab.models import load_tokenizer

    check_size(model, [method], fraction)
    tokenizer = load_tokenizer(model)
    choosing, _ = choosing_and_held_out(tokenizer, options)
    return chosen_on(tokenizer, options, choosing, [method])[method]


def is_causal(method):
    """Say whether a method asks what causes the gap: its scores are guarded, not hybrid."""
    return method == "guarded" or method.partition("+")[0] in ("attribution", "patching")


def scope_of(method):
    """Say where a method chooses: in each "layer", or in the "model" as a whole."""
    # hybrid scores are scaled within each layer, so only causal ones compare across layers
    return "model" if is_causal(method) and method != "guarded" else "layer"


def score_tables(loaded, pairs, neutral, method, bias_weight, pair_options, batch_size):
    """Return the tables of a method: its score, and what that is made of."""
    from fairlab.recipes import guarded_tables

    bias_method, _, importance_method = method.partition("+")
    text = fl.load_text("calibration", pair_options.language)
    if is_causal(method):
        return guarded_tables(
            *loaded,
            pairs,
            neutral,
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


def choose_neurons(loaded, pairs, neutral, method, bias_weight, fraction, batch_size, pair_options):
    """Choose the neurons by a recipe's name, or by the scores that are named."""
    options = {"fraction": fraction, "batch_size": batch_size}
    if method == "guarded":
        text = fl.load_text("calibration", pair_options.language)
        return fl.guarded_cut(*loaded, pairs, neutral, text=text, **options)
    if method == "article":
        return fl.article_cut(*loaded, pairs, bias_weight=bias_weight, **options)
    tables = score_tables(loaded, pairs, neutral, method, bias_weight, pair_options, batch_size)
    scores = tables["score"]  # (layers, neurons)
    weighed = "guarded" if is_causal(method) else f"bias weight {bias_weight:g}"
    how = f"{method}, {weighed}, {len(pairs)} pairs"
    return fl.select_neurons(scores, fraction=fraction, scope=scope_of(method), how=how)
