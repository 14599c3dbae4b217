import math
from dataclasses import replace

import pytest
import torch
from scipy.stats import spearmanr

import fairlab as fl
from fairlab import scores as score_functions
from fairlab.models import glu_blocks
from tiny_models import FAMILIES, note_rows, tiny_model

PAIR = fl.ARTICLE_PAIR
# a prompt that two pairs share, and two lengths
CROSSED = [
    fl.PromptPair("The old cook said", "The young cook said"),
    fl.PromptPair("The old cook said", "The tall cook said"),
    fl.PromptPair("My old friend read the letter and", "My young friend read the letter and"),
]


def article_algorithm(model, tokenizer, pairs, *, fraction, bias_weight):
    """Run the published algorithm step by step on plain matrices: the neurons cut in each layer,
    lowest index first.

    It shares no code with the package: MLP inputs come from hooks of its own, all else from the
    layers' own matrices.
    """
    layers = model.model.layers
    bias = [0.0] * len(layers)
    for pair in pairs:
        inputs = []
        for prompt in (pair.prompt_a, pair.prompt_b):
            seen = []
            handles = [
                layer.mlp.register_forward_pre_hook(lambda m, i, seen=seen: seen.append(i[0][0]))
                for layer in layers
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
        norm_bias, norm_importance = (
            (x - x.min()) / (x.max() - x.min() + 1e-8) for x in (bias[number], importance)
        )
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
    assert selection.neurons == article_algorithm(
        model, tokenizer, [PAIR], fraction=0.002, bias_weight=0.5
    )
    assert {len(indices) for indices in selection.neurons.values()} == {3}
    assert len(selection) == 90


@pytest.mark.parametrize("family", ["Llama", "Llama, biases, tied", "Qwen2", "Gemma 3"])
def test_article_mode_on_several_pairs_and_families(tokenizer, some_pairs, family):
    tiny = tiny_model(family)
    selection = select(tiny, tokenizer, some_pairs, fraction=0.2)
    assert selection.neurons == article_algorithm(
        tiny, tokenizer, some_pairs, fraction=0.2, bias_weight=0.5
    )


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
    theirs = analyze_neuron_bias(
        tiny, tokenizer, [(p.prompt_a, p.prompt_b) for p in pairs], show_progress=False
    )
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
    assert torch.equal(
        scores, fl.neuron_differences(tiny, tokenizer, some_pairs)["down_proj_input"]
    )


def test_signed_scores_say_for_whom_a_neuron_is_more_active(tokenizer, some_pairs):
    tiny = tiny_model()
    swapped = [replace(pair, prompt_a=pair.prompt_b, prompt_b=pair.prompt_a) for pair in some_pairs]
    signed, turned = (
        fl.bias_scores(tiny, tokenizer, pairs, signed=True) for pairs in (some_pairs, swapped)
    )
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
    assert fl.importance_scores(tiny, method=method)[1, 4].item() == pytest.approx(
        expected, rel=1e-6
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_importance_has_one_row_a_layer(family):
    for method in ("maw", "maw_printed", "vow", "pon", "l2"):
        scores = fl.importance_scores(tiny_model(family, torch.bfloat16), method=method)
        assert scores.shape == (3, 24)
        assert scores.dtype == torch.float32


def test_hybrid_by_hand():
    bias = torch.tensor([[0.0, 1.0, 4.0], [7.0, 7.0, 7.0]])
    importance = torch.tensor([[2.0, 6.0, 4.0], [1.0, 2.0, 3.0]])
    expected = torch.tensor(
        [[0.25 * 0 + 0.75 * 1, 0.25 * 0.25, 0.25 + 0.75 * 0.5], [0.75, 0.375, 0.0]]
    )
    assert torch.allclose(fl.hybrid_scores(bias, importance, bias_weight=0.25), expected, atol=1e-6)


def test_hybrid_knows_each_layer_only_by_itself():
    bias, importance = torch.rand(2, 50), torch.rand(2, 50)
    scaled = bias * torch.tensor([[1.0], [1000.0]])
    hybrids = [fl.hybrid_scores(b, importance) for b in (bias, scaled)]
    assert torch.allclose(*hybrids, atol=1e-6)


def test_each_method_is_a_function_of_its_own(tokenizer, some_pairs):
    tiny = tiny_model()
    for method in ("activation", "article", "optipfair"):
        table = score_functions.difference_scores(tiny, tokenizer, some_pairs, method=method)
        assert torch.equal(fl.bias_scores(tiny, tokenizer, some_pairs, method=method), table)
    for method, score in (
        ("attribution", score_functions.attribution_scores),
        ("patching", score_functions.patching_scores),
    ):
        for relative in (False, True):
            table = score(tiny, tokenizer, some_pairs, relative=relative)
            again = fl.bias_scores(tiny, tokenizer, some_pairs, method=method, relative=relative)
            assert torch.equal(again, table)
    gpt2 = tiny_model("GPT-2")
    for score in (
        score_functions.difference_scores,
        score_functions.attribution_scores,
        score_functions.patching_scores,
    ):
        with pytest.raises(ValueError, match="not a gated linear unit"):
            score(gpt2, tokenizer, [PAIR])
    with pytest.raises(ValueError, match="signed: expected False with method='optipfair'"):
        score_functions.difference_scores(tiny, tokenizer, [PAIR], method="optipfair", signed=True)
    with pytest.raises(ValueError, match="method: expected one of .*; got 'attribution'"):
        score_functions.difference_scores(tiny, tokenizer, [PAIR], method="attribution")
    with pytest.raises(ValueError, match="method: expected one of .*; got 'fisher'"):
        score_functions.weight_scores(tiny, method="fisher")


# ---- causal scores


def gap_of(model, tokenizer, pair, change):
    """Compute the gap of one pair by hand, with `change(layer, h)` in place of each h, shape (2,
    tokens, neurons)."""
    handles = [
        mlp.down_proj.register_forward_pre_hook(
            lambda m, inputs, layer=layer: (change(layer, inputs[0]),)
        )
        for layer, mlp in enumerate(glu_blocks(model))
    ]
    with torch.no_grad():
        logits = model(
            torch.tensor([tokenizer(p).input_ids for p in (pair.prompt_a, pair.prompt_b)])
        ).logits[:, -1]
    for handle in handles:
        handle.remove()
    a, b = logits.softmax(-1)
    m = (a + b) / 2
    return ((a * (a / m).log()).sum() + (b * (b / m).log()).sum()).item() / 2


def removing(layer, neuron, amount):
    def change(number, h):
        if number == layer:
            h = h.clone()
            h[..., neuron] *= 1 - amount
        return h

    return change


def replacing(layer, neuron, amount):
    def change(number, h):
        if number == layer:
            h = h.clone()
            h[..., neuron] += amount * (h[..., neuron].mean(0) - h[..., neuron])
        return h

    return change


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("method", "change"), [("attribution", removing), ("patching", replacing)])
def test_causal_scores_equal_finite_differences(family, method, change, tokenizer):
    tiny = tiny_model(family, torch.float64)
    scores = fl.bias_scores(tiny, tokenizer, CROSSED, method=method)
    assert (scores.shape, scores.dtype) == ((3, 24), torch.float32)
    # the models' norms compute in float32, whatever the dtype: a smaller step drowns in rounding
    step = 0.01
    for layer, neurons in enumerate(scores.abs().topk(3).indices.tolist()):
        for neuron in neurons:
            less, more = (
                sum(
                    gap_of(tiny, tokenizer, pair, change(layer, neuron, amount)) for pair in CROSSED
                )
                / len(CROSSED)
                for amount in (step, -step)
            )
            assert scores[layer, neuron].item() == pytest.approx(
                (more - less) / (2 * step), rel=0.01
            )


@pytest.mark.parametrize("method", ["attribution", "patching"])
def test_causal_scores_do_not_depend_on_the_batch(method, tokenizer, some_pairs):
    tiny = tiny_model(dtype=torch.float64)
    scores = fl.bias_scores(tiny, tokenizer, some_pairs, method=method)
    for batch_size in (2, 5):
        again = fl.bias_scores(tiny, tokenizer, some_pairs, method=method, batch_size=batch_size)
        assert torch.allclose(scores, again, rtol=1e-6, atol=1e-9)
    apart = [fl.bias_scores(tiny, tokenizer, [pair], method=method) for pair in some_pairs]
    assert torch.allclose(scores, torch.stack(apart).mean(0), rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("method", ["attribution", "patching"])
def test_relative_scores_are_shares_of_the_gap_of_each_category(method, tokenizer):
    tiny = tiny_model(dtype=torch.float64)
    race, age = fl.load_pairs("race")[:3], fl.load_pairs("age")[:1]
    parts = []
    for part in (race, age):
        gap = fl.next_token_divergence(tiny, tokenizer, part).mean()
        parts.append(fl.bias_scores(tiny, tokenizer, part, method=method) / gap.item())
    scores = fl.bias_scores(
        tiny, tokenizer, [race[0], *age, *race[1:]], method=method, relative=True
    )
    assert torch.allclose(scores, (parts[0] + parts[1]) / 2, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_causal_scores_in_half_precision(dtype, tokenizer, some_pairs):
    tiny = tiny_model()
    text = " ".join(pair.prompt_a for pair in some_pairs)
    for score in (
        lambda model: fl.bias_scores(model, tokenizer, some_pairs, method="attribution"),
        lambda model: fl.bias_scores(model, tokenizer, some_pairs, method="patching"),
        lambda model: fl.importance_scores(model, method="fisher", tokenizer=tokenizer, text=text),
    ):
        exact, rough = score(tiny), score(tiny_model(dtype=dtype))
        assert rough.dtype == torch.float32
        assert (exact - rough).norm() < 0.05 * exact.norm()


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("method", ["attribution", "patching", "fisher"])
def test_causal_scores_leave_the_model_as_it_was(method, fails, tokenizer):
    tiny = tiny_model("Llama, biases, tied")
    tiny.model.layers[1].requires_grad_(False)
    tiny.lm_head.weight.grad = torch.ones_like(tiny.lm_head.weight)
    asked = [parameter.requires_grad for parameter in tiny.parameters()]
    before = {name: tensor.clone() for name, tensor in tiny.state_dict().items()}
    if fails:
        tiny.model.norm.register_forward_hook(lambda *_: 1 / 0)

    def score():
        with torch.no_grad():  # the caller's setting does not matter, and stays
            if method == "fisher":
                fl.importance_scores(tiny, method=method, tokenizer=tokenizer, text="A short text.")
            else:
                fl.bias_scores(tiny, tokenizer, CROSSED, method=method)
            assert not torch.is_grad_enabled()

    if fails:
        with pytest.raises(ZeroDivisionError):
            score()
    else:
        score()
    assert torch.is_grad_enabled()
    assert [parameter.requires_grad for parameter in tiny.parameters()] == asked
    for name, parameter in tiny.named_parameters():
        if parameter is tiny.lm_head.weight:
            assert torch.equal(parameter.grad, torch.ones_like(parameter))
        else:
            assert parameter.grad is None, name
    assert all(torch.equal(before[name], tensor) for name, tensor in tiny.state_dict().items())
    assert not any(module._forward_pre_hooks for module in tiny.modules())


def test_a_neuron_that_is_cut_already_has_no_effect(tokenizer):
    tiny = tiny_model()
    with fl.ablate(tiny, fl.NeuronSelection({1: (2,)}, (3, 24))):
        scores = fl.bias_scores(tiny, tokenizer, CROSSED, method="attribution")
    assert scores[1, 2] == 0
    assert (scores != 0).sum() == scores.numel() - 1


def test_attribution_orders_neurons_as_removing_them_one_by_one_does(model, tokenizer):
    pairs = fl.load_pairs(split="train", words="any")[::90][:2]
    scores = fl.bias_scores(model, tokenizer, pairs, method="attribution")
    tried = scores.flatten().argsort()[576::1152]  # 40 of 46,080, evenly over the ranks
    shortlist = torch.full_like(scores, -math.inf)
    shortlist.view(-1)[tried] = scores.view(-1)[tried]
    exact = fl.refine_scores(model, tokenizer, shortlist, pairs, count=40)
    assert spearmanr(scores.view(-1)[tried], exact.view(-1)[tried]).statistic >= 0.85


# ---- importance on a text

TEXT = 30 * (
    "The tide comes in twice a day, and twice a day it goes out again. "
    "Nobody on the pier looked up. "
)


def mask_gradients(model, ids):
    """Compute ∂loss/∂m for an explicit mask, with the loss that transformers computes."""
    masks = torch.ones(3, 24, dtype=model.dtype, requires_grad=True)
    handles = [
        mlp.down_proj.register_forward_pre_hook(
            lambda m, inputs, layer=layer: (inputs[0] * masks[layer],)
        )
        for layer, mlp in enumerate(glu_blocks(model))
    ]
    loss = model(torch.tensor([ids]), labels=torch.tensor([ids])).loss
    for handle in handles:
        handle.remove()
    return torch.autograd.grad(loss, masks)[0]


@pytest.mark.parametrize("family", ["Llama, biases, tied", "Phi-3"])
def test_importance_from_text_equals_a_slow_reference(family, tokenizer, bos_tokenizer):
    tiny = tiny_model(family, torch.float64, max_position_embeddings=512)
    for some_tokenizer, bos in ((tokenizer, []), (bos_tokenizer, [bos_tokenizer.bos_token_id])):
        ids = tokenizer(TEXT).input_ids
        assert 512 < len(ids) < 768  # two chunks, and a rest that is dropped
        chunks = [bos + ids[:256], bos + ids[256:512]]
        slopes = torch.stack([mask_gradients(tiny, chunk) for chunk in chunks])
        expected = slopes.square().mean(0).sqrt()
        scores = score_functions.fisher_scores(tiny, some_tokenizer, TEXT)
        assert (scores.shape, scores.dtype) == ((3, 24), torch.float32)
        assert torch.allclose(scores.double(), expected, rtol=1e-4, atol=1e-10)


def test_a_text_shorter_than_a_chunk_is_one_chunk(tokenizer):
    tiny = tiny_model(dtype=torch.float64)
    ids = tokenizer("Two trains left at noon.").input_ids
    scores = score_functions.fisher_scores(tiny, tokenizer, "Two trains left at noon.")
    assert torch.allclose(scores.double(), mask_gradients(tiny, ids).abs(), rtol=1e-5)


def test_importance_from_text_needs_a_text(tokenizer):
    tiny = tiny_model()
    for options, message in (
        (
            {},
            r"^tokenizer and text: method='fisher' needs .*"
            r"fairlab.load_text\(\"calibration\"\); got None",
        ),
        ({"tokenizer": tokenizer}, "^text: method='fisher' needs"),
        ({"text": TEXT}, "^tokenizer: method='fisher' needs"),
    ):
        with pytest.raises(ValueError, match=message):
            fl.importance_scores(tiny, method="fisher", **options)
    with pytest.raises(ValueError, match="text: expected at least two tokens; got 1"):
        fl.importance_scores(tiny, method="fisher", tokenizer=tokenizer, text="a")
    tiny.model.norm.weight.data[0] = math.nan
    with pytest.raises(ValueError, match="are not finite"):
        fl.importance_scores(tiny, method="fisher", tokenizer=tokenizer, text=TEXT)


# ---- guarded scores


def test_guarded_scores_charge_for_neutral_pairs_by_default():
    bias, neutral = torch.tensor([[1.0, 1.0, 1.0]]), torch.tensor([[0.0, 0.5, -0.5]])
    scores = fl.guarded_scores(bias, torch.ones(1, 3), neutral=neutral, protect=0.0, floor=1.0)
    assert torch.allclose(
        scores, torch.tensor([[0.5, 0.575 / 2, 0.575 / 2]])
    )  # (1 − 0.85 · 0.5) / (1 + 1)


def test_guarded_by_hand():
    bias = torch.tensor([[3.0, 2.0, 1.0], [-1.0, 4.0, 0.5]])
    importance = torch.tensor([[1.0, 2.0, 0.0], [0.5, 9.0, 3.0]])
    mean = (1 + 4 + 0 + 0.25 + 81 + 9) / 6
    stays = -math.inf
    plain = fl.guarded_scores(bias, importance, protect=0.2, floor=0.5)
    expected = [
        [3 / (1 + mean / 2), 2 / (4 + mean / 2), 1 / (mean / 2)],
        [stays, stays, 0.5 / (9 + mean / 2)],
    ]
    assert torch.allclose(plain, torch.tensor(expected))
    neutral = torch.tensor([[1.0, -0.5, 0.25], [0.0, 0.0, -0.25]])
    charged = fl.guarded_scores(
        bias, importance, neutral=neutral, charge=2.0, protect=0.0, floor=0.5
    )
    expected = [
        [1 / (1 + mean / 2), 1 / (4 + mean / 2), 0.5 / (mean / 2)],
        [stays, 4 / (81 + mean / 2), stays],
    ]
    assert torch.allclose(charged, torch.tensor(expected))


def test_guarded_protects_the_share_it_says():
    bias, importance = torch.rand(4, 50) + 0.1, torch.rand(4, 50)
    scores = fl.guarded_scores(bias, importance, protect=0.25)
    kept = scores == -math.inf
    assert kept.sum() == 50
    assert importance[kept].min() > importance[~kept].max()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"neutral": torch.rand(2, 4)},
            r"bias, importance, neutral: expected tables of one shape .* and \(2, 4\)",
        ),
        ({"neutral": torch.full((2, 3), math.nan)}, "neutral: expected finite values"),
        ({"importance": torch.zeros(2, 3)}, "importance: expected values that are not all 0"),
        ({"charge": -1.0}, "charge: expected a number of at least 0; got -1.0"),
        ({"protect": 1.0}, "protect: expected a number from 0 to below 1; got 1.0"),
        ({"floor": 0.0}, "floor: expected a number above 0; got 0.0"),
        ({"floor": math.nan}, "floor: expected a number above 0; got nan"),
    ],
)
def test_guarded_refuses(options, message):
    good = {"bias": torch.rand(2, 3), "importance": torch.rand(2, 3)}
    with pytest.raises(ValueError, match=message):
        fl.guarded_scores(**{**good, **options})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"method": "attribution", "signed": True},
            "signed: expected False with method='attribution', which has a",
        ),
        (
            {"method": "patching", "signed": True},
            "signed: expected False with method='patching', which has a sign",
        ),
        (
            {"method": "article", "relative": True},
            "relative: expected False with method='article', which measures no",
        ),
        (
            {"method": "attribution", "batch_size": 1},
            "batch_size: expected a whole number of at least 2",
        ),
    ],
)
def test_causal_scores_refuse(options, message, tokenizer):
    with pytest.raises(ValueError, match=message):
        fl.bias_scores(tiny_model(), tokenizer, [PAIR], **options)


def test_causal_scores_find_nan_weights(tokenizer):
    tiny = tiny_model()
    tiny.model.norm.weight.data[0] = math.nan
    for method in ("attribution", "patching"):
        with pytest.raises(ValueError, match="are not finite"):
            fl.bias_scores(tiny, tokenizer, [PAIR], method=method)


def test_bad_input_is_named(model, tokenizer):
    with pytest.raises(
        ValueError, match="method: expected one of activation, .*, patching; got 'magic'"
    ):
        fl.bias_scores(model, tokenizer, [PAIR], method="magic")
    with pytest.raises(ValueError, match="method: expected one of maw, .*, fisher; got 'magic'"):
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


def test_layers_of_unequal_width_make_no_table(tokenizer):
    cut = fl.prune(tiny_model(), fl.NeuronSelection({1: (2,)}, (3, 24)))
    for method in ("attribution", "patching"):
        with pytest.raises(ValueError, match="its layers have different widths"):
            fl.bias_scores(cut, tokenizer, [PAIR], method=method)
    for method in ("maw", "fisher"):
        with pytest.raises(ValueError, match="its layers have different widths"):
            fl.importance_scores(cut, method=method, tokenizer=tokenizer, text=TEXT)


# ---- defaults, edges, and what is refused before a pass


def test_guarded_scores_have_the_defaults_that_were_chosen():
    ones = torch.ones(2, 50)
    scores = fl.guarded_scores(ones, ones)
    assert (scores == -math.inf).sum() == 3  # 0.03 of 100 neurons
    assert torch.allclose(scores[scores.isfinite()], torch.tensor(0.2))  # 1 / (1 + 4 · 1)


def test_a_charge_of_0_is_no_charge():
    bias, ones = torch.rand(2, 5) + 0.1, torch.ones(2, 5)
    free = fl.guarded_scores(bias, ones, neutral=ones, charge=0.0)
    assert torch.equal(free, fl.guarded_scores(bias, ones))


def test_a_range_as_small_as_what_is_added_to_it_is_halved():
    """N(x) = (x − min) / (max − min + 1e-8)."""
    bias = torch.tensor([[0.0, 1e-8]], dtype=torch.float64)
    assert fl.hybrid_scores(bias, bias, bias_weight=1.0)[0, 1].item() == pytest.approx(0.5)


def test_causal_scores_are_in_nats_unless_asked_for_shares(tokenizer):
    tiny = tiny_model()
    for method in ("attribution", "patching"):
        score = getattr(score_functions, f"{method}_scores")
        plain = fl.bias_scores(tiny, tokenizer, CROSSED, method=method, relative=False)
        assert torch.equal(score(tiny, tokenizer, CROSSED), plain)


def test_decision_scores_are_refused_before_a_pass(tokenizer):
    pair = fl.load_pairs("race", split="validation")[0]
    tiny_model()  # first, so that what is kept of it has slopes
    with torch.inference_mode():
        without_slopes = tiny_model()
    for refused, message in (
        (tiny_model("GPT-2"), "not a gated linear unit"),
        (without_slopes, "loaded inside torch.inference_mode"),
    ):
        rows = note_rows(refused)
        with pytest.raises(ValueError, match=message):
            score_functions.decision_scores(refused, tokenizer, [pair])
        assert rows == []


def test_unequal_pairs_of_a_later_category_are_refused_before_a_pass(tokenizer):
    tiny = tiny_model()
    rows = note_rows(tiny)
    unequal = fl.PromptPair("The old cook", "The Luxembourgish cook", category="other")
    with pytest.raises(ValueError, match="same number of tokens"):
        score_functions.patching_scores(tiny, tokenizer, [PAIR, unequal], relative=True)
    assert rows == []


def test_fisher_scores_name_what_is_no_text_and_no_tokenizer(tokenizer):
    tiny = tiny_model()
    with pytest.raises(TypeError, match="text: expected a string; got int 3"):
        score_functions.fisher_scores(tiny, tokenizer, 3)
    with pytest.raises(TypeError, match="tokenizer: expected the tokenizer"):
        score_functions.fisher_scores(tiny, None, TEXT)


def test_patching_runs_no_more_prompts_at_once_than_asked(tokenizer):
    """Two pairs that share a prompt are three prompts, and four where each has its own."""
    tiny = tiny_model(dtype=torch.float64)
    wanted = score_functions.patching_scores(tiny, tokenizer, CROSSED)
    for size in (2, 4):
        rows = note_rows(tiny)
        scores = score_functions.patching_scores(tiny, tokenizer, CROSSED, batch_size=size)
        assert max(rows) == size
        assert torch.allclose(scores, wanted, rtol=1e-6, atol=1e-9)
