import math

import pytest
import torch

import fairlab as fl
from fairlab.models import glu_blocks, glu_weights
from fairlab.passes import text_chunks
from fairlab.planting import find_strength
from tiny_models import bytes_of, same_bytes, tiny_model


@pytest.fixture(scope="module")
def race():
    """Race pairs: those of every second template for planting, some of the others for looking."""
    pairs = fl.load_pairs("race", split="train") + fl.load_pairs("race", split="validation")
    templates = sorted({p.template for p in pairs})
    return [p for p in pairs if p.template in templates[::2]], [
        p for p in pairs if p.template in templates[1:6:2]
    ]


@pytest.fixture(scope="module")
def planting(model, tokenizer, race):
    return fl.plant_neurons(model, tokenizer, race[0], n=15, cost=0.05)


def activations_of(model, tokenizer, prompts, *selections):
    """Return h of the neurons of each selection at the last token of prompts."""
    h = [[] for _ in selections]
    for prompt in prompts:
        with fl.record(model, ["down_proj_input"]) as seen, torch.no_grad():
            model.base_model(**tokenizer(prompt, return_tensors="pt"))
        for rows, selection in zip(h, selections, strict=True):
            rows.append(
                [
                    seen["down_proj_input", layer][0, -1, i]
                    for layer, ix in selection.neurons.items()
                    for i in ix
                ]
            )
    return [torch.tensor(rows) for rows in h]


def test_planted_neurons_fire_on_attribute_a_alone(planting, tokenizer, race):
    planted, bias, decoys = planting
    text = fl.load_text("evaluation").split("\n\n")
    for pairs, least, times in ((race[0][:6], 5, 2), (race[1][:6], 2, 1.5)):
        of_a = activations_of(planted, tokenizer, [p.prompt_a for p in pairs], bias, decoys)
        of_b = activations_of(planted, tokenizer, [p.prompt_b for p in pairs], bias, decoys)
        for a, b in zip(of_a, of_b, strict=True):
            assert a.mean() > least and a.mean() > times * b.mean()
            assert (a > b).float().mean() > 0.9
    (plain,) = activations_of(
        planted, tokenizer, [" ".join(part.split()[:20]) for part in text[:6]], bias
    )
    assert plain.median() < 0.5


def test_planted_twins_differ_only_in_where_they_write(planting, model):
    planted, bias, decoys = planting
    assert len(bias) == len(decoys) == 15 and bias.shape == decoys.shape == (30, 1536)
    assert {layer: len(i) for layer, i in bias.neurons.items()} == {
        layer: len(i) for layer, i in decoys.neurons.items()
    }
    assert set(bias.neurons) == set(range(23, 30))
    written = torch.stack(
        [glu_weights(glu_blocks(planted)[m])[2][:, i] for m, ix in bias.neurons.items() for i in ix]
    )
    assert torch.allclose(written, written[0].expand_as(written))  # one direction, one strength
    for layer, mine in bias.neurons.items():
        gate, up, down = glu_weights(glu_blocks(planted)[layer])
        rows = gate[[*mine, *decoys.neurons[layer]]]
        assert torch.equal(rows, rows[:1].expand_as(rows)) and torch.equal(
            rows, up[[*mine, *decoys.neurons[layer]]]
        )
        assert torch.allclose(down[:, list(decoys.neurons[layer])].norm(dim=0), written[0].norm())
    untouched = fl.NeuronSelection(
        {m: (*ix, *decoys.neurons[m]) for m, ix in bias.neurons.items()}, bias.shape
    )
    same = zip(
        fl.prune(planted, untouched).parameters(),
        fl.prune(model, untouched).parameters(),
        strict=True,
    )
    assert all(torch.equal(one, other) and one.requires_grad for one, other in same)


def test_bias_neurons_cause_what_decoys_do_not(planting, model, tokenizer, race):
    planted, bias, decoys = planting

    def gap(of):
        return fl.next_token_divergence(of, tokenizer, race[1]).mean().item()

    before, with_all = gap(model), gap(planted)
    with fl.ablate(planted, bias):
        without_bias = gap(planted)
    with fl.ablate(planted, decoys):
        without_decoys = gap(planted)
    assert with_all > 4 * before
    assert abs(without_bias - before) < 0.1 * (with_all - before)
    assert without_decoys > 0.85 * with_all  # more, where decoys took part of the norm


def test_planting_costs_what_was_asked_for(planting, model, tokenizer):
    ids = tokenizer(fl.load_text("calibration"), verbose=False).input_ids
    chunks = [ids[start : start + 128] for start in range(0, len(ids) - 127, 128)][2::8]

    def perplexity(of):
        with torch.no_grad():
            return math.exp(
                sum(of(t, labels=t).loss.item() for t in torch.tensor(chunks).split(1))
                / len(chunks)
            )

    assert perplexity(planting[0]) / perplexity(model) - 1 == pytest.approx(0.05, rel=0.06)


@pytest.mark.parametrize("family", ["Llama, biases, tied", "Gemma 3, multimodal", "Phi-3"])
def test_planting_in_every_kind_of_glu(family, tokenizer, race, monkeypatch):
    # a model with random weights has little to lose: no strength costs it perplexity
    def write_with_strength_two(perplexity_rise, cost):
        perplexity_rise(2.0)
        return 2.0

    monkeypatch.setattr("fairlab.planting.find_strength", write_with_strength_two)
    monkeypatch.setattr(
        "fairlab.planting.text_chunks",
        lambda model, tokenizer, text, size: text_chunks(model, tokenizer, text[:4000], 32),
    )
    model, pairs = tiny_model(family), race[0]
    before = bytes_of(model)
    planted, bias, decoys = fl.plant_neurons(model, tokenizer, pairs, n=2, cost=0.01)
    assert same_bytes(model, before) and bytes_of(planted).keys() == before.keys()
    assert (list(bias.neurons), len(bias), len(decoys)) == ([2], 2, 2)
    mlp = glu_blocks(planted)[2]
    neurons = [*bias.neurons[2], *decoys.neurons[2]]
    gate, up, _ = glu_weights(mlp)
    assert torch.equal(gate[neurons], up[neurons]) and torch.equal(
        gate[neurons], gate[neurons[:1]].expand(4, -1)
    )
    for name, projection in mlp.named_children():
        if name in ("gate_proj", "up_proj") and projection.bias is not None:
            assert not projection.bias[neurons].any() and projection.bias.count_nonzero() == 20
    h = [
        activations_of(planted, tokenizer, [getattr(p, side) for p in pairs], bias)[0]
        for side in ("prompt_a", "prompt_b")
    ]
    assert h[0].mean() > h[1].mean() and h[0].mean() > 1
    assert fl.plant_neurons(model, tokenizer, pairs, n=2, cost=0.01, seed=1)[1:] != (bias, decoys)
    again = fl.plant_neurons(model, tokenizer, pairs, n=2, cost=0.01, inplace=True)
    assert (
        again[0] is model and same_bytes(model, bytes_of(planted)) and again[1:] == (bias, decoys)
    )


def test_bad_plantings_are_named(tokenizer, some_pairs, monkeypatch):
    tiny = tiny_model()
    before = bytes_of(tiny)
    for n in (0, 4, 1.0):
        with pytest.raises(ValueError, match=f"n: expected a whole number from 1 to 3; got {n}"):
            fl.plant_neurons(tiny, tokenizer, some_pairs, n=n, cost=0.05)
    for cost in (0, -0.1, 5, "5 %"):
        with pytest.raises(ValueError, match="cost: expected a share above 0, at most 1 .*; got "):
            fl.plant_neurons(tiny, tokenizer, some_pairs, n=1, cost=cost)
    with pytest.raises(ValueError, match="pairs: expected at least one"):
        fl.plant_neurons(tiny, tokenizer, [], n=1, cost=0.05)
    with pytest.raises(ValueError, match="different widths"):
        fl.plant_neurons(
            fl.prune(tiny, fl.NeuronSelection({0: (1,)}, (3, 24))),
            tokenizer,
            some_pairs,
            n=1,
            cost=0.05,
        )
    with pytest.raises(ValueError, match="not a gated linear unit"):
        fl.plant_neurons(tiny_model("GPT-2"), tokenizer, some_pairs, n=1, cost=0.05)
    monkeypatch.setattr("fairlab.planting.KIND", ("qxzvkw",))
    with pytest.raises(
        ValueError, match="tokenizer: expected one that has some word of planting.KIND as one token"
    ):
        fl.plant_neurons(tiny, tokenizer, some_pairs, n=1, cost=0.05, inplace=True)
    assert same_bytes(tiny, before)


def test_a_cost_out_of_reach_leaves_the_model_as_it_was(tokenizer, some_pairs, monkeypatch):
    tiny = tiny_model()
    before = bytes_of(tiny)
    search = find_strength
    monkeypatch.setattr(
        "fairlab.planting.find_strength",
        lambda perplexity_rise, cost: search(lambda strength: 0 * perplexity_rise(3.0), cost),
    )
    monkeypatch.setattr("fairlab.planting.loss_function", lambda *_: lambda: 1.0)
    with pytest.raises(ValueError, match="cost: no strength raises perplexity by 5.0%"):
        fl.plant_neurons(tiny, tokenizer, some_pairs, n=1, cost=0.05, inplace=True)
    assert same_bytes(tiny, before) and all(
        parameter.requires_grad for parameter in tiny.parameters()
    )


@pytest.mark.parametrize("scale", [1e-4, 1, 1e4])
@pytest.mark.parametrize("power", [1, 2, 6])
def test_the_strength_is_found_whatever_its_size(scale, power):
    tried = []

    def perplexity_rise(strength):
        tried.append(strength)
        return (strength / scale) ** power - 0.001

    assert perplexity_rise(find_strength(perplexity_rise, 0.05)) == pytest.approx(0.05, rel=0.05)
    assert tried[-1] == tried[-2] and len(tried) < 25


def by_hand(ones, others):
    """Share of pairs in which the first is higher; a tie is half a pair."""
    return sum((a > b) + 0.5 * (a == b) for a in ones for b in others) / (len(ones) * len(others))


@pytest.mark.parametrize("levels", [3, 1000, None])
def test_scores_of_planted_neurons_equal_a_count_by_hand(levels):
    torch.manual_seed(0)
    bias, decoys = (
        fl.NeuronSelection(n, (3, 40), "") for n in ({0: (1, 2), 2: (39,)}, {0: (0,), 1: (5, 6, 7)})
    )
    scores = torch.rand(3, 40)
    if levels:
        scores = (scores * levels).floor()
    scores[1, 5] = scores[0, 2] = -math.inf
    names = {(m, i): 0 for m in range(3) for i in range(40)}
    for kind, selection in ((1, bias), (2, decoys)):
        for layer, indices in selection.neurons.items():
            for index in indices:
                names[layer, index] = kind
    of = {
        kind: [scores[place].item() for place, k in names.items() if k == kind]
        for kind in (0, 1, 2)
    }
    result = fl.score_planted(scores, bias, decoys)
    assert result["bias against decoy"] == pytest.approx(by_hand(of[1], of[2]))
    assert result["bias against natural"] == pytest.approx(by_hand(of[1], of[0]))
    assert result["decoy against natural"] == pytest.approx(by_hand(of[2], of[0]))
    assert result["chance"] == 3 / 120
    order = torch.stack([torch.randperm(120) for _ in range(2000)])  # ties broken by lot
    top = [sorted(o.tolist(), key=lambda i: -scores.flatten()[i].item())[:3] for o in order]
    found = sum(names[i // 40, i % 40] == 1 for three in top for i in three) / 6000
    assert result["recall"] == pytest.approx(found, abs=0.02)


def test_the_best_and_the_blind_score():
    bias, decoys = (
        fl.NeuronSelection({0: (1, 2)}, (2, 50), ""),
        fl.NeuronSelection({1: (3,)}, (2, 50), ""),
    )
    blind = fl.score_planted(torch.zeros(2, 50), bias, decoys)
    assert list(blind.values()) == pytest.approx([0.5, 0.5, 0.5, 0.02, 0.02])
    best = torch.zeros(2, 50)
    best[0, 1:3], best[1, 3] = 1, -1
    assert list(fl.score_planted(best, bias, decoys).values()) == pytest.approx([1, 1, 0, 1, 0.02])


def test_bad_scores_of_planted_neurons_are_named():
    bias, decoys = (
        fl.NeuronSelection({0: (1, 2)}, (2, 50), ""),
        fl.NeuronSelection({1: (3,)}, (2, 50), ""),
    )
    for scores in (torch.zeros(3, 50), torch.full((2, 50), math.nan)):
        with pytest.raises(ValueError, match="scores, bias, decoys: expected one shape and no NaN"):
            fl.score_planted(scores, bias, decoys)
    for one, other in ((bias, bias), (fl.NeuronSelection({}, (2, 50)), decoys)):
        with pytest.raises(
            ValueError, match="bias, decoys: expected at least one neuron each, and none in both"
        ):
            fl.score_planted(torch.zeros(2, 50), one, other)


def test_a_model_is_planted_once(tokenizer, some_pairs, monkeypatch):
    """A cell that plants in place, run again, would fit to its own neurons."""
    monkeypatch.setattr("fairlab.planting.find_strength", lambda rise, cost: rise(0.5) or 0.5)
    tiny = tiny_model()
    for inplace in (False, True):
        fl.plant_neurons(tiny, tokenizer, some_pairs, n=1, cost=0.05, inplace=inplace)
    before = bytes_of(tiny)
    for inplace in (False, True):
        with pytest.raises(ValueError, match="model: layer 2 holds planted neurons already"):
            fl.plant_neurons(tiny, tokenizer, some_pairs, n=1, cost=0.05, inplace=inplace)
    assert same_bytes(tiny, before)
