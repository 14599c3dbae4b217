"""The one intervention: gates · h + (1 − gates) · toward in place of every MLP activation h."""

import math

import pytest
import torch

import fairlab as fl
from fairlab.gates import gate_slopes, table_shape
from fairlab.models import glu_blocks, glu_weights
from tiny_models import bytes_of, same_bytes, tiny_model

LAYERS, NEURONS = 3, 24
IDS = torch.tensor([[11, 500, 37, 4021, 9], [11, 501, 37, 4021, 9]])


def logits_of(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits


def loss_of(model):
    """Measure something with a gradient: how likely the last token is."""
    return -model(input_ids=IDS).logits.double().log_softmax(-1)[:, -2, 9].sum()


def random_gates(seed=0):
    return torch.rand(LAYERS, NEURONS, generator=torch.Generator().manual_seed(seed)) * 2


@pytest.mark.parametrize("family", ["Llama", "Phi-3", "Gemma 3"])
def test_gates_and_what_they_lead_toward_reach_down_proj_as_the_formula_says(family):
    model, gates, toward = tiny_model(family), random_gates(), random_gates(1) - 1
    for layer in range(LAYERS):
        with fl.record(model, ["down_proj_input"], layers=[layer]) as before:
            logits_of(model)
        only = torch.ones(LAYERS, NEURONS)
        # the layers below stay as they are, so that h is that of the plain model
        only[layer] = gates[layer]
        with (
            fl.gate(model, only, toward),
            fl.record(model, ["down_proj_input", "down_proj"], layers=[layer]) as after,
        ):
            logits_of(model)
        h = before["down_proj_input", layer]
        by_hand = gates[layer] * h + (1 - gates[layer]) * toward[layer]
        written = by_hand @ glu_weights(glu_blocks(model)[layer])[2].T
        assert torch.allclose(after["down_proj", layer], written, atol=1e-5)


def test_toward_may_look_at_the_activations():
    model, seen = tiny_model(), []

    def itself(layer, h):
        seen.append((layer, tuple(h.shape)))
        return h

    with fl.gate(model, random_gates(), itself):
        turned = logits_of(model)
    assert torch.allclose(turned, logits_of(model), atol=1e-5)  # toward itself: nothing changes
    assert seen == [(layer, (2, 5, NEURONS)) for layer in range(LAYERS)]


def test_gates_of_one_change_no_bit_and_all_is_as_it_was_after_an_exception():
    model = tiny_model()
    before, outputs = bytes_of(model), logits_of(model)
    with fl.gate(model, torch.ones(LAYERS, NEURONS)):
        assert torch.equal(logits_of(model), outputs)
    with pytest.raises(RuntimeError, match="stop"), fl.gate(model, random_gates()):
        assert not torch.allclose(logits_of(model), outputs, atol=0.01)
        raise RuntimeError("stop")
    assert same_bytes(model, before)
    assert torch.equal(logits_of(model), outputs)
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("scale", [0.0, 0.3, -1.0, 2.0])
def test_ablate_is_gate_with_one_value(dtype, scale):
    precise = torch.promote_types(dtype, torch.float32)
    model, gates = tiny_model(dtype=dtype), torch.ones(LAYERS, NEURONS, dtype=precise)
    gates[1, [3, 4]] = scale
    with fl.gate(model, gates):
        gated = logits_of(model)
    with fl.ablate(model, fl.NeuronSelection({1: (3, 4)}, (LAYERS, NEURONS)), scale=scale):
        assert torch.equal(logits_of(model), gated)


def test_a_closed_gate_shuts_out_nan():
    model, gates = tiny_model("Llama, biases, tied"), torch.ones(LAYERS, NEURONS)
    glu_blocks(model)[1].up_proj.bias.data[3] = math.nan
    assert logits_of(model).isnan().any()
    gates[1, 3] = 0
    with fl.gate(model, gates):
        assert logits_of(model).isfinite().all()


@pytest.mark.parametrize("toward", [None, random_gates(1) - 1], ids=["zero", "a table"])
def test_slopes_are_those_of_finite_differences(toward):
    model, h = tiny_model(dtype=torch.float64), 0.02  # norms are float32 inside
    slopes = gate_slopes(model, lambda: loss_of(model), toward=toward)
    assert slopes.dtype == torch.float64
    for place in ((0, 0), (1, 7), (2, 23)):
        values = []
        for step in (h, -h):
            gates = torch.ones(LAYERS, NEURONS, dtype=torch.float64)
            gates[place] += step
            with torch.no_grad(), fl.gate(model, gates, toward):
                values.append(loss_of(model).item())
        assert slopes[place].item() == pytest.approx(
            (values[0] - values[1]) / (2 * h), rel=0.01, abs=1e-5
        )


def test_slopes_leave_the_parameters_alone():
    model = tiny_model()
    model.model.embed_tokens.weight.requires_grad_(False)
    before = [parameter.requires_grad for parameter in model.parameters()]
    gate_slopes(model, lambda: loss_of(model))
    assert [parameter.requires_grad for parameter in model.parameters()] == before
    assert all(parameter.grad is None for parameter in model.parameters())


def test_gates_can_be_learned():
    model = tiny_model()
    gates = torch.ones(LAYERS, NEURONS).requires_grad_()
    with fl.gate(model, gates):
        before = loss_of(model)
        before.backward()
    with torch.no_grad(), fl.gate(model, gates - 0.01 * gates.grad.sign()):
        assert loss_of(model) < before


@pytest.mark.parametrize(
    ("gates", "toward", "message"),
    [
        (torch.ones(2, NEURONS), None, r"gates: expected .* 3 layers of 24; got \(2, 24\)"),
        (torch.ones(LAYERS, 25), None, r"gates: expected .* 3 layers of 24; got \(3, 25\)"),
        (torch.ones(LAYERS), None, r"gates: expected .* got \(3,\)"),
        (torch.full((LAYERS, NEURONS), math.nan), None, "gates: expected finite values"),
        (torch.ones(LAYERS, NEURONS), torch.ones(1, NEURONS), r"toward: expected .* got \(1, 24\)"),
        (
            torch.ones(LAYERS, NEURONS),
            torch.full((LAYERS, NEURONS), math.inf),
            "toward: expected finite values",
        ),
    ],
)
def test_bad_tables_are_refused_before_any_hook(gates, toward, message):
    model = tiny_model()
    with pytest.raises(ValueError, match=message), fl.gate(model, gates, toward):
        pass
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_list_is_no_table():
    with (
        pytest.raises(TypeError, match=r"gates: expected a tensor of shape \(layers, neurons\)"),
        fl.gate(tiny_model(), [[1.0]]),
    ):
        pass


def test_models_without_gates_and_uneven_ones_are_refused():
    with (
        pytest.raises(ValueError, match="GLU"),
        fl.gate(tiny_model("GPT-2"), torch.ones(LAYERS, NEURONS)),
    ):
        pass
    uneven = fl.prune(tiny_model(), fl.NeuronSelection({0: (1,)}, (LAYERS, NEURONS)))
    with pytest.raises(ValueError, match="23 or 24"), fl.gate(uneven, torch.ones(LAYERS, NEURONS)):
        pass
    with pytest.raises(ValueError, match="different widths"):
        gate_slopes(uneven, lambda: loss_of(uneven))


def test_slopes_are_those_of_plain_autograd_to_the_bit():
    """They are taken of a multiple of the measure, and a power of two costs no precision."""
    model, gates = tiny_model(), torch.ones(LAYERS, NEURONS, requires_grad=True)
    with fl.gate(model, gates):
        loss_of(model).backward()
    assert torch.equal(gate_slopes(model, lambda: loss_of(model)), gates.grad)


def test_only_layers_that_change_get_a_hook():
    model, gates = tiny_model(), torch.ones(LAYERS, NEURONS)
    before = logits_of(model)
    gates[1] = 2
    with fl.gate(model, gates):
        hooks = [len(mlp.down_proj._forward_pre_hooks) for mlp in glu_blocks(model)]
        assert hooks == [0, 1, 0]
        assert not torch.allclose(logits_of(model), before, atol=0.01)


def test_a_model_of_one_layer_has_a_table():
    assert table_shape(tiny_model(num_hidden_layers=1)) == (1, NEURONS)


def test_a_model_without_slopes_is_refused_by_name():
    tiny_model()  # first, so that what is kept of it has slopes
    with torch.inference_mode():
        model = tiny_model()
    with pytest.raises(ValueError, match="loaded inside torch.inference_mode"):
        gate_slopes(model, lambda: loss_of(model))
