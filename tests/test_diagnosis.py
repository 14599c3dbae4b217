import logging
import math
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers

import fairlab as fl
from tiny_models import tiny_model

PAIR = fl.ARTICLE_PAIR


def swapped_for(word):
    return replace(PAIR, prompt_b=PAIR.prompt_b.replace("white", word), attribute_b=word)


def slow_metric(model, tokenizer, pair):
    """Compute the article's metric with hooks of its own, one prompt at a time, and plain means."""
    seen = {}
    handles = []
    for number, layer in enumerate(model.model.layers):
        modules = {
            "norm": layer.input_layernorm, "attention": layer.self_attn, "gate": layer.mlp.gate_proj,
            "up": layer.mlp.up_proj, "down": layer.mlp.down_proj, "mlp": layer.mlp,
        }  # fmt: skip
        for name, module in modules.items():
            key = (name, number)
            handles.append(
                module.register_forward_hook(
                    lambda m, i, o, key=key: seen.setdefault(key, []).append(o)
                )
            )
    with torch.no_grad():
        for prompt in (pair.prompt_a, pair.prompt_b):
            model(**tokenizer(prompt, return_tensors="pt"))
    for handle in handles:
        handle.remove()
    values = []
    for a, b in seen.values():
        a, b = (x[0] if isinstance(x, tuple) else x for x in (a, b))
        values.append((a - b).abs().double().mean().item())
    assert len(values) == 6 * len(model.model.layers)
    return sum(values) / len(values)


def test_the_metric_of_the_article_pair(model, tokenizer):
    assert fl.article_metric(model, tokenizer, PAIR) == pytest.approx(0.2538, abs=5e-5)


def test_the_metric_equals_the_slow_one(model, tokenizer, bos_tokenizer):
    for some_tokenizer in (tokenizer, bos_tokenizer):
        slow = slow_metric(model, some_tokenizer, PAIR)
        assert fl.article_metric(model, some_tokenizer, PAIR) == pytest.approx(slow, rel=1e-6)


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
    row = table[(table.category == "two") & (table.point == "gate_proj") & (table.layer == 7)].iloc[
        0
    ]
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


def test_a_model_without_an_input_norm_is_measured_at_the_other_points(tokenizer):
    config = transformers.Olmo2Config(
        vocab_size=49152, hidden_size=32, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, pad_token_id=0,
    )  # fmt: skip
    olmo = transformers.Olmo2ForCausalLM(config).eval()
    points = ["attention_output", "gate_proj", "up_proj", "down_proj", "mlp_output"]
    with fl.record(olmo, points) as activations:
        olmo(torch.tensor([tokenizer(p).input_ids for p in (PAIR.prompt_a, PAIR.prompt_b)]))
    by_hand = torch.stack([(x[0] - x[1]).abs().mean() for x in activations.values()]).mean().item()
    assert fl.article_metric(olmo, tokenizer, PAIR) == pytest.approx(by_hand, rel=1e-5)


def test_unequal_prompts_are_refused(model, tokenizer):
    with pytest.raises(ValueError, match="same number of tokens"):
        fl.article_metric(model, tokenizer, swapped_for("Luxembourgish"))
    with pytest.raises(TypeError, match="expected PromptPair items; got str"):
        fl.article_metric(model, tokenizer, PAIR.prompt_a)
