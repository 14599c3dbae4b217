import math
from dataclasses import replace

import pytest
import torch

import fairlab as fl
from fairlab.models import glu_blocks
from tiny_models import FAMILIES, tiny_model

PAIR = fl.ARTICLE_PAIR


def article_algorithm(model, tokenizer, pairs, *, fraction, bias_weight):
    """Run the published algorithm step by step on plain matrices: the neurons cut in each layer, lowest index first.

    It shares no code with the package: MLP inputs come from hooks of its own, all else from the layers' own matrices.
    """
    layers = model.model.layers
    bias = [0.0] * len(layers)
    for pair in pairs:
        inputs = []
        for prompt in (pair.prompt_a, pair.prompt_b):
            seen = []
            handles = [
                layer.mlp.register_forward_pre_hook(lambda m, i, seen=seen: seen.append(i[0][0])) for layer in layers
            ]
            with torch.no_grad():
                model(**tokenizer(prompt, return_tensors="pt"))
            for handle in handles:
                handle.remove()
            inputs.append(seen)
        for number, layer in enumerate(layers):
            a, b = inputs[0][number], inputs[1][number]
            gate = (layer.mlp.gate_proj(a) - layer.mlp.gate_proj(b)).abs().mean(0)
            up = (layer.mlp.up_proj(a) - layer.mlp.up_proj(b)).abs().mean(0)
            bias[number] = bias[number] + (gate + up) / len(pairs)
    cut = {}
    for number, layer in enumerate(layers):
        gate, up = layer.mlp.gate_proj.weight, layer.mlp.up_proj.weight
        importance = gate.max(1)[0] + gate.min(1)[0].abs() + up.max(1)[0] + up.min(1)[0].abs()
        norm_bias, norm_importance = ((x - x.min()) / (x.max() - x.min() + 1e-8) for x in (bias[number], importance))
        fair = bias_weight * norm_bias + (1 - bias_weight) * (1 - norm_importance)
        width = len(fair)
        remove = min(int(fraction * width), width - 1)
        keep = torch.topk(fair, width - remove, largest=False).indices.tolist()
        cut[number] = tuple(sorted(set(range(width)) - set(keep)))
    return cut


def select(model, tokenizer, pairs, **options):
    bias = fl.bias_scores(model, tokenizer, pairs, method="article")
    scores = fl.hybrid_scores(bias, fl.importance_scores(model, method="maw"), bias_weight=0.5)
    return fl.select_neurons(scores, **options)


def test_article_mode_cuts_the_neurons_that_the_article_cuts(model, tokenizer):
    selection = select(model, tokenizer, [PAIR], fraction=0.002)
    assert selection.neurons == article_algorithm(model, tokenizer, [PAIR], fraction=0.002, bias_weight=0.5)
    assert {len(indices) for indices in selection.neurons.values()} == {3}
    assert len(selection) == 90


@pytest.mark.parametrize("family", ["Llama", "Llama, biases, tied", "Qwen2", "Gemma 3"])
def test_article_mode_on_several_pairs_and_families(tokenizer, some_pairs, family):
    tiny = tiny_model(family)
    selection = select(tiny, tokenizer, some_pairs, fraction=0.2)
    assert selection.neurons == article_algorithm(tiny, tokenizer, some_pairs, fraction=0.2, bias_weight=0.5)


def test_article_scores_are_means_over_pairs(tokenizer, some_pairs):
    tiny = tiny_model(dtype=torch.float64)
    together = fl.bias_scores(tiny, tokenizer, some_pairs, method="article")
    apart = [fl.bias_scores(tiny, tokenizer, [pair], method="article") for pair in some_pairs]
    assert torch.allclose(together, torch.stack(apart).mean(0), rtol=1e-6)


def test_optipfair_method_is_optipfairs(tokenizer):
    import logging
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from optipfair.bias import analyze_neuron_bias, compute_fairness_pruning_scores
    logging.getLogger().setLevel(logging.WARNING)
    tiny = tiny_model()
    pairs = [PAIR, fl.PromptPair("The old cook said", "The young cook said")]
    theirs = analyze_neuron_bias(tiny, tokenizer, [(p.prompt_a, p.prompt_b) for p in pairs], show_progress=False)
    ours = fl.bias_scores(tiny, tokenizer, pairs, method="optipfair")
    for layer in range(3):
        mean = (theirs[f"gate_proj_layer_{layer}"] + theirs[f"up_proj_layer_{layer}"]) / 2
        assert torch.allclose(ours[layer], mean, rtol=1e-4, atol=1e-6)
    hybrid = fl.hybrid_scores(ours, fl.importance_scores(tiny), bias_weight=0.8)
    fair = compute_fairness_pruning_scores(tiny, theirs, bias_weight=0.8)
    for layer in range(3):
        assert torch.allclose(hybrid[layer], fair[layer], atol=1e-5)


def test_the_activation_method_reads_the_input_of_down_proj(tokenizer, some_pairs):
    tiny = tiny_model()
    scores = fl.bias_scores(tiny, tokenizer, some_pairs)
    assert torch.equal(scores, fl.neuron_differences(tiny, tokenizer, some_pairs)["down_proj_input"])


def test_signed_scores_say_for_whom_a_neuron_is_more_active(tokenizer, some_pairs):
    tiny = tiny_model()
    swapped = [replace(pair, prompt_a=pair.prompt_b, prompt_b=pair.prompt_a) for pair in some_pairs]
    signed, turned = (fl.bias_scores(tiny, tokenizer, pairs, signed=True) for pairs in (some_pairs, swapped))
    assert torch.allclose(signed, -turned, atol=1e-7)
    assert (signed.abs() <= fl.bias_scores(tiny, tokenizer, some_pairs) + 1e-6).all()
    with pytest.raises(ValueError, match="signed: expected False with method='article'"):
        fl.bias_scores(tiny, tokenizer, some_pairs, method="article", signed=True)


@pytest.mark.parametrize("method", ["activation", "article", "optipfair"])
def test_a_neuron_that_sees_nothing_scores_zero(tokenizer, some_pairs, method):
    tiny = tiny_model()
    for projection in (tiny.model.layers[1].mlp.gate_proj, tiny.model.layers[1].mlp.up_proj):
        projection.weight.data[5] = 0
    scores = fl.bias_scores(tiny, tokenizer, some_pairs, method=method)
    assert scores[1, 5] == 0
    assert (scores >= 0).all()
    assert (scores > 0).sum() == scores.numel() - 1


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        (
            "maw",
            (0.9 + 0.5) + (2.0 + 1.0),
        ),  # max + |min| of each row: all of the gate row above zero still adds its min
        ("maw_printed", 0.9 + 2.0),
        ("vow", 0.08 / 2 + (1.0 + 4.0 + 1.0 - 3 * (2 / 3) ** 2) / 2),
        ("pon", (0.5 + 0.7 + 0.9) * (1.0 + 2.0 + 1.0)),
        ("l2", math.sqrt(0.25 + 0.49 + 0.81) + math.sqrt(1.0 + 4.0 + 1.0)),
    ],
)
def test_importance_by_hand(method, expected):
    tiny = tiny_model(hidden_size=3, num_attention_heads=1, num_key_value_heads=1, head_dim=4)
    mlp = glu_blocks(tiny)[1]
    mlp.gate_proj.weight.data[4] = torch.tensor([0.5, 0.7, 0.9])
    mlp.up_proj.weight.data[4] = torch.tensor([-1.0, 2.0, 1.0])
    assert fl.importance_scores(tiny, method=method)[1, 4].item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_importance_has_one_row_a_layer(family):
    for method in ("maw", "maw_printed", "vow", "pon", "l2"):
        scores = fl.importance_scores(tiny_model(family, torch.bfloat16), method=method)
        assert scores.shape == (3, 24)
        assert scores.dtype == torch.float32


def test_hybrid_by_hand():
    bias = torch.tensor([[0.0, 1.0, 4.0], [7.0, 7.0, 7.0]])
    importance = torch.tensor([[2.0, 6.0, 4.0], [1.0, 2.0, 3.0]])
    expected = torch.tensor([[0.25 * 0 + 0.75 * 1, 0.25 * 0.25, 0.25 + 0.75 * 0.5], [0.75, 0.375, 0.0]])
    assert torch.allclose(fl.hybrid_scores(bias, importance, bias_weight=0.25), expected, atol=1e-6)


def test_hybrid_knows_each_layer_only_by_itself():
    bias, importance = torch.rand(2, 50), torch.rand(2, 50)
    scaled = bias * torch.tensor([[1.0], [1000.0]])
    hybrids = [fl.hybrid_scores(b, importance) for b in (bias, scaled)]
    assert torch.allclose(*hybrids, atol=1e-6)


def test_bad_input_is_named(model, tokenizer):
    with pytest.raises(ValueError, match="method: expected one of activation, article, optipfair; got 'magic'"):
        fl.bias_scores(model, tokenizer, [PAIR], method="magic")
    with pytest.raises(ValueError, match="method: expected one of maw, maw_printed, vow, pon, l2; got 'magic'"):
        fl.importance_scores(model, method="magic")
    good = torch.rand(2, 3)
    for bias, importance, weight, message in (
        (good, torch.rand(2, 4), 0.5, r"one shape \(layers, neurons\); got \(2, 3\) and \(2, 4\)"),
        (good[0], good[0], 0.5, "one shape"),
        (good, good, 1.5, "bias_weight: expected a number from 0 to 1; got 1.5"),
        (good, torch.full((2, 3), math.nan), 0.5, "importance: expected finite values"),
        (torch.full((2, 3), math.inf), good, 0.5, "bias: expected finite values"),
    ):
        with pytest.raises(ValueError, match=message):
            fl.hybrid_scores(bias, importance, bias_weight=weight)


def test_nan_weights_are_found():
    tiny = tiny_model()
    tiny.model.layers[2].mlp.gate_proj.weight.data[0, 0] = math.nan
    with pytest.raises(ValueError, match="gate_proj or up_proj weights are not finite"):
        fl.importance_scores(tiny)


def test_a_model_without_a_gate_is_refused(tokenizer):
    import transformers

    gpt2 = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(n_layer=1, n_embd=16, n_head=2, vocab_size=49152)
    ).eval()
    with pytest.raises(ValueError, match="not a gated linear unit"):
        fl.bias_scores(gpt2, tokenizer, [PAIR])
    with pytest.raises(ValueError, match="not a gated linear unit"):
        fl.importance_scores(gpt2)
