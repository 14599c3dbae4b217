import json
import math
import shutil
import sys
from copy import deepcopy
from functools import partial

import pytest
import torch
import transformers

import fairlab as fl
from fairlab import surgery
from fairlab.gates import gate
from fairlab.models import glu_blocks, glu_weights
from tiny_models import FAMILIES, bytes_of, note_rows, same_bytes, tiny_model

PROMPTS = ["The old cook said that", "Two trains left"]


def logits_of(model, tokenizer):
    with torch.no_grad():
        return [model(**tokenizer(prompt, return_tensors="pt")).logits for prompt in PROMPTS]


def furthest(one, other):
    return max((a - b).abs().max().item() for a, b in zip(one, other, strict=True))


def tiny_selection(equal=True):
    neurons = {0: (1, 5), 1: (0, 23), 2: (7, 8)} if equal else {0: (1, 5, 9), 2: (23,)}
    return fl.NeuronSelection(neurons, (3, 24), "by hand")


@pytest.fixture(scope="module")
def article_selection(model, tokenizer):
    bias = fl.bias_scores(model, tokenizer, [fl.ARTICLE_PAIR], method="article")
    scores = fl.hybrid_scores(bias, fl.importance_scores(model), bias_weight=0.5)
    return fl.select_neurons(scores, fraction=0.002, how="article")


# ---- the dtype of what is saved


@pytest.fixture
def from_bfloat16(tokenizer, tmp_path):
    """Load a model in float32 whose weights are stored in bfloat16, as most published ones are."""
    fl.save_model(tiny_model("Gemma 3", torch.bfloat16), tokenizer, tmp_path / "source")
    model = fl.load_model(tmp_path / "source")[0]
    assert model.dtype == torch.float32
    return model


def dtypes_in(folder):
    weights = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    named = json.loads((folder / "config.json").read_text(encoding="utf-8"))["dtype"]
    found = {tensor.dtype for tensor in weights.state_dict().values()}
    assert found == {getattr(torch, named)}
    return found.pop(), weights


@pytest.mark.parametrize("equal", [True, False])
def test_a_cut_model_is_saved_in_the_dtype_of_its_source(from_bfloat16, tokenizer, tmp_path, equal):
    pruned = fl.prune(from_bfloat16, tiny_selection(equal))
    before = bytes_of(pruned)
    fl.save_model(pruned, tokenizer, tmp_path / "cut")
    dtype, again = dtypes_in(tmp_path / "cut")
    assert dtype == torch.bfloat16
    assert pruned.dtype == pruned.config.dtype == torch.float32 and same_bytes(pruned, before)
    # nothing is lost: in float32 it is the model that was measured
    fl.save_model(pruned, tokenizer, tmp_path / "wide", dtype="float32")
    dtype, wide = dtypes_in(tmp_path / "wide")
    assert dtype == torch.float32 and same_bytes(again.float(), bytes_of(wide))
    fl.save_model(pruned, tokenizer, tmp_path / "half", dtype=torch.float16)
    assert dtypes_in(tmp_path / "half")[0] == torch.float16


def test_a_model_keeps_its_own_dtype_where_another_would_lose_something(
    from_bfloat16, tokenizer, tmp_path
):
    model = from_bfloat16
    # float16 was asked for: bfloat16 would not be smaller
    fl.save_model(fl.load_model(tmp_path / "source", dtype="float16")[0], tokenizer, tmp_path / "a")
    assert dtypes_in(tmp_path / "a")[0] == torch.float16
    changed = deepcopy(model)
    with torch.no_grad():
        changed.lm_head.weight[7, 7] += 1e-6  # fewer digits would take it away again
    fl.save_model(changed, tokenizer, tmp_path / "b")
    assert dtypes_in(tmp_path / "b")[0] == torch.float32
    # of a model that was not loaded, or whose source is gone, nothing else is known
    fl.save_model(tiny_model(), tokenizer, tmp_path / "c")
    shutil.rmtree(tmp_path / "source")
    fl.save_model(fl.prune(model, tiny_selection()), tokenizer, tmp_path / "d")
    assert dtypes_in(tmp_path / "c")[0] == dtypes_in(tmp_path / "d")[0] == torch.float32


def test_no_dtype_is_refused_before_anything_is_written(tokenizer, tmp_path):
    for dtype in ("int8", "bf16", torch.int8):
        with pytest.raises(ValueError, match=f"dtype: expected .* got {dtype!r}"):
            fl.save_model(tiny_model(), tokenizer, tmp_path / "m", dtype=dtype)
    assert not any(tmp_path.iterdir())


# ---- the article's cut on the default model


def test_the_article_cut_lowers_its_own_metric_by_seven_percent(
    model, tokenizer, article_selection
):
    pruned = fl.prune(model, article_selection)
    before, after = (fl.article_metric(m, tokenizer, fl.ARTICLE_PAIR) for m in (model, pruned))
    assert (before, after) == (pytest.approx(0.25378, abs=1e-5), pytest.approx(0.23567, abs=1e-5))
    assert 100 * (after / before - 1) == pytest.approx(-7.1, abs=0.05)
    assert pruned.config.intermediate_size == 1533
    assert {mlp.down_proj.in_features for mlp in glu_blocks(pruned)} == {1533}
    assert sum(p.numel() for p in pruned.parameters()) == 134_515_008 - 90 * 3 * 576


def test_ablate_and_prune_agree_on_the_default_model(model, tokenizer, article_selection):
    with fl.ablate(model, article_selection):
        ablated = logits_of(model, tokenizer)
    assert furthest(ablated, logits_of(fl.prune(model, article_selection), tokenizer)) < 1e-4
    assert furthest(ablated, logits_of(model, tokenizer)) > 0.1


def test_the_article_cut_saves_and_reloads_with_stock_transformers(
    model, tokenizer, article_selection, tmp_path
):
    pruned = fl.prune(model, article_selection)
    fl.save_model(pruned, tokenizer, tmp_path)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    loaded_tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert loaded_tokenizer(PROMPTS).input_ids == tokenizer(PROMPTS).input_ids
    assert furthest(logits_of(loaded, tokenizer), logits_of(pruned, tokenizer)) == 0


def test_a_llama_of_one_billion_on_the_meta_device():
    config = transformers.LlamaConfig(
        vocab_size=128256,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=64,
        tie_word_embeddings=True,
    )
    with torch.device("meta"):
        llama = transformers.LlamaForCausalLM(config)
    assert sum(p.numel() for p in llama.parameters()) == 1_235_814_400
    selection = fl.select_neurons(torch.rand(16, 8192), fraction=0.002)
    assert {len(indices) for indices in selection.neurons.values()} == {16}
    pruned = fl.prune(llama, selection)
    assert sum(p.numel() for p in pruned.parameters()) == 1_234_241_536
    assert pruned.config.intermediate_size == 8176
    assert sum(p.numel() for p in llama.parameters()) == 1_235_814_400


# ---- every family


@pytest.mark.parametrize("equal", [True, False], ids=["equal widths", "unequal widths"])
@pytest.mark.parametrize("family", FAMILIES)
def test_ablate_prune_save_and_reload_agree(family, equal, tokenizer, tmp_path):
    model, selection = tiny_model(family), tiny_selection(equal)
    before = bytes_of(model)
    with fl.ablate(model, selection):
        ablated = logits_of(model, tokenizer)
    pruned = fl.prune(model, selection)
    cut = logits_of(pruned, tokenizer)
    assert furthest(cut, logits_of(model, tokenizer)) > 1e-3
    assert furthest(ablated, cut) < 1e-4
    assert same_bytes(model, before)
    fl.save_model(pruned, tokenizer, tmp_path)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert furthest(logits_of(loaded, tokenizer), cut) <= (0 if equal else 1e-4)
    widths = [22, 22, 22] if equal else [21, 24, 23]
    assert [mlp.down_proj.in_features for mlp in glu_blocks(pruned)] == widths
    assert loaded.config.get_text_config().intermediate_size == max(widths)


@pytest.mark.parametrize("family", FAMILIES)
def test_prune_keeps_the_right_rows_and_the_biases(family):
    model, selection = tiny_model(family), tiny_selection(equal=False)
    pruned = fl.prune(model, selection)
    for layer, (old, new) in enumerate(zip(glu_blocks(model), glu_blocks(pruned), strict=True)):
        keep = [i for i in range(24) if i not in selection.neurons.get(layer, ())]
        gate, up, down = glu_weights(old)
        for got, expected in zip(
            glu_weights(new), (gate[keep], up[keep], down[:, keep]), strict=True
        ):
            assert torch.equal(got, expected)
        for name, projection in old.named_children():
            bias = getattr(projection, "bias", None)
            if bias is not None:
                assert torch.equal(
                    getattr(new, name).bias, bias if name == "down_proj" else bias[keep]
                )
    old_state, new_state = model.state_dict(), pruned.state_dict()
    for name in old_state:
        assert ".mlp." in name or torch.equal(old_state[name], new_state[name])


@pytest.mark.parametrize("equal", [True, False], ids=["equal widths", "unequal widths"])
@pytest.mark.parametrize("family", ["Llama, biases, tied", "Phi-3"])
def test_prune_in_place_gives_the_same_model(family, equal, tokenizer, tmp_path):
    model, selection = tiny_model(family), tiny_selection(equal)
    copy = fl.prune(model, selection)
    same = fl.prune(model, selection, inplace=True)
    assert same is model
    assert same_bytes(copy, bytes_of(model))
    assert model.config.intermediate_size == (22 if equal else 24)
    assert furthest(logits_of(copy, tokenizer), logits_of(model, tokenizer)) == 0
    fl.save_model(model, tokenizer, tmp_path)  # its matrices lie in memory that was larger
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert furthest(logits_of(loaded, tokenizer), logits_of(model, tokenizer)) <= (
        0 if equal else 1e-4
    )


def test_prune_keeps_tied_embeddings_tied():
    pruned = fl.prune(tiny_model("Llama, biases, tied"), tiny_selection())
    assert pruned.lm_head.weight is pruned.model.embed_tokens.weight


def test_prune_initialises_nothing(monkeypatch):
    model = tiny_model()

    def initialise(tensor, **options):
        assert tensor.is_meta, "weights were initialised that are then overwritten"

    monkeypatch.setattr(torch.nn.init, "kaiming_uniform_", initialise)
    fl.prune(model, tiny_selection())


def test_prune_does_not_share_memory_with_the_old_model(tokenizer):
    model = tiny_model()
    pruned = fl.prune(model, tiny_selection(equal=False))
    before = bytes_of(model)
    for parameter in pruned.parameters():
        parameter.data.zero_()
    assert same_bytes(model, before)


@pytest.mark.parametrize("matrix", ["gate", "up", "down"])
def test_zeroing_one_matrix_is_the_whole_cut(matrix, tokenizer):
    model, selection = tiny_model(), tiny_selection()
    cut = logits_of(fl.prune(model, selection), tokenizer)
    for layer, indices in selection.neurons.items():
        gate, up, down = glu_weights(glu_blocks(model)[layer])
        {"gate": gate, "up": up, "down": down.T}[matrix][list(indices)] = 0
    assert furthest(logits_of(model, tokenizer), cut) < 1e-4


# ---- ablate


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_ablate_leaves_every_bit_also_after_an_exception(dtype, tokenizer):
    model, selection = tiny_model("Llama, biases, tied", dtype), tiny_selection(equal=False)
    before, outputs = bytes_of(model), logits_of(model, tokenizer)
    with pytest.raises(RuntimeError, match="stop"), fl.ablate(model, selection):
        assert furthest(logits_of(model, tokenizer), outputs) > 0
        raise RuntimeError("stop")
    assert same_bytes(model, before)
    assert furthest(logits_of(model, tokenizer), outputs) == 0
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_ablate_scales_exactly_the_selected_activations(tokenizer):
    model, selection = tiny_model(), fl.NeuronSelection({1: (3, 4)}, (3, 24))
    inputs = tokenizer(PROMPTS[0], return_tensors="pt")
    with fl.record(model, ["down_proj"], layers=[1]) as plain:
        model(**inputs)
    with (
        fl.ablate(model, selection, scale=0.5),
        fl.record(model, ["down_proj_input", "down_proj"], layers=[1]) as half,
    ):
        model(**inputs)
    with fl.record(model, ["down_proj_input"], layers=[1]) as whole:
        model(**inputs)
    lost = (
        0.5
        * whole["down_proj_input", 1][..., [3, 4]]
        @ glu_weights(glu_blocks(model)[1])[2][:, [3, 4]].T
    )
    assert torch.allclose(half["down_proj", 1], plain["down_proj", 1] - lost, atol=1e-5)


def test_scale_one_changes_nothing_and_empty_selections_are_allowed(tokenizer):
    model = tiny_model()
    outputs = logits_of(model, tokenizer)
    for selection, scale in ((tiny_selection(), 1.0), (fl.NeuronSelection({}, (3, 24)), 0.0)):
        with fl.ablate(model, selection, scale=scale):
            assert furthest(logits_of(model, tokenizer), outputs) == 0
    assert (
        furthest(logits_of(fl.prune(model, fl.NeuronSelection({}, (3, 24))), tokenizer), outputs)
        == 0
    )


def test_two_cuts_add_up(tokenizer):
    model = tiny_model()
    one, two = (
        fl.NeuronSelection({0: (1,)}, (3, 24)),
        fl.NeuronSelection({0: (2,), 2: (3,)}, (3, 24)),
    )
    both = fl.NeuronSelection({0: (1, 2), 2: (3,)}, (3, 24))
    with fl.ablate(model, one), fl.ablate(model, two):
        nested = logits_of(model, tokenizer)
    with fl.ablate(model, both):
        assert furthest(logits_of(model, tokenizer), nested) < 1e-6


# ---- refined scores

REFINE_PAIRS = [
    fl.PromptPair("The old cook said", "The young cook said"),
    fl.PromptPair("The old cook said", "The tall cook said"),
    fl.PromptPair("My old friend read the letter and", "My young friend read the letter and"),
]


@pytest.mark.parametrize("family", FAMILIES)
def test_refined_scores_are_gaps_of_single_cuts(family, tokenizer):
    model = tiny_model(family, torch.float64)
    before = bytes_of(model)
    scores = torch.rand(3, 24, generator=torch.Generator().manual_seed(0))
    refined = fl.refine_scores(model, tokenizer, scores, REFINE_PAIRS, count=7)
    assert (refined.shape, refined.dtype) == ((3, 24), torch.float32)
    tried = torch.isfinite(refined)
    assert set(scores[tried].tolist()) == set(scores.flatten().topk(7).values.tolist())
    assert (refined[~tried] == -math.inf).all()

    def gap():
        return fl.next_token_divergence(model, tokenizer, REFINE_PAIRS).mean().item()

    plain = gap()
    for layer, neuron in tried.nonzero().tolist():
        with fl.ablate(model, fl.NeuronSelection({layer: (neuron,)}, (3, 24))):
            expected = plain - gap()
        assert refined[layer, neuron].item() == pytest.approx(expected, rel=1e-5, abs=1e-10)
    assert same_bytes(model, before)
    assert not any(
        module._forward_pre_hooks or "forward" in vars(module) for module in model.modules()
    )


def test_refined_scores_do_not_depend_on_the_batch(tokenizer, some_pairs):
    model, scores = tiny_model(dtype=torch.float64), torch.rand(3, 24)
    tables = [
        fl.refine_scores(model, tokenizer, scores, some_pairs, count=5, batch_size=size)
        for size in (2, 5, 32)
    ]
    for table in tables[1:]:
        assert torch.allclose(table, tables[0], rtol=1e-5, atol=1e-10)


def test_refined_scores_leave_the_model_also_after_an_exception(tokenizer):
    model = tiny_model()
    passes = []

    def fail(*_):
        passes.append(1)
        if len(passes) == 3:
            raise RuntimeError("stop")

    handle = model.model.norm.register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="stop"):
        fl.refine_scores(model, tokenizer, torch.arange(72.0).view(3, 24), REFINE_PAIRS, count=5)
    handle.remove()
    assert not any(
        module._forward_pre_hooks or "forward" in vars(module) for module in model.modules()
    )


def test_refine_refuses(tokenizer):
    model, scores = tiny_model(), torch.rand(3, 24)
    for options, message in (
        ({"count": 0}, "count: expected a whole number from 1 to 71; got 0"),
        (
            {"scores": torch.rand(3, 25)},
            "made for 3 layers of 25 neurons, but the model has 3 layers of 24",
        ),
        ({"pairs": []}, "pairs: expected at least one"),
    ):
        with pytest.raises(ValueError, match=message):
            fl.refine_scores(
                model, tokenizer, **{"scores": scores, "pairs": REFINE_PAIRS, "count": 5, **options}
            )


# ---- selections


def test_select_within_layers_and_over_the_model():
    scores = torch.tensor([[0.1, 0.9, 0.3, 0.2], [5.0, 7.0, 6.0, 4.0]])
    assert fl.select_neurons(scores, count=1).neurons == {0: (1,), 1: (1,)}
    assert fl.select_neurons(scores, fraction=0.5).neurons == {0: (1, 2), 1: (1, 2)}
    assert fl.select_neurons(scores, count=3, scope="model").neurons == {1: (0, 1, 2)}
    assert fl.select_neurons(scores, fraction=0.25, scope="model").neurons == {1: (1, 2)}
    assert fl.select_neurons(scores, fraction=0.99).neurons == {
        0: (1, 2, 3),
        1: (0, 1, 2),
    }  # one stays in each layer


def test_a_fraction_too_small_names_the_smallest():
    scores = torch.rand(2, 1536)
    with pytest.raises(
        ValueError,
        match=r"fraction: 0\.0005 of 1536 neurons is less than one neuron; "
        r"the smallest is 0\.000652",
    ):
        fl.select_neurons(scores, fraction=0.0005)
    assert len(fl.select_neurons(scores, fraction=0.000652)) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "fraction, count: give exactly one; got fraction=None and count=None"),
        ({"fraction": 0.5, "count": 1}, "give exactly one"),
        ({"fraction": 0.0}, "fraction: expected a float between 0 and 1 .* got 0.0"),
        ({"fraction": 1.0}, "fraction: expected a float between 0 and 1 .* got 1.0"),
        ({"fraction": 2}, "fraction: .* got 2"),
        ({"fraction": math.nan}, "fraction: .* got nan"),
        ({"count": 0}, "count: expected a whole number from 1 to 3; got 0"),
        ({"count": 4}, "count: expected a whole number from 1 to 3; got 4"),
        ({"count": 1, "scope": "head"}, "scope: expected one of layer, model; got 'head'"),
        ({"count": 4, "scope": "model"}, "layer 1 would lose all of its 4 neurons"),
    ],
)
def test_select_refuses(options, message):
    scores = torch.tensor([[0.1, 0.9, 0.3, 0.2], [5.0, 7.0, 6.0, 4.0]])
    with pytest.raises(ValueError, match=message):
        fl.select_neurons(scores, **options)


def test_select_refuses_scores_that_are_no_scores():
    with pytest.raises(
        ValueError, match=r"scores: expected the shape \(layers, neurons\); got \(4,\)"
    ):
        fl.select_neurons(torch.rand(4), count=1)
    with pytest.raises(ValueError, match="scores: expected numbers .* got NaN"):
        fl.select_neurons(torch.tensor([[math.nan, 1.0, 2.0]]), count=1)
    kept = torch.tensor([[1.0, -math.inf, -math.inf]])
    assert fl.select_neurons(kept, count=1).neurons == {0: (0,)}
    with pytest.raises(ValueError, match="too few neurons may be cut"):
        fl.select_neurons(kept, count=2)


def test_a_selection_is_tidy_and_survives_json():
    selection = fl.NeuronSelection({2: (5, 1), 0: (3,), 1: ()}, (3, 24), "by hand")
    assert selection.neurons == {0: (3,), 2: (1, 5)}
    assert fl.NeuronSelection.from_json(selection.to_json()) == selection
    assert json.loads(selection.to_json())["neurons"] == {"0": [3], "2": [1, 5]}
    assert repr(selection) == "NeuronSelection(3 neurons in 2 of 3 layers of 24; by hand)"
    with pytest.raises(AttributeError):
        selection.how = "changed"


@pytest.mark.parametrize(
    ("neurons", "message"),
    [
        ({3: (0,)}, "layers below 3"),
        ({0: (24,)}, "indices below 24; got layer 0, indices from 24 to 24"),
        ({0: (-1,)}, "indices from -1"),
        ({0: (1, 1)}, "layer 0 names a neuron twice"),
        ({0: tuple(range(24))}, "layer 0 would lose all of its 24 neurons"),
        ({0: (1,), "1": (2,)}, "neurons: expected whole numbers; got '1'"),
        ({0: 1}, "neurons: expected layer → indices"),
        ([1, 2], "neurons: expected layer → indices"),
    ],
)
def test_impossible_selections_are_refused(neurons, message):
    with pytest.raises((TypeError, ValueError), match=message):
        fl.NeuronSelection(neurons, (3, 24))


def test_a_selection_of_another_model_is_refused(model):
    message = "made for 3 layers of 24 neurons, but the model has 30 layers of 1536"
    with pytest.raises(ValueError, match=message), fl.ablate(model, tiny_selection()):
        pass
    for inplace in (True, False):
        with pytest.raises(ValueError, match=message):
            fl.prune(model, tiny_selection(), inplace=inplace)
    with (
        pytest.raises(ValueError, match="scale: expected a finite number"),
        fl.ablate(model, tiny_selection(), scale=math.nan),
    ):
        pass


def test_save_refuses_a_file(tokenizer, tmp_path):
    (tmp_path / "taken").write_text("mine", encoding="utf-8")
    with pytest.raises(ValueError, match="folder: expected a folder to write to; got the file"):
        fl.save_model(tiny_model(), tokenizer, tmp_path / "taken")
    assert (tmp_path / "taken").read_text(encoding="utf-8") == "mine"


# ---- what somebody else cut


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("equal", [True, False])
def test_removed_neurons_are_found_again(family, equal, tokenizer, tmp_path):
    model, selection = tiny_model(family), tiny_selection(equal)
    fl.save_model(
        fl.prune(model, selection), tokenizer, tmp_path
    )  # layers of unequal width are filled with zeros
    copy = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert fl.removed_neurons(model, copy).neurons == selection.neurons
    assert fl.removed_neurons(model, model).neurons == {}


def test_removed_neurons_are_found_in_another_order_and_dtype():
    model = tiny_model(dtype=torch.bfloat16)
    copy = fl.prune(model, tiny_selection()).to(torch.float16)
    for mlp in glu_blocks(copy):
        order = torch.randperm(
            mlp.down_proj.in_features, generator=torch.Generator().manual_seed(0)
        )
        mlp.gate_proj.weight.data = mlp.gate_proj.weight.data[order]
        mlp.up_proj.weight.data = mlp.up_proj.weight.data[order]
        mlp.down_proj.weight.data = mlp.down_proj.weight.data[:, order]
    assert fl.removed_neurons(model, copy).neurons == tiny_selection().neurons


def test_removed_neurons_refuses_what_is_no_cut():
    model = tiny_model()
    tuned = fl.prune(model, tiny_selection())
    glu_blocks(tuned)[1].up_proj.weight.data[3, 3] += 1e-3
    with pytest.raises(ValueError, match="neuron 3 of layer 1 is none of the model's"):
        fl.removed_neurons(model, tuned)
    with pytest.raises(ValueError, match="as many layers in both"):
        fl.removed_neurons(model, tiny_model(num_hidden_layers=2))


# ---- what is padding is no neuron


@pytest.fixture(scope="module")
def padded(tokenizer, tmp_path_factory):
    """A model that was cut to 21, 24 and 23 neurons, saved and loaded: 24 in each layer."""
    folder = tmp_path_factory.mktemp("padded")
    cut = fl.prune(tiny_model("Llama, biases, tied"), tiny_selection(equal=False))
    fl.save_model(cut, tokenizer, folder)
    return cut, fl.load_model(folder)[0]


def test_padding_is_counted_by_nobody(padded, tokenizer, some_pairs, capsys):
    _, loaded = padded
    before = tiny_selection(equal=False)
    for model in padded:  # what holds before a model is saved holds after
        for attempt in (
            lambda model=model: fl.importance_scores(model),
            lambda model=model: fl.guarded_cut(model, tokenizer, some_pairs, some_pairs),
            lambda model=model: fl.article_cut(model, tokenizer, some_pairs, fraction=0.1),
        ):
            with pytest.raises(ValueError, match="different widths .21 or 23 or 24 neurons"):
                attempt()
        # the indices are those of the uncut model, whose shape it has
        for attempt in (
            lambda model=model: fl.ablate(model, before).__enter__(),
            lambda model=model: fl.prune(model, before),
        ):
            with pytest.raises(ValueError, match="selection: .* 3 layers of 21 or 23 or 24"):
                attempt()
        fl.describe_model(model)
        assert "21 to 24 in each of 3 layers, 68 in all" in capsys.readouterr().out
    with pytest.raises(ValueError, match="gates: .* 3 layers of 21 or 23 or 24"):
        gate(loaded, torch.ones(3, 24)).__enter__()


def test_nothing_is_missing_in_a_model_itself(padded):
    cut, loaded = padded
    assert len(fl.removed_neurons(loaded, loaded)) == 0
    assert len(fl.removed_neurons(loaded, cut)) == 0
    whole = tiny_model("Llama, biases, tied")
    assert fl.removed_neurons(whole, loaded).neurons == tiny_selection(equal=False).neurons


def test_a_neuron_of_zeros_is_none():
    zeroed = tiny_model()
    mlp = glu_blocks(zeroed)[1]
    for row in (mlp.gate_proj.weight[3], mlp.up_proj.weight[3], mlp.down_proj.weight[:, 3]):
        row.data.zero_().neg_()  # −0 is 0, too
    assert fl.removed_neurons(tiny_model(), zeroed).neurons == {1: (3,)}
    assert len(fl.removed_neurons(zeroed, zeroed)) == 0


def test_neurons_of_zeros_at_the_end_of_every_layer_are_no_padding():
    model = tiny_model()
    for mlp in glu_blocks(model):
        for row in (mlp.gate_proj.weight[-1], mlp.up_proj.weight[-1], mlp.down_proj.weight[:, -1]):
            row.data.zero_()
    assert fl.importance_scores(model).shape == (3, 24)
    with fl.ablate(model, tiny_selection()):
        pass


def test_a_padded_model_is_saved_as_it_is(padded, tokenizer, tmp_path):
    _, loaded = padded
    fl.save_model(loaded, tokenizer, tmp_path)
    again, _ = fl.load_model(tmp_path)
    assert same_bytes(again, bytes_of(loaded))


# ---- a cut that is stopped


def stopped_at(number, function, names):
    """Call a function, stopped as Ctrl-C would at the n-th line of some functions of `surgery`; say
    if it came there."""
    lines = 0

    def trace(frame, event, _):
        nonlocal lines
        code = frame.f_code
        if code.co_name not in names or not code.co_filename.endswith("surgery.py"):
            return None
        lines += event == "line"
        if lines == number:
            raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        function()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return False


def test_a_stopped_cut_in_place_leaves_no_half_cut_layer():
    def layers_of(model):
        return [layer.mlp for layer in model.model.layers]

    whole = tiny_model("Llama, biases, tied", vocab_size=64)
    cut, number, found = tiny_selection(equal=True), 0, set()
    old, new = ([bytes_of(mlp) for mlp in layers_of(m)] for m in (whole, fl.prune(whole, cut)))
    while True:
        number, model = number + 3, deepcopy(whole)
        prune = partial(fl.prune, model, cut, inplace=True)
        if not stopped_at(number, prune, {"prune", "_shrink_in_place"}):
            break
        mlps = layers_of(model)
        kept = [same_bytes(mlp, before) for mlp, before in zip(mlps, old, strict=True)]
        done = [same_bytes(mlp, after) for mlp, after in zip(mlps, new, strict=True)]
        assert all(one != other for one, other in zip(kept, done, strict=True)), number
        found.add(sum(done))
    assert found == {0, 1, 2, 3} and number > 30
    assert torch.isfinite(model(torch.tensor([[5, 6]])).logits).all()


# ---- edges, notes, and what is refused before the work


def test_a_model_may_have_one_layer_or_one_neuron():
    assert fl.NeuronSelection({0: (0,)}, (1, 2)).neurons == {0: (0,)}
    assert fl.NeuronSelection({}, [3, 1]).shape == (3, 1)
    for shape in ((0, 24), (3, 0), (3,), (3, 24, 1), 3):
        with pytest.raises(ValueError, match="shape: expected two numbers above 0"):
            fl.NeuronSelection({}, shape)


@pytest.mark.parametrize(
    ("options", "how"),
    [
        ({"count": 1}, "1 in each layer"),
        ({"count": 3, "scope": "model"}, "3 in all"),
        ({"fraction": 0.5}, "fraction 0.5 of each layer"),
        ({"fraction": 0.25, "scope": "model", "how": "mine"}, "mine: fraction 0.25 of the model"),
    ],
)
def test_a_selection_says_how_it_was_chosen(options, how):
    scores = torch.tensor([[0.1, 0.9, 0.3, 0.2], [5.0, 7.0, 6.0, 4.0]])
    assert fl.select_neurons(scores, **options).how == how


def test_the_smallest_fraction_is_not_rounded_up_where_it_is_round():
    with pytest.raises(ValueError, match=r"the smallest is 0\.001$"):
        fl.select_neurons(torch.rand(2, 1000), fraction=0.0005)


@pytest.mark.parametrize(
    "text",
    [
        '{"shape": [3, 24], "how": "", "neurons": {"0": 3}}',
        '{"shape": [3, 24], "how": "", "neurons": [[1]]}',
        '{"shape": {"a": 3, "b": 24}, "how": "", "neurons": {}}',
        '{"shape": [3, 24, 1], "how": "", "neurons": {}}',
    ],
)
def test_json_of_another_form_is_refused(text):
    with pytest.raises(ValueError, match="text: expected"):
        fl.NeuronSelection.from_json(text)


def test_refine_tries_150_neurons_unless_told_otherwise(tokenizer, monkeypatch):
    def nothing(model, tokenizer, pairs, shortlist, batch_size):
        return torch.zeros(len(shortlist))

    monkeypatch.setattr(surgery, "_gap_decreases", nothing)
    model = tiny_model(intermediate_size=60)
    scores = torch.rand(3, 60, generator=torch.Generator().manual_seed(0))
    refined = fl.refine_scores(model, tokenizer, scores, REFINE_PAIRS)
    assert refined.isfinite().sum() == 150


def test_refine_refuses_before_a_pass(tokenizer):
    model = tiny_model()
    rows = note_rows(model)
    with pytest.raises(ValueError, match="made for 3 layers of 25 neurons"):
        fl.refine_scores(model, tokenizer, torch.rand(3, 25), REFINE_PAIRS, count=5)
    assert rows == []


def test_layers_of_two_widths_are_padded_to_the_wider_one(tokenizer, tmp_path):
    pruned = fl.prune(tiny_model(), fl.NeuronSelection({1: (4,)}, (3, 24)))
    assert [mlp.down_proj.in_features for mlp in glu_blocks(pruned)] == [24, 23, 24]
    fl.save_model(pruned, tokenizer, tmp_path)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert furthest(logits_of(loaded, tokenizer), logits_of(pruned, tokenizer)) < 1e-4
    # what is written goes through `_say_it_to_older_releases`
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"]
    with pytest.raises(ValueError, match="got 3 and 3 layers, of 23 or 24 neurons"):
        fl.removed_neurons(pruned, pruned)


def test_a_cut_in_place_is_written_over_the_matrix_of_the_layer_before():
    model = tiny_model()
    first = [matrix.data_ptr() for matrix in glu_weights(glu_blocks(model)[0])]
    fl.prune(model, tiny_selection(), inplace=True)
    second = [matrix.data_ptr() for matrix in glu_weights(glu_blocks(model)[1])]
    assert second == first
    # but not where it holds numbers of another kind
    spare = torch.ones(20, dtype=torch.float64)
    kept = surgery._without_slices(torch.arange(12.0).view(3, 4), 1, [0, 2], spare)
    assert torch.equal(kept, torch.tensor([[1.0, 3.0], [5.0, 7.0], [9.0, 11.0]]))


def test_room_for_all_weights_is_looked_for_before_they_are_written(
    tokenizer, tmp_path, monkeypatch
):
    asked = []

    def refuse(folder, size):
        asked.append((size, [*folder.iterdir()]))
        raise ValueError("no room")

    monkeypatch.setattr(surgery, "check_room", refuse)
    model = tiny_model()
    with pytest.raises(ValueError, match="no room"):
        fl.save_model(model, tokenizer, tmp_path / "model")
    assert asked == [(sum(weight.nbytes for weight in model.parameters()), [])]
    assert not any(tmp_path.iterdir())


def test_all_papers_of_a_model_may_be_written_at_once(tokenizer, tmp_path):
    papers = dict.fromkeys(surgery.BESIDE_A_MODEL, "about it")
    fl.save_model(tiny_model(), tokenizer, tmp_path / "model", beside=papers)
    for name in papers:
        assert (tmp_path / "model" / name).read_text(encoding="utf-8") == "about it"


def test_a_dtype_of_the_same_size_is_no_smaller_one(monkeypatch):
    model = tiny_model(dtype=torch.float16, vocab_size=8)
    for weight in model.parameters():
        weight.data.zero_()  # which any dtype holds
    monkeypatch.setattr(surgery, "source_dtype", lambda _: torch.bfloat16)
    assert surgery._dtype_to_save(model) == torch.float16
    assert surgery._dtype_to_save(model.float()) == torch.bfloat16
    model.lm_head.weight.data[0, 0] = 1 + 2**-10  # more digits than bfloat16 has
    assert surgery._dtype_to_save(model) == torch.float32


def test_older_releases_read_how_positions_are_scaled(tmp_path):
    scaling = {"rope_type": "linear", "factor": 2.0}
    both = {
        "full_attention": {"rope_type": "default", "rope_theta": 9.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 5.0},
    }
    config = {
        "rope_parameters": {**scaling, "rope_theta": 7.0, "partial_rotary_factor": 0.5},
        "text_config": {"rope_parameters": both},
        "a": None,
    }
    added = {"rope_theta": 7.0, "partial_rotary_factor": 0.5, "rope_scaling": scaling}
    of_text = {"rope_theta": 9.0, "rope_local_base_freq": 5.0}
    settings = {"tokenizer_class": "TokenizersBackend", "extra_special_tokens": ["<é>"]}
    for name, value in (("config", config), ("tokenizer_config", settings)):
        (tmp_path / f"{name}.json").write_text(json.dumps(value), encoding="utf-8")
    surgery._say_it_to_older_releases(tmp_path)
    texts = [
        (tmp_path / f"{name}.json").read_text(encoding="utf-8")
        for name in ("config", "tokenizer_config")
    ]
    wanted = config | added | {"text_config": config["text_config"] | of_text}
    # laid out as transformers does, to the letter
    assert texts[0] == json.dumps(wanted, indent=2, sort_keys=True) + "\n"
    named = {"tokenizer_class": "PreTrainedTokenizerFast", "additional_special_tokens": ["<é>"]}
    assert texts[1] == json.dumps(named, indent=2, ensure_ascii=False) + "\n"
