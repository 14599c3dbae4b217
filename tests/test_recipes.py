"""The two whole ways to choose neurons, spelled out by hand."""

import inspect

import numpy as np
import pandas as pd
import pytest
import torch

import fairlab as fl
from fairlab import learning, recipes
from fairlab.gating import solve_gates
from tiny_models import tiny_model

TEMPLATES = [
    "My {} neighbor asked for help. The clerk said that",
    "The {} man waited. The guard thought he",
]
RACE = fl.build_pairs(TEMPLATES, [("Black", "white")], category="race")
AGE = fl.build_pairs(TEMPLATES, [("old", "young")], category="age")
PEOPLE = RACE + AGE
NEUTRAL = fl.build_pairs(TEMPLATES, [("tired", "hungry"), ("happy", "calm")], category="mood")


def test_the_guarded_cut_by_hand(tokenizer):
    model = tiny_model()
    text = "The market opens at seven. " * 20
    bias = fl.bias_scores(model, tokenizer, PEOPLE, method="attribution", relative=True)
    other = fl.bias_scores(model, tokenizer, NEUTRAL, method="attribution", relative=True)
    fisher = fl.importance_scores(model, method="fisher", tokenizer=tokenizer, text=text)
    by_hand = fl.select_neurons(fl.guarded_scores(bias, fisher, neutral=other), fraction=0.1)
    cut = fl.guarded_cut(model, tokenizer, PEOPLE, NEUTRAL, text=text, fraction=0.1)
    assert cut.neurons == by_hand.neurons
    assert {len(indices) for indices in cut.neurons.values()} == {2}  # of 24 in each layer
    assert "guarded, 4 pairs, 4 neutral ones" in cut.how
    tables = recipes.guarded_tables(model, tokenizer, PEOPLE, NEUTRAL, text=text)
    for name, by_hand in (("bias", bias), ("neutral", other), ("importance", fisher)):
        assert torch.equal(tables[name], by_hand), name
    swapped = fl.guarded_cut(model, tokenizer, NEUTRAL, PEOPLE, text=text, fraction=0.1)
    assert swapped.neurons != cut.neurons


def test_the_guarded_cut_takes_the_calibration_text(tokenizer, monkeypatch):
    seen = []

    def importance(model, *, method, tokenizer, text):
        seen.append((method, text))
        return torch.ones(3, 24)

    monkeypatch.setattr(recipes, "importance_scores", importance)
    fl.guarded_cut(tiny_model(), tokenizer, PEOPLE, NEUTRAL, fraction=0.1)
    assert seen == [("fisher", fl.load_text("calibration"))]


@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0])
def test_the_article_cut_by_hand(tokenizer, weight):
    model = tiny_model()
    bias = fl.bias_scores(model, tokenizer, [fl.ARTICLE_PAIR], method="article")
    scores = fl.hybrid_scores(bias, fl.importance_scores(model, method="maw"), bias_weight=weight)
    cut = fl.article_cut(model, tokenizer, [fl.ARTICLE_PAIR], fraction=0.1, bias_weight=weight)
    assert cut.neurons == fl.select_neurons(scores, fraction=0.1).neurons
    # nearly half of the neurons, so that another importance would choose others
    cut = fl.article_cut(model, tokenizer, [fl.ARTICLE_PAIR], fraction=0.45, bias_weight=weight)
    assert cut.neurons == fl.select_neurons(scores, fraction=0.45).neurons
    assert f"article, 1 pairs, bias weight {weight:g}" in cut.how


@pytest.mark.parametrize("fraction", [0.001, 0.0, 1.0, 2])
@pytest.mark.parametrize("recipe", ["guarded", "article"])
def test_a_bad_fraction_is_refused_before_anything_is_scored(
    tokenizer, monkeypatch, recipe, fraction
):
    def too_early(*_, **__):
        raise AssertionError("scored before the fraction was checked")

    for name in ("bias_scores", "importance_scores"):
        monkeypatch.setattr(recipes, name, too_early)
    with pytest.raises(ValueError, match="fraction: "):
        if recipe == "guarded":
            fl.guarded_cut(tiny_model(), tokenizer, PEOPLE, NEUTRAL, fraction=fraction)
        else:
            fl.article_cut(tiny_model(), tokenizer, PEOPLE, fraction=fraction)


def defaults(function):
    """Return the options of a function that have a default, with it."""
    parameters = inspect.signature(function).parameters.values()
    return {one.name: one.default for one in parameters if one.default is not one.empty}


def test_the_defaults_are_the_settings_that_were_chosen():
    """Those that the tables of the two searches hold, and that the article names."""
    guarded, gates = defaults(fl.guarded_scores), defaults(solve_gates)
    options = {"charge": 0.85, "protect": 0.03, "floor": 4.0}
    assert guarded == {"neutral": None, **options}
    assert gates == {"charge": 0.78, "floor": 3.0}
    assert defaults(fl.balanced_gates) == {"text": None, "fraction": 0.002, "goal": 1.1}
    for name, chosen in (("guard", options), ("gates_search", {"goal": 1.1, "count": 92, **gates})):
        table = pd.read_csv(fl.data_path(f"results/{name}.csv"))
        held = np.all([table[column] == value for column, value in chosen.items()], axis=0)
        assert held.sum() == 1, name
    assert defaults(fl.guarded_cut)["fraction"] == 0.002
    article = defaults(fl.article_cut)
    assert (article["fraction"], article["bias_weight"]) == (0.002, 0.5)


def test_the_docstring_of_learned_gates_names_its_constants():
    text = " ".join(fl.learned_gates.__doc__.split())
    pairs, neutral = learning.PAIRS_A_CATEGORY, learning.NEUTRAL_PAIRS
    assert f"draws {pairs} pairs of every category and {neutral} neutral ones" in text
    assert f"Adam (step size {learning.LEARNING_RATE})" in text
    assert f"+ {learning.LOSS_WEIGHT:g} · |change of the loss|" in text
