"""Gates on chosen neurons: kept as JSON, tried, folded into the weights, solved in closed form."""

import json
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM

import fairlab as fl
from fairlab import gating
from fairlab.models import glu_blocks
from fairlab.passes import text_chunks
from fairlab.scores import attribution_scores, fisher_scores
from tiny_models import bytes_of, note_rows, same_bytes, tiny_model

SHAPE = (3, 24)
IDS = torch.tensor([[11, 500, 37, 4021, 9], [11, 501, 37, 4021, 9]])
TO_ZERO = fl.NeuronGates({0: {1: (0.0, 0.0), 5: (0.5, 0.0)}, 2: {23: (2.0, 0.0)}}, SHAPE)
TO_MEAN = fl.NeuronGates({0: {1: (0.0, 0.7), 5: (0.5, -0.2)}, 2: {23: (2.0, 0.1)}}, SHAPE, "hand")


def logits_of(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits


def test_json_gives_back_the_same_numbers():
    third = torch.tensor(1 / 3).item()  # a float32 that no short decimal gives
    gates = fl.NeuronGates({2: {7: (third, -third)}, 0: {3: (1e-9, 2.5)}}, SHAPE, "by hand")
    assert fl.NeuronGates.from_json(gates.to_json()) == gates
    assert json.loads(gates.to_json())["gates"]["2"] == {"7": [third, -third]}
    values, toward = gates.tables()
    assert fl.NeuronGates.from_tables(values, toward, how="by hand") == gates
    assert (len(gates), gates.selection.neurons) == (2, {0: (3,), 2: (7,)})
    assert repr(gates) == "NeuronGates(2 neurons in 2 of 3 layers of 24; by hand)"


@pytest.mark.parametrize(
    ("gates", "message"),
    [
        ({3: {1: (0, 0)}}, "expected layers below 3"),
        ({0: {24: (0, 0)}}, "indices below 24"),
        ({0: {1: (0,)}}, "two finite numbers a neuron"),
        ({0: {1: (0, float("nan"))}}, "two finite numbers a neuron"),
        ({0: {1: "01"}}, "two finite numbers a neuron"),  # letter by letter: 0 toward 1
        ({0: {1: ("0.5", 0)}}, "two finite numbers a neuron"),
        ({0: {1: (True, 0)}}, "two finite numbers a neuron"),
        ({0: {1: {0, 0.5}}}, "two finite numbers a neuron"),  # in no order
        ({0: {1: {0.5: 0, 0: 0}}}, "two finite numbers a neuron"),
        ({0: {1: 0.5}}, "two finite numbers a neuron"),
        ({0: (0.5, 0)}, "gates: expected layer → neuron → "),
        (None, "gates: expected layer → neuron → "),
        ({0: {True: (0, 0)}}, "expected whole numbers; got True"),
        ({"0": {1: (0, 0)}}, "expected whole numbers; got '0'"),
        ({0: {1: (0, 0), "2": (0, 0)}}, "expected whole numbers; got '2'"),
    ],
)
def test_bad_gates_are_refused(gates, message):
    with pytest.raises(ValueError, match=message):
        fl.NeuronGates(gates, SHAPE)


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        '{"shape": [3, 24], "gates": {}}',
        '{"shape": [3, 24], "how": "", "gates": {"x": {"1": [0, 0]}}}',
        '{"shape": [3, 24], "how": "", "gates": {"0": [1, 2]}}',
        '{"shape": [3, 24], "how": "", "gates": {"0": {"1": 0}}}',
        '{"shape": [3, 24], "how": "", "gates": {"0": {"1": [0, 0], "1": [1, 0]}}}',
        '{"shape": 3, "how": "", "gates": {}}',
        '{"shape": [3, 24], "how": "", "gates": {"0": {"1.5": [0, 0]}}}',
        '{"shape": [3, 24], "how": "", "gates": {"0": {"1": [0, 0], "01": [0.5, 0]}}}',
        '{"shape": [3, 24], "how": "", "gates": {"0": {}, " 0": {"1": [0, 0]}}}',
        '{"shape": [3, 24], "how": "", "gates": {"0": {"1_0": [0, 0]}}}',
        '{"shape": [3, 24], "how": "", "gates": {"٠": {"1": [0, 0]}}}',
    ],
)
def test_bad_json_is_refused(text):
    with pytest.raises(ValueError, match="text: "):
        fl.NeuronGates.from_json(text)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_gates_of_zero_are_a_removal_to_the_bit(dtype):
    model = tiny_model(dtype=dtype)
    removal = fl.NeuronGates({0: {1: (0, 0), 5: (0, 0)}, 2: {0: (0, 0)}}, SHAPE)
    with fl.ablate(model, removal.selection):
        removed = logits_of(model)
    with fl.gated(model, removal):
        assert torch.equal(logits_of(model), removed)
    plain = logits_of(model)
    assert not torch.equal(plain, removed)


def test_gated_is_gate_with_the_tables():
    model = tiny_model()
    values, toward = (table.float() for table in TO_MEAN.tables())
    with fl.gate(model, values, toward):
        wanted = logits_of(model)
    with fl.gated(model, TO_MEAN):
        assert torch.equal(logits_of(model), wanted)
    with (
        pytest.raises(ValueError, match="made for 3 layers of 24"),
        fl.gated(tiny_model(intermediate_size=25), TO_MEAN),
    ):
        pass


@pytest.mark.parametrize("family", ["Llama", "Phi-3", "Gemma 3", "Qwen2"])
def test_folded_gates_compute_what_gated_does(family, tmp_path, tokenizer):
    model = tiny_model(family)
    before = bytes_of(model)
    with fl.gated(model, TO_ZERO):
        wanted = logits_of(model)
    folded = fl.fold_gates(model, TO_ZERO)
    assert torch.allclose(logits_of(folded), wanted, atol=1e-4)
    assert not torch.allclose(logits_of(model), wanted, atol=1e-3)
    assert same_bytes(model, before)
    changed = 0
    for block, old in zip(glu_blocks(folded), glu_blocks(model), strict=True):
        changed += (block.down_proj.weight != old.down_proj.weight).any(0).sum().item()
    assert changed == len(TO_ZERO), "no other column"


def test_folded_gates_survive_saving_to_the_bit_in_stock_transformers(tmp_path, tokenizer):
    model = tiny_model()
    for gates in (TO_ZERO, TO_MEAN):
        with fl.gated(model, gates):
            wanted = logits_of(model)
        folded = fl.fold_gates(model, gates)
        assert torch.allclose(logits_of(folded), wanted, atol=1e-4)
        folder = tmp_path / str(gates.moves_toward_zero)
        fl.save_model(folded, tokenizer, folder)
        again = AutoModelForCausalLM.from_pretrained(folder)
        assert torch.equal(logits_of(again), logits_of(folded))
        assert again.config.mlp_bias == (gates is TO_MEAN)


def test_a_mean_needs_a_bias(tokenizer):
    with pytest.raises(ValueError, match="they need a bias in down_proj, which Gemma3"):
        fl.fold_gates(tiny_model("Gemma 3"), TO_MEAN)
    model = tiny_model()
    with fl.gated(model, TO_ZERO), pytest.raises(ValueError, match="inside"):
        fl.fold_gates(model, TO_ZERO)


def test_mean_activations_are_means_over_tokens(tokenizer):
    model = tiny_model()
    text = "The tide comes in twice a day, and nobody looks up."
    ids = tokenizer(text, return_tensors="pt").input_ids
    with fl.record(model, ["down_proj_input"]) as activations, torch.no_grad():
        model(input_ids=ids)
    means = gating.mean_activations(model, tokenizer, text)
    for layer in range(3):
        wanted = activations["down_proj_input", layer][0].mean(0)
        assert torch.allclose(means[layer], wanted, atol=1e-6)


def tables_of(seed=0, shape=(2, 6)):
    draw = torch.Generator().manual_seed(seed)
    gap, neutral, mean = torch.randn(3, *shape, generator=draw)
    return gating.GateTables(gap, neutral, torch.rand(shape, generator=draw) + 0.1, mean)


def test_solved_gates_keep_the_promise_at_the_least_damage():
    tables = tables_of()
    solved = gating.solve_gates(tables, count=5, goal=0.5, charge=0.4, floor=2.0)
    d = 1 - solved
    assert (d != 0).sum() == 5
    assert (d * tables.gap).sum().item() == pytest.approx(0.5, abs=1e-5)
    damage = tables.importance**2
    damage = damage + 2.0 * damage.mean()
    gain = tables.gap - 0.4 * tables.neutral
    # proportional to gain / damage where no gate is at its limit
    free = (d != 0) & (d.abs() < 1)
    ratios = d[free] * damage[free] / gain[free]
    assert torch.allclose(ratios, ratios[0].expand_as(ratios), rtol=1e-4)
    # the five with the highest gain² / damage
    best = (gain**2 / damage).flatten().topk(5).indices.sort().values
    assert torch.equal(d.flatten().nonzero().flatten(), best)


def test_solved_gates_are_the_formula_by_hand():
    """The two neurons of lesson 08: g = 1 - t · a / (F² + c · mean F²), with a denominator of 1."""
    a, t = torch.tensor([[2.0, -1.0]]), 0.2
    zero, half = torch.zeros(1, 2), torch.full((1, 2), 0.5)
    by_hand = torch.tensor([[0.6, 1.2]])
    promise = ((1 - by_hand) * a).sum().item()
    tables = gating.GateTables(a, zero, half, zero)
    solved = gating.solve_gates(tables, count=2, goal=promise, floor=3)
    assert torch.allclose(solved, by_hand)
    assert torch.allclose(solved, 1 - t * a)


def test_charge_takes_from_gates_that_move_neutral_words():
    tables = tables_of(3)
    promises = []
    for charge in (0.0, 0.8):
        d = 1 - gating.solve_gates(tables, count=12, goal=0.5, charge=charge)
        promises.append((d * tables.neutral).sum().item())
    assert promises[1] < promises[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": 0}, "count: expected a whole number from 1 to 12; got 0"),
        ({"goal": -1}, "goal: expected a number above 0"),
        ({"goal": 1e9}, "goal: expected at most"),
        ({"charge": -1}, "charge: expected a number of at least 0"),
        ({"floor": 0}, "floor: expected a number above 0"),
    ],
)
def test_bad_options_of_the_solution_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        gating.solve_gates(tables_of(), **{"count": 5, "goal": 0.5, **options})


def test_where_no_neuron_helps_no_gates_are_solved():
    tables = tables_of()
    silent = replace(tables, gap=0 * tables.gap, neutral=0 * tables.neutral)
    with pytest.raises(ValueError, match=r"goal: expected at most 0.00 of 5 neurons; got 0.5"):
        gating.solve_gates(silent, count=5, goal=0.5)


def test_balanced_gates_are_the_solution_of_the_scores(tokenizer):
    model, text = tiny_model(), fl.load_text("calibration")[:3000]
    pairs = fl.load_pairs("race", split="validation")[:4]
    neutral = fl.load_pairs(split="validation", kind="neutral")[:6]
    # whatever their categories, all neutral pairs count alike
    for place, category in ((0, "mood"), (1, "weather")):
        neutral[place] = replace(neutral[place], category=category)
    gates = fl.balanced_gates(model, tokenizer, pairs, neutral, text=text, fraction=0.15, goal=1e-3)
    mean = gating.mean_activations(model, tokenizer, text)
    options = {"toward": mean}
    gap = attribution_scores(model, tokenizer, pairs, relative=True, **options)
    shares = [
        attribution_scores(model, tokenizer, neutral, **options)
        / fl.next_token_divergence(model, tokenizer, neutral).mean()
    ]
    importance = fisher_scores(model, tokenizer, text, **options)
    tables = gating.GateTables(gap, shares[0], importance, mean)
    wanted = gating.solve_gates(tables, count=10, goal=1e-3)
    values, toward = gates.tables()
    assert torch.allclose(values.float(), wanted, atol=1e-4)
    assert torch.equal(toward[values != 1].float(), mean[values != 1])
    with pytest.raises(ValueError, match="fraction: expected a float between 0 and 1"):
        fl.balanced_gates(model, tokenizer, pairs, neutral, fraction=2)


def test_slopes_toward_a_mean_equal_finite_differences(tokenizer):
    model = tiny_model(dtype=torch.float64)
    pairs = fl.load_pairs("race", split="train")[:3]
    toward = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    scores = attribution_scores(model, tokenizer, pairs, toward=toward)
    # the models' norms compute in float32, so a smaller step would drown in rounding
    for place in scores.abs().flatten().topk(4).indices.tolist():
        layer, neuron = divmod(place, SHAPE[1])
        ends = []
        for step in (0.01, -0.01):
            gates = torch.ones(SHAPE, dtype=torch.float64)
            gates[layer, neuron] += step
            with fl.gate(model, gates, toward.double()):
                ends.append(fl.next_token_divergence(model, tokenizer, pairs).mean().item())
        assert scores[layer, neuron].item() == pytest.approx((ends[0] - ends[1]) / 0.02, rel=0.01)


# ---- defaults, limits, and what is refused before a pass


def test_gates_are_tidy():
    gates = fl.NeuronGates({2: {7: (0, 0), 3: (1, 2)}, 0: {}, 1: {0: (2, 0)}}, [3, 24])
    assert gates.shape == SHAPE
    assert [*gates.gates] == [1, 2] and [*gates.gates[2]] == [3, 7]
    assert "[1.0, 2.0]" in gates.to_json()  # floats, whatever came


def test_mean_activations_are_means_over_chunks(tokenizer):
    model = tiny_model(max_position_embeddings=8)
    text = "The tide comes in twice a day, and nobody on the pier looks up, or down, or away."
    chunks, total = text_chunks(model, tokenizer, text), torch.zeros(SHAPE)
    assert len(chunks) == 2
    for chunk in chunks:
        with fl.record(model, ["down_proj_input"]) as seen, torch.no_grad():
            model(input_ids=torch.tensor([chunk]))
        total += torch.stack([seen["down_proj_input", layer][0].mean(0) for layer in range(3)])
    means = gating.mean_activations(model, tokenizer, text)
    assert torch.allclose(means, total / 2, atol=1e-6)
    model.model.layers[1].mlp.up_proj.weight.data[3, 3] = float("nan")
    with pytest.raises(ValueError, match="activations at down_proj_input are not finite"):
        gating.mean_activations(model, tokenizer, text)


def test_balanced_gates_have_the_defaults_that_were_chosen(tokenizer, monkeypatch):
    asked = []

    def solve(tables, **options):
        asked.append(options)
        return torch.ones(3, 500)

    monkeypatch.setattr(gating, "gate_tables", lambda *_, **__: tables_of(shape=(3, 500)))
    monkeypatch.setattr(gating, "solve_gates", solve)
    model, pairs = tiny_model(intermediate_size=500), fl.load_pairs("race")[:2]
    gates = fl.balanced_gates(model, tokenizer, pairs, pairs[:1])
    assert asked == [{"count": 3, "goal": 1.1}]  # 0.2 % of 1,500 neurons
    assert gates.how == "balanced, 2 pairs, 1 neutral ones, goal 1.1"


def test_solved_gates_have_the_defaults_that_were_chosen():
    tables, options = tables_of(), {"count": 5, "goal": 0.5}
    wanted = gating.solve_gates(tables, **options, charge=0.78, floor=3.0)
    assert torch.equal(gating.solve_gates(tables, **options), wanted)


@pytest.mark.parametrize("size", [1.0, -1.0, 1e-3])
def test_gates_stop_at_0_and_2(size):
    """One neuron moved as far as it goes promises 2, the other one at most 1."""
    gap, zero = size * torch.tensor([[2.0, -1.0]]), torch.zeros(1, 2)
    tables = gating.GateTables(gap, zero, torch.full((1, 2), 0.5), zero)
    sign, unit = (1 if size > 0 else -1), abs(size)
    solved = gating.solve_gates(tables, count=2, goal=2.75 * unit, floor=3)
    assert torch.allclose(solved, 1 - sign * torch.tensor([[1.0, -0.75]]), atol=1e-4)
    if unit == 1:  # else the goal is not to the bit what they promise
        furthest = gating.solve_gates(tables, count=2, goal=3.0, floor=3)
        assert torch.equal(furthest, 1 - sign * torch.tensor([[1.0, -1.0]]))
        with pytest.raises(ValueError, match=r"goal: expected at most 3\.00 of 2 neurons"):
            gating.solve_gates(tables, count=2, goal=3.01, floor=3)


def test_gate_tables_are_refused_before_a_pass(tokenizer):
    tiny_model()  # first, so that what is kept of it has slopes
    with torch.inference_mode():
        model = tiny_model()
    rows, pairs = note_rows(model), fl.load_pairs("race")[:2]
    with pytest.raises(ValueError, match="loaded inside torch.inference_mode"):
        gating.gate_tables(model, tokenizer, pairs, pairs, text="A text of some words.")
    assert rows == []
