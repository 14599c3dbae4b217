"""What holds of any model, any pairs and any cut, tried on random ones.

Each property runs on a handful of examples, the same ones each time. Models know sixty words, so
that a pass takes milliseconds.
"""

import json
import random
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

import fairlab as fl
import tiny_models
from fairlab.gates import gate
from fairlab.models import glu_blocks, glu_weights
from tiny_models import FAMILIES, bytes_of, same_bytes

pytest.importorskip("hypothesis")
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

SIXTY = """
man woman boy girl cook nurse judge pilot old young tall kind the a in at on from said that met saw
heard of and we they city farm ship train tide day night rain salt bread coin song door king queen
fox owl oak elm red blue green left right far near first last one two
"""
WORDS = SIXTY.split()
TEMPLATES = ("the {} said that", "we met a {} at the old farm and", "{} of the city", "a tall {}")
KINDS = (("man", "woman", "gender"), ("boy", "girl", "gender"), ("old", "young", "age"))
METHODS = ("activation", "article", "optipfair", "attribution", "patching")
TEXT = " ".join(random.Random(0).choices(WORDS, k=300))
VOCABULARY = {word: number for number, word in enumerate(("<unk>", "<pad>", *WORDS))}


def examples(count):
    return settings(
        max_examples=count,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],  # to shrink what failed would take minutes
        suppress_health_check=list(HealthCheck),
    )


def make_tokenizer(side="right"):
    backend = Tokenizer(WordLevel(VOCABULARY, unk_token="<unk>"))
    backend.pre_tokenizer = Whitespace()
    names = {"unk_token": "<unk>", "pad_token": "<pad>", "padding_side": side}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names)


TOKENIZER = make_tokenizer()


@st.composite
def models(draw, dtypes=(torch.float32,)):
    """A model of any family and shape, and with any of its parameters at rest."""
    sizes = {
        "vocab_size": len(VOCABULARY),
        "hidden_size": draw(st.sampled_from([16, 32])),
        "intermediate_size": draw(st.integers(3, 20)),
        "num_hidden_layers": draw(st.integers(1, 3)),
        "num_key_value_heads": draw(st.sampled_from([1, 2, 4])),
        "eos_token_id": 0,
        "bos_token_id": 0,
        "pad_token_id": 1,
    }
    family = draw(st.sampled_from(sorted(FAMILIES)))
    # not by `tiny_model`, which keeps what it builds
    model, _ = tiny_models._built.__wrapped__(family, draw(st.sampled_from(dtypes)), **sizes)
    at_rest = random.Random(draw(st.integers(0, 99)))
    for parameter in model.parameters():
        parameter.requires_grad_(at_rest.random() < 0.7)
    return model


def shape_of(model):
    return len(glu_blocks(model)), glu_blocks(model)[0].down_proj.in_features


def draw_cut(data, model, equal=False):
    layers, width = shape_of(model)
    count = data.draw(st.integers(1, width - 1)) if equal else None
    neurons = {}
    for layer in range(layers):
        size = count if equal else data.draw(st.integers(0, width - 1))
        indices = st.lists(st.integers(0, width - 1), min_size=size, max_size=size, unique=True)
        neurons[layer] = tuple(data.draw(indices))
    return fl.NeuronSelection(neurons, (layers, width))


@st.composite
def pair_lists(draw, categories=("gender", "age")):
    """Three to six different pairs."""
    every = []
    for template in TEMPLATES:
        for a, b, category in KINDS:
            prompts = template.format(a), template.format(b)
            every.append(fl.PromptPair(*prompts, a, b, category, template))
    every = [pair for pair in every if pair.category in categories]
    return draw(st.permutations(every))[: draw(st.integers(3, 6))]


def logits_of(model):
    ids = TOKENIZER("the old king met a nurse", return_tensors="pt").input_ids
    with torch.no_grad():
        return model(ids).logits


def close(one, other, share=1e-5):
    return (one - other).abs().max() <= share * max(one.abs().max(), other.abs().max(), 1e-6)


def state_of(model):
    """Everything that must be as it was, but the weights."""
    modules = dict(model.named_modules())
    hooks = {
        name: (len(m._forward_hooks), len(m._forward_pre_hooks)) for name, m in modules.items()
    }
    return {
        "asks for gradients": {n: w.requires_grad for n, w in model.named_parameters()},
        "has gradients": {n: w.grad is None for n, w in model.named_parameters()},
        "mode": {name: module.training for name, module in modules.items()},
        "attributes": {name: sorted(vars(module)) for name, module in modules.items()},
        "hooks": hooks,
        "config": model.config.to_json_string(),
        "generation": model.generation_config.to_json_string(),
        "draws": (torch.get_rng_state().tolist(), random.getstate()),
        "NumPy's draws": np.random.get_state()[1].tolist(),
        "settings": (torch.get_default_dtype(), torch.is_grad_enabled()),
    }


# ---- what is measured or tried leaves no trace


@examples(6)
@given(models((torch.float32, torch.float16)), pair_lists(), st.data())
def test_every_byte_flag_and_draw_stays(model, pairs, data):
    cut = draw_cut(data, model)
    shape = shape_of(model)
    before, state = bytes_of(model), state_of(model)
    with fl.ablate(model, cut, scale=data.draw(st.floats(-2, 2))), fl.record(model, ["residual"]):
        logits_of(model)
    with gate(model, torch.full(shape, 0.5), torch.ones(shape)):
        logits_of(model)
    with pytest.raises(KeyError), fl.ablate(model, cut):
        raise KeyError
    for method in METHODS:
        scores = fl.bias_scores(model, TOKENIZER, pairs, method=method)
    fl.refine_scores(model, TOKENIZER, scores, pairs, count=2)
    for method in ("maw", "fisher"):
        fl.importance_scores(model, method=method, tokenizer=TOKENIZER, text=TEXT)
    fl.next_token_divergence(model, TOKENIZER, pairs)
    fl.prune(model, cut)
    fl.perplexity(model, TOKENIZER, TEXT)
    after = state_of(model)
    assert same_bytes(model, before)
    assert {name for name in state if state[name] != after[name]} == set()


@examples(12)
@given(models(), st.data())
def test_a_cut_is_the_silence_of_its_neurons(model, data):
    cut = draw_cut(data, model)
    with fl.ablate(model, cut):
        silent = logits_of(model)
    assert close(logits_of(fl.prune(model, cut)), silent, 1e-4)


@examples(8)
@given(models((torch.float32, torch.bfloat16)), st.data())
def test_cutting_nothing_changes_nothing(model, data):
    plain, nothing = logits_of(model), fl.NeuronSelection({}, shape_of(model))
    with fl.ablate(model, nothing):
        assert torch.equal(logits_of(model), plain)
    with fl.ablate(model, draw_cut(data, model), scale=1):
        assert torch.equal(logits_of(model), plain)
    whole = fl.prune(model, nothing)
    assert torch.equal(logits_of(whole), plain) and same_bytes(whole, bytes_of(model))
    assert len(fl.removed_neurons(model, model)) == 0


# ---- scores do not depend on what they should not


@examples(5)
@given(models((torch.float64,)), pair_lists(), st.randoms(use_true_random=False))
def test_order_batch_padding_and_direction_do_not_matter(model, pairs, draw):
    mixed = draw.sample(pairs, len(pairs))
    swapped = [replace(pair, prompt_a=pair.prompt_b, prompt_b=pair.prompt_a) for pair in pairs]
    left = make_tokenizer("left")
    for options in (*({"method": method} for method in METHODS), {"signed": True}):
        scores = fl.bias_scores(model, TOKENIZER, pairs, **options)
        assert scores.abs().max() > 0
        assert close(fl.bias_scores(model, TOKENIZER, mixed, **options), scores)
        assert close(fl.bias_scores(model, TOKENIZER, pairs, batch_size=2, **options), scores)
        assert close(fl.bias_scores(model, left, pairs, **options), scores)
        sign = -1 if "signed" in options else 1
        assert close(fl.bias_scores(model, TOKENIZER, swapped, **options), sign * scores)


@examples(6)
@given(models((torch.float64,)), pair_lists(), st.integers(0, 99))
def test_neurons_in_another_order_have_their_scores(model, pairs, seed):
    layers, width = shape_of(model)
    draw = torch.Generator().manual_seed(seed)
    orders = torch.stack([torch.randperm(width, generator=draw) for _ in range(layers)])
    other = deepcopy(model)
    for mlp, order in zip(glu_blocks(other), orders, strict=True):
        fused = hasattr(mlp, "gate_up_proj")
        rows = torch.cat([order, order + width]) if fused else order
        for name in ("gate_up_proj",) if fused else ("gate_proj", "up_proj"):
            for parameter in getattr(mlp, name).parameters():
                parameter.data = parameter.data[rows]
        mlp.down_proj.weight.data = mlp.down_proj.weight.data[:, order]

    def tables(of):
        for method in METHODS:
            yield fl.bias_scores(of, TOKENIZER, pairs, method=method)
        for method in ("maw", "pon", "fisher"):
            yield fl.importance_scores(of, method=method, tokenizer=TOKENIZER, text=TEXT)

    for one, same in zip(tables(model), tables(other), strict=True):
        assert close(one.gather(1, orders), same)


@examples(20)
@given(st.integers(1, 4), st.integers(2, 9), st.integers(0, 99))
def test_hybrid_weights_of_0_and_1_are_the_pure_scores(layers, width, seed):
    draw = torch.Generator().manual_seed(seed)
    bias, importance = torch.randn(2, layers, width, generator=draw)
    by_bias = fl.hybrid_scores(bias, importance, bias_weight=1)
    by_importance = fl.hybrid_scores(bias, importance, bias_weight=0)
    assert torch.equal(by_bias.argsort(1), bias.argsort(1))
    assert torch.equal(by_importance.argsort(1), (-importance).argsort(1))


# ---- what is written comes back


def gates_of(shape):
    layers, width = shape
    number = st.floats(allow_nan=False, allow_infinity=False)
    row = st.dictionaries(st.integers(0, width - 1), st.tuples(number, number), max_size=width - 1)
    rows = st.dictionaries(st.integers(0, layers - 1), row)
    return rows.map(lambda rows: fl.NeuronGates(rows, shape, "any"))


@examples(40)
@given(st.tuples(st.integers(1, 5), st.integers(2, 9)).flatmap(gates_of), st.text())
def test_json_comes_back(gates, how):
    gates = replace(gates, how=how)
    assert fl.NeuronGates.from_json(gates.to_json()) == gates
    cut = gates.selection
    assert fl.NeuronSelection.from_json(cut.to_json()) == cut
    assert json.loads(cut.to_json())["how"] == how


@examples(4)
@given(models((torch.float32, torch.bfloat16)), st.data())
def test_what_is_saved_and_loaded_is_saved_again_as_it_is(tmp_path_factory, model, data):
    folder = tmp_path_factory.mktemp("saved")
    fl.save_model(fl.prune(model, draw_cut(data, model)), TOKENIZER, folder / "one")
    first, tokenizer = fl.load_model(folder / "one", dtype=model.dtype)
    fl.save_model(first, tokenizer, folder / "two")
    second, _ = fl.load_model(folder / "two", dtype=model.dtype)
    assert same_bytes(second, bytes_of(first))
    configs = [
        json.loads((folder / n / "config.json").read_text(encoding="utf-8")) for n in ("one", "two")
    ]
    assert configs[0] == configs[1]
    assert len(fl.removed_neurons(first, second)) == 0


@examples(10)
@given(models(), st.data())
def test_a_second_cut_is_found_in_the_first_model(model, data):
    layers, width = shape_of(model)
    once = draw_cut(data, model, equal=True)
    cut = fl.prune(model, once)
    left = width - len(once.neurons[0])
    again = draw_cut(data, cut) if left > 1 else fl.NeuronSelection({}, (layers, left))
    twice = fl.prune(cut, again)
    expected = {}
    for layer in range(layers):
        kept = [index for index in range(width) if index not in once.neurons[layer]]
        second = [kept[index] for index in again.neurons.get(layer, ())]
        expected[layer] = tuple(sorted((*once.neurons[layer], *second)))
    found = fl.removed_neurons(model, twice)
    assert found.neurons == expected
    assert same_bytes(fl.prune(model, found), bytes_of(twice))
    assert [len(glu_weights(mlp)[0]) for mlp in glu_blocks(twice)] == [
        width - len(indices) for indices in expected.values()
    ]
