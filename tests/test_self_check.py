"""Before a neuron is scored or cut, it is tried whether hooks, matrices and code are one thing."""

import copy
import random
import types

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import linear, rms_norm

import fairlab as fl
from fairlab.models import glu_blocks
from tiny_models import FAMILIES, bytes_of, same_bytes, tiny_model

CUT = fl.NeuronSelection({0: (1, 5), 1: (7,), 2: (23,)}, (3, 24))
IDS = torch.tensor([[5, 6, 7, 8]])
SMALL = {"vocab_size": 64}


def h_of(mlp, x):
    return mlp.act_fn(mlp.gate_proj(x)) * mlp.up_proj(x)


def fused(mlp, x):
    return linear(h_of(mlp, x), mlp.down_proj.weight)


def twice(mlp, x):
    h = h_of(mlp, x)
    return (mlp.down_proj(h) + mlp.down_proj(h)) / 2


def gate_without_its_module(mlp, x):
    h = mlp.act_fn(linear(x, mlp.gate_proj.weight)) * mlp.up_proj(x)
    return mlp.down_proj(h)


def norm_behind(mlp, x):
    return rms_norm(mlp.down_proj(h_of(mlp, x)), x.shape[-1:])


def doubled_in_place(mlp, x):
    return mlp.down_proj(h_of(mlp, x)).mul_(2)


def other_order(mlp, x):
    return mlp.down_proj(h_of(mlp, x).flip(-1))


def norm_before(mlp, x):
    return mlp.down_proj(rms_norm(h_of(mlp, x), (mlp.down_proj.in_features,)))


def with_code(forward):
    """Give layer 1 an MLP whose class has another forward pass."""
    model = tiny_model(**SMALL)
    mlp = model.model.layers[1].mlp
    mlp.__class__ = type("OtherMLP", (type(mlp),), {"forward": forward})
    return model


def with_its_own_forward():
    model = tiny_model(**SMALL)
    mlp = model.model.layers[1].mlp
    mlp.forward = lambda x: mlp.down_proj(h_of(mlp, x))
    return model


def with_down_proj(forward):
    """Give layer 1 a `down_proj` that is no plain product with its matrix."""
    model = tiny_model(**SMALL)
    down = model.model.layers[1].mlp.down_proj
    down.__class__ = type("OtherLinear", (nn.Linear,), {"forward": forward})
    return model


def product_of_signs(down, h):
    return linear(h, down.weight.sign() * down.weight.abs().mean())


def with_layer(forward):
    model = tiny_model(**SMALL)
    layer = model.model.layers[1]
    layer.forward = types.MethodType(forward, layer)
    return model


def with_shared(name):
    model = tiny_model(**SMALL)
    first, second = model.model.layers[0], model.model.layers[2]
    if name == "mlp":
        second.mlp = first.mlp
    else:
        second.mlp.down_proj.weight = first.mlp.down_proj.weight
    return model


def skip_mlp(layer, hidden_states, **options):
    return hidden_states


def mlp_twice(layer, hidden_states, **options):
    return hidden_states + layer.mlp(hidden_states) + layer.mlp(hidden_states)


REFUSED = {
    "a fused kernel": (lambda: with_code(fused), "calls its down_proj 0 times"),
    "down_proj twice": (lambda: with_code(twice), "calls its down_proj 2 times"),
    "a gate that no hook sees": (
        lambda: with_code(gate_without_its_module),
        "calls its gate_proj 0 times",
    ),
    "a norm behind": (lambda: with_code(norm_behind), "not what its column of down_proj"),
    "twice the output": (lambda: with_code(doubled_in_place), "not what its column of down_proj"),
    "a matrix of signs": (
        lambda: with_down_proj(product_of_signs),
        "not what its column of down_proj",
    ),
    "a norm before": (lambda: with_code(norm_before), "depends on the others"),
    "another order": (lambda: with_code(other_order), "depends on the others"),
    "an own forward": (with_its_own_forward, "has a forward of its own"),
    "a layer without its MLP": (lambda: with_layer(skip_mlp), "calls its mlp 0 times"),
    "a layer that calls it twice": (lambda: with_layer(mlp_twice), "calls its mlp 2 times"),
    "a shared MLP": (lambda: with_shared("mlp"), "layer 2 shares"),
    "a shared matrix": (lambda: with_shared("matrix"), "layer 2 shares"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_where_a_hook_is_not_the_cut_it_is_refused(name, tokenizer, some_pairs):
    make, message = REFUSED[name]
    model = make()
    before, state = bytes_of(model), torch.get_rng_state()
    message = rf"model: .*layer \d.*{message}|model: {message}"
    for attempt in (
        lambda: fl.ablate(model, CUT).__enter__(),
        lambda: fl.prune(model, CUT),
        lambda: fl.prune(model, CUT, inplace=True),
        lambda: fl.bias_scores(model, tokenizer, some_pairs),
        lambda: fl.importance_scores(model),
    ):
        with pytest.raises(ValueError, match=message):
            attempt()
    assert same_bytes(model, before)
    assert torch.equal(torch.get_rng_state(), state)
    assert not hooks_of(model)


def hooks_of(model):
    hooks = []
    for module in model.modules():
        hooks += [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]
    return hooks


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_families_and_dtypes_pass(family, dtype):
    model = tiny_model(family, **SMALL)
    assert len(glu_blocks(model.to(dtype))) == 3


def test_large_activations_in_half_precision_pass():
    model = tiny_model(dtype=torch.bfloat16, **SMALL)
    for mlp in glu_blocks(tiny_model(**SMALL)) and [layer.mlp for layer in model.model.layers]:
        mlp.up_proj.weight.data[3] *= 1000
    glu_blocks(model)


def test_the_check_leaves_no_trace():
    model = tiny_model("Llama, biases, tied", **SMALL)
    model.model.layers[0].mlp.up_proj.weight.requires_grad_(False)
    flags = {name: weight.requires_grad for name, weight in model.named_parameters()}
    before = bytes_of(model)
    draws = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    attributes = {name: set(vars(module)) for name, module in model.named_modules()}
    glu_blocks(model)
    assert same_bytes(model, before)
    assert flags == {name: weight.requires_grad for name, weight in model.named_parameters()}
    assert all(weight.grad is None for weight in model.parameters())
    assert torch.equal(torch.get_rng_state(), draws[0]) and random.getstate() == draws[1]
    assert (np.random.get_state()[1] == draws[2]).all()
    assert attributes == {name: set(vars(module)) for name, module in model.named_modules()}
    assert not hooks_of(model) and not any(part.training for part in model.modules())


def test_what_a_user_collects_is_not_disturbed():
    """A pass of fairlab's own adds nothing to what hooks of others, or `record`, have seen."""
    model, seen = tiny_model(**SMALL), []
    down = model.model.layers[1].mlp.down_proj
    handle = down.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    with fl.record(model, ["down_proj_input"]) as activations:
        plain = model(IDS).logits
        with fl.ablate(model, CUT):
            assert len(seen) == 1
            assert activations["down_proj_input", 0].shape == (1, 4, 24)
            assert not torch.equal(model(IDS).logits, plain)
    assert len(seen) == 2
    handle.remove()
    model(IDS)
    assert len(seen) == 2 and not hooks_of(model)


def test_a_model_is_tried_once_and_again_when_it_was_changed(monkeypatch):
    model = tiny_model(**SMALL)
    kind, passes = type(model.model.layers[0]), []
    forward = kind.forward
    monkeypatch.setattr(kind, "forward", lambda *a, **k: passes.append(1) or forward(*a, **k))
    for _ in range(3):
        glu_blocks(model)
    assert len(passes) == 3  # its layers
    with fl.ablate(copy.deepcopy(model), CUT):
        assert len(passes) == 6
    mlp = model.model.layers[1].mlp
    mlp.act_fn = nn.Softmax(-1)  # still in training mode
    with pytest.raises(ValueError, match="depends on the others"):
        glu_blocks(model)
    mlp.act_fn = nn.SiLU()
    glu_blocks(model)
    assert len(passes) == 6 + 2 + 3  # of the refused pass, two layers


def test_the_users_settings_do_not_refuse_a_good_model():
    model = tiny_model(**SMALL)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.inference_mode():
        glu_blocks(model)
    torch.set_default_dtype(torch.float64)
    try:
        glu_blocks(tiny_model(**SMALL))
    finally:
        torch.set_default_dtype(torch.float32)


def test_where_a_part_is_in_training_mode_nothing_is_drawn():
    model = tiny_model(**SMALL)
    attention = model.model.layers[1].self_attn.train()
    attention.attention_dropout = 0.5
    state = torch.get_rng_state()
    model(IDS)
    assert not torch.equal(torch.get_rng_state(), state)
    state = torch.get_rng_state()
    glu_blocks(model)
    assert torch.equal(torch.get_rng_state(), state)
