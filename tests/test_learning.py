"""Gates by gradient descent: they narrow what they are trained on, and stay within their bounds."""

import pytest
import torch

import fairlab as fl
from fairlab import learning
from tiny_models import bytes_of, same_bytes, tiny_model

TEXT = "The tide comes in twice a day, and twice a day it goes out again. " * 40


@pytest.fixture(scope="module")
def data():
    pairs = fl.load_pairs("race", split="validation")[:4]
    pairs += fl.load_pairs("age", split="validation")[:4]
    return pairs, fl.load_pairs(split="validation", kind="neutral")[:16]


@pytest.fixture(scope="module")
def start():
    gates = torch.ones(3, 24)
    toward = torch.zeros(3, 24)
    gates[0, [1, 5]], gates[2, 7] = 0.9, 1.1
    toward[2, 7] = 0.3
    return fl.NeuronGates.from_tables(gates, toward, how="by hand")


def objective(model, tokenizer, data, gates):
    """Return the mean relative change of the gap over all training pairs."""
    pairs, _ = data
    before = fl.next_token_divergence(model, tokenizer, pairs)
    with fl.gated(model, gates):
        after = fl.next_token_divergence(model, tokenizer, pairs)
    race, age = slice(4), slice(4, 8)
    changes = [after[part].mean() / before[part].mean() - 1 for part in (race, age)]
    return sum(changes).item() / 2


def test_steps_narrow_the_gap_and_touch_nothing_else(tokenizer, data, start, monkeypatch):
    model = tiny_model()
    before = bytes_of(model)
    monkeypatch.setattr(learning, "LEARNING_RATE", 0.1)
    learned = fl.learned_gates(model, tokenizer, *data, start, text=TEXT, steps=8)
    assert objective(model, tokenizer, data, learned) < objective(model, tokenizer, data, start)
    assert learned.selection.neurons == start.selection.neurons
    for layer, row in start.gates.items():
        for neuron, (_, toward) in row.items():
            assert learned.gates[layer][neuron][1] == toward
    assert same_bytes(model, before)
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_seed_decides_on_the_draws(tokenizer, data, start, monkeypatch):
    model, options = tiny_model(), {"text": TEXT, "steps": 2}
    learned = fl.learned_gates(model, tokenizer, *data, start, **options)
    assert fl.learned_gates(model, tokenizer, *data, start, **options) == learned
    monkeypatch.setattr(learning, "SEED", 1)
    other = fl.learned_gates(model, tokenizer, *data, start, **options)
    assert other.gates != learned.gates


def test_no_step_changes_nothing(tokenizer, data, start):
    learned = fl.learned_gates(tiny_model(), tokenizer, *data, start, text=TEXT, steps=0)
    assert learned.gates == start.gates
    assert learned.how == "learned in 0 steps: by hand"


def test_the_first_step_follows_the_slope_of_what_is_promised(tokenizer, data, start, monkeypatch):
    """With every pair in the draw, Adam's first step goes against the sign of the slope."""
    model = tiny_model()
    monkeypatch.setattr(learning, "PAIRS_A_CATEGORY", 4)
    learned = fl.learned_gates(model, tokenizer, *data, start, text=TEXT, steps=1)
    pairs, neutral = data
    gaps = {id(some): fl.next_token_divergence(model, tokenizer, some) for some in (pairs, neutral)}
    chunk = learning.text_chunks(model, tokenizer, TEXT)[0]
    loss = learning.chunk_loss(model, chunk).item()

    def promised(gates):
        with fl.gated(model, gates):
            after = fl.next_token_divergence(model, tokenizer, neutral)
            now = learning.chunk_loss(model, chunk).item()
        neutral_change = (after.mean() / gaps[id(neutral)].mean() - 1).item()
        gap_change = objective(model, tokenizer, data, gates)
        return gap_change + abs(neutral_change) + 5 * abs(now - loss)

    values, toward = start.tables()
    for layer, neuron in ((0, 1), (0, 5), (2, 7)):
        ends = []
        for step in (1e-2, -1e-2):
            moved = values.clone()
            moved[layer, neuron] += step
            ends.append(promised(fl.NeuronGates.from_tables(moved, toward)))
        step = learned.gates[layer][neuron][0] - values[layer, neuron].item()
        assert step == pytest.approx(-0.02 if ends[0] > ends[1] else 0.02, rel=1e-2)


def test_the_text_is_read_in_pieces_that_the_model_can_read(
    tokenizer, bos_tokenizer, data, start, monkeypatch
):
    model, read, chunk_loss = tiny_model(max_position_embeddings=64), [], learning.chunk_loss

    def loss(model, chunk):
        read.append(len(chunk))
        return chunk_loss(model, chunk)

    monkeypatch.setattr(learning, "chunk_loss", loss)
    for some_tokenizer in (tokenizer, bos_tokenizer):
        fl.learned_gates(model, some_tokenizer, *data, start, text=TEXT, steps=0)
        assert set(read) == {64}
        read.clear()
    with pytest.raises(ValueError, match=r"training mode.*call model.eval\(\)"):
        fl.learned_gates(model.train(), tokenizer, *data, start, text=TEXT, steps=0)
    assert not read


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": -1}, "steps: expected a whole number of at least 0; got -1"),
        ({"pairs": 2}, "pairs: expected at least 3 of each category; got 2 of 'race'"),
        ({"neutral": 5}, "neutral: expected at least 16 of each category; got 5"),
    ],
)
def test_bad_input_is_refused(tokenizer, data, start, changes, message):
    pairs, neutral = data
    pairs = pairs[: changes.get("pairs", 8)]
    neutral = neutral[: changes.get("neutral", 16)]
    steps = changes.get("steps", 1)
    with pytest.raises(ValueError, match=message):
        fl.learned_gates(tiny_model(), tokenizer, pairs, neutral, start, text=TEXT, steps=steps)


@pytest.mark.parametrize("silent", ["pairs", "neutral"])
def test_a_gap_of_0_is_refused_before_the_steps(tokenizer, data, start, silent, monkeypatch):
    """Its share is 0 / 0: the gates would be NaN, and all steps in vain."""
    pairs, neutral = data

    def gap(model, tokenizer, group):
        is_silent = len(group) == 16 if silent == "neutral" else group[0].category == "age"
        return torch.zeros(len(group)) if is_silent else torch.ones(len(group))

    monkeypatch.setattr(learning, "next_token_divergence", gap)
    monkeypatch.setattr(learning, "gate", lambda *args: pytest.fail("a step was made"))
    with pytest.raises(ValueError, match=f"{silent}: .* gap of 0"):
        fl.learned_gates(tiny_model(), tokenizer, pairs, neutral, start, text=TEXT, steps=1)
