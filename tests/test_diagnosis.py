import itertools
import logging
import math
import re
import warnings
from copy import deepcopy
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from scipy import stats

import fairlab as fl
from fairlab.diagnosis import article_points
from tiny_models import FAMILIES, UNGATED, tiny_model

PAIR = fl.ARTICLE_PAIR


def swapped_for(word):
    return replace(PAIR, prompt_b=PAIR.prompt_b.replace("white", word), attribute_b=word)


def keep_output(outputs, module, inputs, output):
    outputs.append(output[0] if isinstance(output, tuple) else output)


def slow_metric(model, tokenizer, pair):
    """Compute the article's metric with hooks of its own, one prompt at a time, and plain means."""
    seen = {}
    handles = []
    for number, layer in enumerate(model.model.layers):
        modules = {
            "norm": layer.input_layernorm,
            "attention": layer.self_attn,
            "gate": layer.mlp.gate_proj,
            "up": layer.mlp.up_proj,
            "down": layer.mlp.down_proj,
            "mlp": layer.mlp,
        }
        for name, module in modules.items():
            outputs = seen[name, number] = []
            handles.append(module.register_forward_hook(partial(keep_output, outputs)))
    with torch.no_grad():
        for prompt in (pair.prompt_a, pair.prompt_b):
            model(**tokenizer(prompt, return_tensors="pt"))
    for handle in handles:
        handle.remove()
    values = []
    for a, b in seen.values():
        values.append((a - b).abs().double().mean().item())
    assert len(values) == 6 * len(model.model.layers)
    return sum(values) / len(values)


def test_the_metric_of_the_article_pair(model, tokenizer):
    assert fl.article_metric(model, tokenizer, PAIR) == pytest.approx(0.2538, abs=5e-5)


def test_the_metric_equals_the_slow_one(model, tokenizer, bos_tokenizer):
    for some_tokenizer in (tokenizer, bos_tokenizer):
        slow = slow_metric(model, some_tokenizer, PAIR)
        assert fl.article_metric(model, some_tokenizer, PAIR) == pytest.approx(slow, rel=1e-5)


@pytest.mark.parametrize("family", ["Llama, biases, tied", "Qwen2", "Gemma 3"])
def test_the_metric_equals_the_slow_one_in_other_families(tokenizer, family):
    tiny = tiny_model(family)
    assert fl.article_metric(tiny, tokenizer, PAIR) == pytest.approx(
        slow_metric(tiny, tokenizer, PAIR), rel=1e-5
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_metric_across_dtypes(tokenizer, dtype):
    half = tiny_model(dtype=dtype)
    whole = tiny_model(dtype=dtype).float()
    metrics = [fl.article_metric(m, tokenizer, PAIR) for m in (half, whole)]
    assert metrics[0] == pytest.approx(metrics[1], rel=0.02)


def test_optipfair_agrees(model, tokenizer):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from optipfair.bias import activations, metrics
    logging.getLogger().setLevel(logging.WARNING)
    a, b = activations.get_activation_pairs(model, tokenizer, PAIR.prompt_a, PAIR.prompt_b)
    theirs = metrics.calculate_bias_metrics(a, b)["overall_metrics"]["mean_difference"]
    assert fl.article_metric(model, tokenizer, PAIR) == pytest.approx(theirs, abs=1e-5)


@pytest.mark.parametrize(
    ("word", "metric"), [("blue", 0.259), ("tall", 0.279), ("tired", 0.348), ("happy", 0.386)]
)
def test_neutral_words_move_the_metric_more_than_white_does(model, tokenizer, word, metric):
    value = fl.article_metric(model, tokenizer, swapped_for(word))
    assert value == pytest.approx(metric, abs=6e-4)
    assert value > fl.article_metric(model, tokenizer, PAIR)


def test_layer_differences_by_hand(model, tokenizer):
    pairs = [replace(PAIR, category="one"), replace(swapped_for("tired"), category="two")]
    table = fl.layer_differences(model, tokenizer, pairs, points=["mlp_output", "gate_proj"])
    assert len(table) == 2 * 2 * 30
    ids = [tokenizer(prompt).input_ids for prompt in (pairs[1].prompt_a, pairs[1].prompt_b)]
    with fl.record(model, ["gate_proj"], layers=[7]) as activations:
        model(torch.tensor(ids))
    a, b = activations["gate_proj", 7][:, 1:]  # "A" comes before the word
    row = table.set_index(["category", "point", "layer"]).loc["two", "gate_proj", 7]
    assert row.difference == pytest.approx((a - b).abs().mean().item(), rel=1e-5)
    assert row.scale == pytest.approx((a.abs() + b.abs()).mean().item() / 2, rel=1e-5)
    assert row.relative == pytest.approx(row.difference / row.scale)
    assert math.isnan(row.difference_low)  # one pair has no interval
    assert row.pairs == 1


def test_layer_differences_have_intervals_and_a_neutral_band(tokenizer):
    tiny = tiny_model()
    pairs = fl.load_pairs("race", split="train")
    neutral = fl.load_pairs("time", split="train", words="any", kind="neutral")
    table = fl.layer_differences(tiny, tokenizer, pairs, neutral=neutral)
    apart = [fl.layer_differences(tiny, tokenizer, [pair]).difference for pair in pairs]
    assert table.difference.tolist() == pytest.approx(np.mean(apart, axis=0).tolist(), rel=1e-5)
    for value in ("difference", "relative"):
        assert (table[f"{value}_low"] < table[value]).all()
        assert (table[value] < table[f"{value}_high"]).all()
    alone = fl.layer_differences(tiny, tokenizer, [replace(pair, category="x") for pair in neutral])
    assert table.neutral_relative_high.tolist() == pytest.approx(alone.relative_high.tolist())


def jackknife_by_hand(difference, below, labels):
    """Leave out one cluster of pairs at a time, and return the variance of the ratio of sums and
    its degrees of freedom."""
    labels = np.array([str(label) for label in labels])
    estimate = difference.sum(0) / below.sum(0)
    squares = []
    for label in set(labels):
        rest = labels != label
        squares.append((difference[rest].sum(0) / below[rest].sum(0) - estimate) ** 2)
    freedom = len(squares) - 1
    return freedom / len(squares) * np.sum(squares, axis=0), freedom


@pytest.mark.parametrize("value", ["difference", "relative"])
def test_intervals_of_layers_leave_out_templates_and_words_in_turn(tokenizer, value):
    tiny = tiny_model()
    pairs = fl.load_pairs("race", split="train")
    table = fl.layer_differences(tiny, tokenizer, pairs)
    tables = [fl.layer_differences(tiny, tokenizer, [pair]) for pair in pairs]
    difference = np.stack([one.difference for one in tables])  # (pairs, layers)
    below = np.ones_like(difference)
    if value == "relative":
        below = np.stack([one.scale for one in tables])

    templates = [pair.template for pair in pairs]
    words = [(pair.attribute_a, pair.attribute_b) for pair in pairs]
    v1, freedom_1 = jackknife_by_hand(difference, below, templates)
    v2, freedom_2 = jackknife_by_hand(difference, below, words)
    v12, _ = jackknife_by_hand(difference, below, zip(templates, words, strict=True))
    variance = np.maximum.reduce([v1 + v2 - v12, v1, v2])
    freedom = (v1 + v2) ** 2 / (v1**2 / freedom_1 + v2**2 / freedom_2)
    half = stats.t.ppf(0.975, freedom) * np.sqrt(variance)
    assert (table[f"{value}_high"] - table[value]).to_numpy() == pytest.approx(half, rel=1e-3)
    assert (table[value] - table[f"{value}_low"]).to_numpy() == pytest.approx(half, rel=1e-3)


def test_a_model_without_an_input_norm_is_measured_at_the_other_points(tokenizer):
    olmo = tiny_model("OLMo 2")
    points = ["attention_output", "gate_proj", "up_proj", "down_proj", "mlp_output"]
    assert article_points(olmo) == points
    with fl.record(olmo, points) as activations:
        olmo(torch.tensor([tokenizer(p).input_ids for p in (PAIR.prompt_a, PAIR.prompt_b)]))
    by_hand = torch.stack([(x[0] - x[1]).abs().mean() for x in activations.values()]).mean().item()
    with pytest.warns(UserWarning, match="leaves out input_norm"):
        assert fl.article_metric(olmo, tokenizer, PAIR) == pytest.approx(by_hand, rel=1e-5)


def test_unequal_prompts_are_refused(model, tokenizer):
    with pytest.raises(ValueError, match="same number of tokens"):
        fl.article_metric(model, tokenizer, swapped_for("Luxembourgish"))
    with pytest.raises(TypeError, match="pair: expected one PromptPair, .* got str"):
        fl.article_metric(model, tokenizer, PAIR.prompt_a)


# ---- projections


def test_coordinates_are_those_of_a_singular_value_decomposition(model, tokenizer):
    projection = fl.project_pair(model, tokenizer, PAIR, point="mlp_output")
    ids = torch.tensor([tokenizer(prompt).input_ids for prompt in (PAIR.prompt_a, PAIR.prompt_b)])
    with fl.record(model, ["mlp_output"]) as activations:
        model(ids)
    for layer in (0, 8, 29):
        values = activations["mlp_output", layer].double().flatten(0, 1)
        centred = values - values.mean(0)
        u, s, _ = torch.linalg.svd(centred, full_matrices=False)
        expected = (u * s)[:, :2].reshape(2, -1, 2).numpy()
        scale = np.abs(expected).max()
        assert np.abs(np.abs(projection.coordinates[layer]) - np.abs(expected)).max() < 1e-3 * scale
        assert projection.explained[layer] == pytest.approx(
            (s**2 / (s**2).sum())[:2].numpy(), rel=1e-3
        )
        distance = (
            values.reshape(2, len(ids[0]), -1)[0] - values.reshape(2, len(ids[0]), -1)[1]
        ).norm(dim=-1)
        assert projection.distances[layer] == pytest.approx(distance.numpy(), rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("point", ["residual", "mlp_output"])
def test_start_leaves_positions_out_before_the_axes_are_fitted(model, bos_tokenizer, point):
    whole = fl.project_pair(model, bos_tokenizer, PAIR, point=point, start=0)
    for start in (1, 2):  # 2 is the first token that differs
        late = fl.project_pair(model, bos_tokenizer, PAIR, point=point, start=start)
        assert (late.tokens_a, late.tokens_b) == (whole.tokens_a[start:], whole.tokens_b[start:])
        assert late.distances == pytest.approx(whole.distances[:, start:], rel=1e-6)
        assert late.norms == pytest.approx(whole.norms[:, start:], rel=1e-6)
    late = fl.project_pair(model, bos_tokenizer, PAIR, point=point, start=1)
    ids = torch.tensor(
        [bos_tokenizer(prompt).input_ids for prompt in (PAIR.prompt_a, PAIR.prompt_b)]
    )
    with fl.record(model, [point]) as activations:
        model(ids)
    for layer in (0, 8, 29):
        values = activations[point, layer][:, 1:].double().flatten(0, 1).numpy()
        u, s, _ = np.linalg.svd(values - values.mean(0), full_matrices=False)
        expected = (u * s)[:, :2].reshape(2, -1, 2)
        assert late.coordinates[layer].shape == expected.shape
        assert (
            np.abs(np.abs(late.coordinates[layer]) - np.abs(expected)).max()
            < 1e-3 * np.abs(expected).max()
        )
        for axis in (0, 1):  # one sign for a whole axis
            cosine = (late.coordinates[layer] * expected)[..., axis].sum() / (
                expected[..., axis] ** 2
            ).sum()
            assert abs(cosine) == pytest.approx(1, abs=1e-3)
        assert late.explained[layer] == pytest.approx((s**2 / (s**2).sum())[:2], rel=1e-3)


def test_norms_are_the_mean_length_of_both_prompts(model, tokenizer):
    projection = fl.project_pair(model, tokenizer, PAIR)
    ids = torch.tensor([tokenizer(prompt).input_ids for prompt in (PAIR.prompt_a, PAIR.prompt_b)])
    with fl.record(model, ["residual"]) as activations:
        model(ids)
    for layer in range(30):
        values = activations["residual", layer].double().numpy()
        lengths = np.sqrt((values**2).sum(-1))
        assert projection.norms[layer] == pytest.approx((lengths[0] + lengths[1]) / 2, rel=1e-4)
    # otherwise the length of one prompt alone would pass
    assert (abs(lengths[0] - lengths[1]) > 1e-3 * lengths[0]).any()


def test_labels_stand_at_their_own_tokens_with_bos_too(model, tokenizer, bos_tokenizer):
    plain, with_bos = (fl.project_pair(model, t, PAIR, start=0) for t in (tokenizer, bos_tokenizer))
    assert plain.tokens_a[:3] == ("A", " Black", " man")
    assert with_bos.tokens_a[:3] == ("<|endoftext|>", "A", " Black")
    assert with_bos.tokens_b[2] == " white"
    for projection, word in ((plain, 1), (with_bos, 2)):
        assert (projection.distances[:, :word] == 0).all()
        assert (projection.distances[:, word:] > 0).all()
        assert projection.coordinates.shape == (30, 2, len(projection.tokens_a), 2)
        assert (projection.attribute_a, projection.attribute_b) == ("Black", "white")


def same_projection(one, other):
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in vars(one))


def test_bos_is_left_out_where_the_tokenizer_puts_it(tokenizer, bos_tokenizer):
    """Its representation is so large that the picture would show little else."""
    tiny = tiny_model()
    projection = fl.project_pair(tiny, bos_tokenizer, PAIR)
    assert projection.tokens_a[:2] == ("A", " Black") and projection.left_out == ("<|endoftext|>",)
    assert same_projection(projection, fl.project_pair(tiny, bos_tokenizer, PAIR, start=1))
    title = fl.plot_projection(projection, layer=1).get_title()
    assert title == "residual, layer 1, without BOS"
    frame = fl.pca_explorer({"p": [projection]}).frame(
        pair="p", point="residual", layer=1, shared=False
    )
    assert re.search(r"The two axes show \d+% of the variance, without BOS\.$", frame.sentence)
    # the first differing token may be the first of all
    other = fl.PromptPair("Two cooks met", "Five cooks met")
    assert fl.project_pair(tiny, bos_tokenizer, other).tokens_a[0] == "Two"

    plain = fl.project_pair(tiny, tokenizer, PAIR)
    assert plain.tokens_a[0] == "A" and plain.left_out == ()
    assert same_projection(plain, fl.project_pair(tiny, tokenizer, PAIR, start=0))
    assert fl.plot_projection(plain, layer=1).get_title() == "residual, layer 1"
    # what was written by hand is part of the prompt
    bos = "<|endoftext|>"
    by_hand = replace(PAIR, prompt_a=bos + PAIR.prompt_a, prompt_b=bos + PAIR.prompt_b)
    assert fl.project_pair(tiny, bos_tokenizer, by_hand).tokens_a[0] == bos


def test_what_a_chat_template_puts_in_front_is_left_out(bos_tokenizer):
    chatty = deepcopy(bos_tokenizer)
    chatty.chat_template = (
        "{{ bos_token }}<|im_start|>{% for m in messages %}{{ m.content }}\n{% endfor %}"
    )
    (pair,) = fl.chat_pairs(chatty, [PAIR], request=None)
    projection = fl.project_pair(tiny_model(), chatty, pair)
    assert projection.left_out == (chatty.bos_token,)
    assert projection.tokens_a[:3] == ("<|im_start|>", "A", " Black")
    title = fl.plot_projection(replace(projection, left_out=("[a]", "[b]")), layer=0).get_title()
    assert title == "residual, layer 0, without 2 special tokens"


def test_axes_keep_their_direction_from_layer_to_layer(model, tokenizer):
    coordinates = fl.project_pair(model, tokenizer, PAIR).coordinates
    for before, after in itertools.pairwise(coordinates):
        assert ((before * after).sum((0, 1)) >= 0).all()


@pytest.mark.parametrize("family", [*FAMILIES, *UNGATED])
def test_every_family_can_be_projected(family, tokenizer):
    projection = fl.project_pair(tiny_model(family), tokenizer, PAIR)
    assert np.isfinite(projection.coordinates).all()
    assert (projection.distances[:, 0] == 0).all()


def test_bad_input_of_a_projection_is_named(model, tokenizer):
    with pytest.raises(ValueError, match="point: expected one of input_norm.*'nose'"):
        fl.project_pair(model, tokenizer, PAIR, point="nose")
    with pytest.raises(ValueError, match="same number of tokens"):
        fl.project_pair(model, tokenizer, fl.PromptPair("The old cook", "The Luxembourgish cook"))
    for start in (-1, 2, 1.0, "1"):
        message = f"start: expected a whole number from 0 to 1; got {start!r}"
        with pytest.raises(ValueError, match=message):
            fl.project_pair(model, tokenizer, PAIR, start=start)
