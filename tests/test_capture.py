import math
from collections import Counter
from dataclasses import replace

import pytest
import torch

import fairlab as fl
from fairlab import capture
from fairlab.decisions import NextTokens
from fairlab.evaluation.readings import read_cut
from fairlab.models import glu_blocks, glu_weights
from fairlab.pairs import encode_pair
from fairlab.passes import connected_pairs, pack_pairs, skipping
from tiny_models import FAMILIES, tiny_model

ALL = capture.CAPTURE_POINTS


def one_at_a_time(model, tokenizer, pairs, point, statistic, positions):
    """Compute neuron differences the slow way: no batch, no padding, one prompt in a forward pass,
    float64 sums."""
    recorded = [recorded_alone(model, tokenizer, pair, [point]) for pair in pairs]
    return mean_difference(tokenizer, pairs, recorded, point, statistic, positions)


def recorded_alone(model, tokenizer, pair, points):
    """Record points in a pass for each of the two prompts of a pair; return point → two tables of
    the shape (layers, tokens, width)."""
    tables = {point: [] for point in points}
    for prompt in (pair.prompt_a, pair.prompt_b):
        with fl.record(model, points) as activations, torch.no_grad():
            model.base_model(torch.tensor([tokenizer(prompt).input_ids]))
        for point in points:
            layers = range(len(fl.decoder_layers(model)))
            rows = [activations[point, layer][0] for layer in layers]
            tables[point].append(torch.stack(rows).double())
    return tables


def mean_difference(tokenizer, pairs, recorded, point, statistic, positions):
    """Compute neuron differences from what was recorded of each pair."""
    total = None
    for pair, tables in zip(pairs, recorded, strict=True):
        first = 0
        if positions == "differing":
            ids_a, ids_b = tokenizer(pair.prompt_a).input_ids, tokenizer(pair.prompt_b).input_ids
            first = next(t for t in range(len(ids_a)) if ids_a[t] != ids_b[t])
        difference = tables[point][0][:, first:] - tables[point][1][:, first:]
        value = {
            "absolute": lambda d: d.abs().mean(1),
            "signed": lambda d: d.mean(1),
            "pooled": lambda d: d.mean(1).abs(),
        }[statistic](difference)
        total = value if total is None else total + value
    return total / len(pairs)


def assert_close(table, reference, share):
    """Compare with a share of the largest value of each layer."""
    largest = reference.abs().amax(1, keepdim=True)
    assert ((table.double() - reference).abs() <= share * largest).all()


@pytest.mark.parametrize("statistic", ["absolute", "signed", "pooled"])
@pytest.mark.parametrize("positions", ["differing", "all"])
@pytest.mark.parametrize("point", ["down_proj_input", "gate_proj", "residual"])
def test_batches_give_what_single_prompts_give(tokenizer, some_pairs, statistic, positions, point):
    model = tiny_model()
    table = fl.neuron_differences(
        model,
        tokenizer,
        some_pairs,
        points=[point],
        statistic=statistic,
        positions=positions,
        batch_size=7,
    )[point]
    assert table.dtype == torch.float32
    assert_close(
        table, one_at_a_time(model, tokenizer, some_pairs, point, statistic, positions), 1e-5
    )


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("dtype", "share"), [("float32", 1e-5), ("bfloat16", 0.02), ("float16", 0.02)]
)
def test_families_and_dtypes(tokenizer, some_pairs, family, dtype, share):
    model = tiny_model(family, getattr(torch, dtype))
    pairs, points = some_pairs[:3] + some_pairs[-3:], ["gate_proj", "up_proj", "down_proj_input"]
    recorded = [recorded_alone(model, tokenizer, pair, points) for pair in pairs]
    for point in points:
        table = fl.neuron_differences(model, tokenizer, pairs, points=[point])[point]
        reference = mean_difference(tokenizer, pairs, recorded, point, "absolute", "differing")
        assert_close(table, reference, share)


@pytest.mark.parametrize("point", ["gate_proj", "down_proj_input"])
def test_the_default_model_in_batches(model, tokenizer, some_pairs, point):
    pairs = some_pairs[:2] + some_pairs[-2:]
    table = fl.neuron_differences(model, tokenizer, pairs, points=[point])[point]
    assert table.shape == (30, 1536)
    assert_close(
        table, one_at_a_time(model, tokenizer, pairs, point, "absolute", "differing"), 1e-5
    )


def test_a_tokenizer_with_bos(bos_tokenizer, some_pairs):
    model = tiny_model()
    for positions in ("differing", "all"):
        table = fl.neuron_differences(model, bos_tokenizer, some_pairs, positions=positions)[
            "down_proj_input"
        ]
        reference = one_at_a_time(
            model, bos_tokenizer, some_pairs, "down_proj_input", "absolute", positions
        )
        assert_close(table, reference, 1e-5)


def test_float64_stays_precise(tokenizer, some_pairs):
    model = tiny_model(dtype=torch.float64)
    tables = [
        fl.neuron_differences(model, tokenizer, some_pairs, batch_size=size)["down_proj_input"]
        for size in (2, 32)
    ]
    assert torch.allclose(*tables, rtol=1e-6)


def test_swapping_the_prompts_turns_the_sign(tokenizer, some_pairs):
    model = tiny_model()
    swapped = [replace(pair, prompt_a=pair.prompt_b, prompt_b=pair.prompt_a) for pair in some_pairs]
    signed = [
        fl.neuron_differences(model, tokenizer, p, statistic="signed")
        for p in (some_pairs, swapped)
    ]
    assert torch.allclose(signed[0]["down_proj_input"], -signed[1]["down_proj_input"], atol=1e-7)


def test_a_shared_prompt_runs_once_and_no_logits_are_computed(tokenizer, some_pairs):
    model = tiny_model()
    seen, heads = [], []
    model.model.embed_tokens.register_forward_pre_hook(
        lambda module, inputs: seen.extend(inputs[0].tolist())
    )
    model.lm_head.register_forward_hook(lambda *a: heads.append(1))
    fl.neuron_differences(model, tokenizer, some_pairs, batch_size=10)
    prompts = {prompt for pair in some_pairs for prompt in (pair.prompt_a, pair.prompt_b)}
    assert len(seen) == len(prompts) < 2 * len(some_pairs)
    assert not heads


def test_batches_never_exceed_their_size_and_cover_every_pair(tokenizer, some_pairs):
    hub = [
        replace(some_pairs[0], prompt_b=pair.prompt_b) for pair in fl.load_pairs("nationality")[:4]
    ]
    pairs = some_pairs + hub  # five prompts hang together through one
    for size in (2, 3, 8, 64):
        batches = list(capture.pair_batches(tiny_model(), tokenizer, pairs, batch_size=size))
        assert max(len(batch.input_ids) for batch in batches) <= size
        assert sorted(torch.cat([batch.pairs for batch in batches]).tolist()) == list(
            range(len(pairs))
        )
        for batch in batches:
            assert torch.allclose(batch.weights.sum(1), torch.ones(len(batch.pairs)))


def test_connected_pairs_share_a_batch_if_it_has_room():
    a, b, c, d, e = ((token, 0) for token in range(5))
    short = ((8,), (9,))
    prompts = [(a, b), (c, d), (b, e), short]
    assert connected_pairs(prompts) == [[0, 2], [1], [3]]
    assert pack_pairs(prompts, 7) == [[3, 0, 2, 1]]
    assert pack_pairs(prompts, 5) == [[3, 0, 2], [1]]
    assert pack_pairs(prompts, 4) == pack_pairs(prompts, 3) == [[3], [0, 2], [1]]
    assert pack_pairs(prompts, 2) == [[3], [0], [2], [1]]  # pairs 0 and 2 have three prompts


def test_skipped_layers_return_what_is_known_and_run_again_afterwards():
    model, ids = tiny_model(), torch.tensor([[11, 500, 37]])
    layers = fl.decoder_layers(model)
    own_forward = layers[1].forward
    layers[1].forward = own_forward  # as libraries do that wrap a layer
    with fl.record(model, ["residual"]) as activations, torch.no_grad():
        logits = model(ids).logits
    known = activations["residual", 1].clone()
    with torch.no_grad(), skipping(layers[:2], known):
        assert torch.equal(model(ids + 1).logits, logits)  # the input no longer matters
    with pytest.raises(RuntimeError, match="stop"), skipping(layers[:2], known):
        raise RuntimeError("stop")
    assert ["forward" in vars(layer) for layer in layers] == [False, True, False]
    assert layers[1].forward is own_forward
    with torch.no_grad():
        assert torch.equal(model(ids).logits, logits)


def test_record_gives_every_point_as_float32_on_the_cpu(tokenizer):
    model = tiny_model(dtype=torch.bfloat16)
    inputs = tokenizer(["The old cook said"], return_tensors="pt")
    with fl.record(model, ALL) as activations:
        model(**inputs)
    tokens = inputs.input_ids.shape[1]
    for (point, _), values in activations.items():
        width = 24 if point in ("gate_proj", "up_proj", "down_proj_input") else 32
        assert values.shape == (1, tokens, width)
        assert values.dtype == torch.float32
    assert len(activations) == 3 * len(ALL)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_points_obey_the_algebra_of_a_gated_unit(tokenizer, family):
    model = tiny_model(family)
    with fl.record(
        model, ["gate_proj", "up_proj", "down_proj_input", "down_proj", "mlp_output"]
    ) as a:
        model(**tokenizer(["The old cook said"], return_tensors="pt"))
    for layer, decoder in enumerate(fl.decoder_layers(model)):
        act = getattr(decoder.mlp, "act_fn", None) or decoder.mlp.activation_fn
        h = act(a["gate_proj", layer]) * a["up_proj", layer]
        assert torch.allclose(a["down_proj_input", layer], h, atol=1e-5)
        down = h @ glu_weights(decoder.mlp)[2].T
        if decoder.mlp.down_proj.bias is not None:
            down = down + decoder.mlp.down_proj.bias
        assert torch.allclose(a["down_proj", layer], down, atol=1e-4)
        assert torch.equal(a["down_proj", layer], a["mlp_output", layer])  # one tensor, two names


def test_the_residual_adds_up(model, tokenizer):
    with fl.record(model, ["residual", "attention_output", "mlp_output"], layers=[4, 5]) as a:
        model(**tokenizer(["The old cook said"], return_tensors="pt"))
    total = a["residual", 4] + a["attention_output", 5] + a["mlp_output", 5]
    assert torch.allclose(a["residual", 5], total, rtol=1e-4, atol=1e-3)


def test_before_the_first_differing_token_nothing_differs(model, tokenizer):
    prompts = (fl.ARTICLE_PAIR.prompt_a, fl.ARTICLE_PAIR.prompt_b)
    with fl.record(model, ["residual"]) as activations:
        model(torch.tensor([tokenizer(prompt).input_ids for prompt in prompts]))
    for layer in range(30):
        a, b = activations["residual", layer]
        difference = (a - b).abs().amax(1)
        assert difference[0] == 0
        assert (difference[1:] > 0).all()


def hooks_of(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_hooks_are_gone_after_an_exception(tokenizer, some_pairs, monkeypatch):
    model = tiny_model()
    before = hooks_of(model)
    with pytest.raises(RuntimeError, match="stop"), fl.record(model, ALL):
        assert hooks_of(model) > before
        raise RuntimeError("stop")
    assert hooks_of(model) == before
    monkeypatch.setattr(
        model.model, "forward", lambda **k: (_ for _ in ()).throw(RuntimeError("out of memory"))
    )
    with pytest.raises(RuntimeError, match="out of memory"):
        fl.neuron_differences(model, tokenizer, some_pairs)
    assert hooks_of(model) == before


def test_what_is_not_there_is_named(tokenizer, some_pairs):
    model = tiny_model()
    with (
        pytest.raises(ValueError, match="points: expected one of input_norm.*'mlp_input'"),
        fl.record(model, ["mlp_input"]),
    ):
        pass
    with (
        pytest.raises(ValueError, match="layers: expected a whole number from 0 to 2; got 3"),
        fl.record(model, ALL, layers=[3]),
    ):
        pass
    assert hooks_of(model) == 0
    for options, message in (
        (
            {"statistic": "median"},
            "statistic: expected one of absolute, signed, pooled; got 'median'",
        ),
        ({"positions": "last"}, "positions: expected one of differing, all; got 'last'"),
        ({"points": ["nose"]}, "points: expected one of .*'nose'"),
        ({"batch_size": 1}, "batch_size: expected a whole number of at least 2"),
    ):
        with pytest.raises(ValueError, match=message):
            fl.neuron_differences(model, tokenizer, some_pairs, **options)


def test_unequal_token_counts_are_refused_before_any_pass(tokenizer, some_pairs):
    model = tiny_model()
    model.model.register_forward_pre_hook(lambda *a: pytest.fail("the model was run"))
    pairs = [*some_pairs, fl.PromptPair("The old cook", "The Luxembourgish cook")]
    with pytest.raises(ValueError, match="same number of tokens"):
        fl.neuron_differences(model, tokenizer, pairs)


def test_a_model_in_training_mode_is_refused(tokenizer, some_pairs):
    with pytest.raises(ValueError, match=r"training mode.*model\.eval\(\)"):
        fl.neuron_differences(tiny_model().train(), tokenizer, some_pairs)


def test_nan_weights_are_found(tokenizer, some_pairs):
    model = tiny_model()
    model.model.layers[1].mlp.up_proj.weight.data[3, 3] = math.nan
    with pytest.raises(
        ValueError, match="activations at down_proj_input are not finite; look for NaN weights"
    ):
        fl.neuron_differences(model, tokenizer, some_pairs)


# ---- a GPU is not waited for layer by layer

# what fetches numbers from a device, and waits for all that it has to do
FETCHES = ("cpu", "item", "tolist", "numpy", "nonzero", "__bool__", "__int__", "__float__")


@pytest.fixture
def fetches(monkeypatch):
    """Count what would wait for a GPU, whoever asks for it."""
    counts = Counter()

    def counted(name):
        plain = getattr(torch.Tensor, name)

        def fetch(tensor, *args, **options):
            counts[name] += 1
            return plain(tensor, *args, **options)

        return fetch

    for name in FETCHES:
        monkeypatch.setattr(torch.Tensor, name, counted(name))
    return counts


def reading(model, tokenizer, pairs):
    cut = fl.NeuronSelection({0: (3,), 1: (5,)}, (len(glu_blocks(model)), 24))
    held_out = fl.HeldOut(pairs[:6], pairs[6:10], "The old cook said no.")
    read_cut(model, tokenizer, held_out, cut, metric=True)


MEASURES = {
    "neurons": fl.neuron_differences,
    "pairs": lambda *given: capture.pair_differences(*given, points=("mlp_output", "residual")),
    "attribution": lambda *given: fl.bias_scores(*given, method="attribution"),
    "patching": lambda *given: fl.bias_scores(*given, method="patching"),
    "weights": lambda model, *_: fl.importance_scores(model),
    "fisher": lambda model, tokenizer, _: fl.importance_scores(
        model, method="fisher", tokenizer=tokenizer, text="The old cook said no."
    ),
    "a cut": reading,
}


@pytest.mark.parametrize("name", MEASURES)
def test_more_layers_fetch_no_more(name, tokenizer, some_pairs, fetches):
    counts = []
    for layers in (2, 5):
        model = tiny_model(num_hidden_layers=layers)
        glu_blocks(model)  # tries each layer, once for a model
        fetches.clear()
        MEASURES[name](model, tokenizer, some_pairs)
        counts.append(dict(fetches))
    assert counts[0] == counts[1]
    assert counts[0]


def test_outcomes_are_read_from_what_a_batch_fetched_once(tokenizer, some_pairs, monkeypatch):
    """Of a tensor on a GPU each number that Python picks would be waited for."""
    plain, gap, fetched, read_from = torch.Tensor.cpu, NextTokens.gap, set(), []

    def cpu(tensor):
        copy = plain(tensor).clone()
        fetched.add(copy.untyped_storage().data_ptr())
        return copy

    def noted_gap(tokens, *log_p):
        read_from.extend(values.untyped_storage().data_ptr() for values in log_p)
        return gap(tokens, *log_p)

    monkeypatch.setattr(torch.Tensor, "cpu", cpu)
    monkeypatch.setattr(NextTokens, "gap", noted_gap)
    reading(tiny_model(num_hidden_layers=2), tokenizer, some_pairs)
    assert len(read_from) > 2 and set(read_from) <= fetched
    assert len(set(read_from)) == 1  # all pairs are in one batch


def test_more_layers_send_no_more(tokenizer, some_pairs, monkeypatch):
    """The meta device stands in for a GPU; what is read from it raises, but for a whole table."""
    plain, sent = torch.Tensor.to, Counter()

    def to(tensor, *args, **options):
        moved = plain(tensor, *args, **options)
        sent["there"] += moved.device != tensor.device
        return moved

    def back(tensor):
        sent["back"] += 1
        return torch.zeros_like(tensor, device="cpu")

    monkeypatch.setattr(torch.Tensor, "to", to)
    monkeypatch.setattr(torch.Tensor, "cpu", back)
    counts = []
    for layers in (2, 5):
        model = tiny_model(num_hidden_layers=layers).to("meta")
        model.config._attn_implementation = "eager"  # the other one looks for padding in the mask
        gates = torch.full((layers, 24), 0.5)
        ids = torch.ones(1, 4, dtype=torch.long, device="meta")
        sent.clear()
        fl.neuron_differences(model, tokenizer, some_pairs)
        capture.pair_differences(model, tokenizer, some_pairs, points=("mlp_output", "residual"))
        with fl.gate(model, gates, gates), torch.no_grad():
            model(input_ids=ids, attention_mask=ids, use_cache=False)
        counts.append(dict(sent))
    assert counts[0] == counts[1]
    assert counts[0]["back"] == 2  # a table each


@pytest.mark.parametrize("positions", ["differing", "all"])
def test_pair_differences_equal_a_slow_reference(tokenizer, some_pairs, positions):
    model, points = tiny_model(), ("residual", "gate_proj")
    pairs = some_pairs[:2] + some_pairs[-2:]
    options = {"points": points, "positions": positions}
    difference, scale = capture.pair_differences(model, tokenizer, pairs, **options)
    assert difference.shape == scale.shape == (4, 2, 3)
    for number, pair in enumerate(pairs):
        first = encode_pair(tokenizer, pair)[2] if positions == "differing" else 0
        seen = []
        for prompt in (pair.prompt_a, pair.prompt_b):
            with fl.record(model, points) as activations, torch.no_grad():
                model(torch.tensor([tokenizer(prompt).input_ids]))
            seen.append(activations)
        for place, point in enumerate(points):
            for layer in range(3):
                a, b = (one[point, layer][0, first:] for one in seen)
                by_hand = [(a - b).abs().mean().item(), (a.abs() + b.abs()).mean().item() / 2]
                found = [table[number, place, layer].item() for table in (difference, scale)]
                assert found == pytest.approx(by_hand, rel=1e-4)
    model.model.layers[1].mlp.up_proj.weight.data[3, 3] = math.nan
    with pytest.raises(ValueError, match="activations at the points asked for are not finite"):
        capture.pair_differences(model, tokenizer, pairs, points=["residual"])


def test_what_comes_next_is_handed_over_with_its_batch(tokenizer, some_pairs):
    model, seen = tiny_model(), {}

    def see_next(batch, log_p):
        for pair, row in zip(batch.pairs.tolist(), batch.rows_b.tolist(), strict=True):
            seen[pair] = log_p[row]

    capture.run_pairs(model, tokenizer, some_pairs, see_next=see_next, batch_size=8)
    for number, pair in enumerate(some_pairs):
        with torch.no_grad():
            logits = model(torch.tensor([tokenizer(pair.prompt_b).input_ids])).logits[0, -1]
        assert torch.allclose(seen[number], logits.log_softmax(-1), atol=1e-4)


def test_layers_of_two_widths_make_no_table(tokenizer, some_pairs):
    cut = fl.prune(tiny_model(), fl.NeuronSelection({1: (2,)}, (3, 24)))
    with pytest.raises(ValueError, match="different widths at down_proj_input, so they make no"):
        fl.neuron_differences(cut, tokenizer, some_pairs[:2])


def test_pairs_may_come_from_a_generator(tokenizer, some_pairs, monkeypatch):
    """Also where memory runs out, and the measure begins again."""
    model, points = tiny_model(), ("mlp_output",)
    wanted, _ = capture.pair_differences(model, tokenizer, some_pairs, points=points)
    found, _ = capture.pair_differences(model, tokenizer, iter(some_pairs), points=points)
    assert torch.equal(found, wanted)

    original, calls = capture.run_pairs, []

    def full_at_first(*args, **options):
        calls.append(options["batch_size"])
        if len(calls) == 1:
            raise MemoryError("out of memory")
        return original(*args, **options)

    monkeypatch.setattr(capture, "run_pairs", full_at_first)
    with pytest.warns(UserWarning, match="trying again with 16"):
        again, _ = capture.pair_differences(model, tokenizer, iter(some_pairs), points=points)
    assert calls == [32, 16] and torch.allclose(again, wanted, atol=1e-6)
