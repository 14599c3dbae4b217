"""A model on several devices, or with offloaded weights, measures what it measures on one.

No GPU is needed. Accelerate tells places apart by their names, so `torch.device("cpu")` stands in
for a GPU, and "cpu" for the computer's memory: what is offloaded there (or to "disk") has no values
between forward passes, as with a real GPU.
"""

import json
import logging
import sys
from functools import lru_cache, partial

import accelerate
import numpy as np
import pytest
import torch

import fairlab as fl
from fairlab import cli, gating, models
from fairlab.evaluation.readings import bits_of
from fairlab.scores import CAUSAL_METHODS, DIFFERENCE_METHODS, WEIGHT_METHODS, decision_scores
from fairlab.suites.likelihoods import log_likelihoods
from tiny_models import bytes_of, same_bytes, tiny_model

GPU = torch.device("cpu")
# where the three layers of a tiny model lie, and all that is not in a layer
PLACES = {
    "offloaded": ("cpu", GPU, "disk", "cpu"),
    "two devices": (GPU, "cpu", "cpu", GPU),  # where GPU and "cpu" are one device and another
}
TEXT = "The tide comes in twice a day, and twice a day it goes out again. " * 4
PAIRS = fl.load_pairs("race", split="validation")[:3]
NEUTRAL = fl.load_pairs(split="validation", kind="neutral")[:3]
CUT = fl.NeuronSelection({0: (1, 2), 2: (5,)}, (3, 24))
GATES = fl.NeuronGates({0: {1: (0.0, 0.7)}, 2: {23: (2.0, 0.1)}}, (3, 24))
SCORES = torch.arange(72.0).view(3, 24)


def device_map(model, where):
    """Name the device of each part of a model."""
    places, layers = PLACES[where], fl.decoder_layers(model)
    path = next(path for path, module in model.named_modules() if module is layers)
    parts = {}
    for name in model.state_dict():
        if not name.startswith(f"{path}."):
            parts[name.rpartition(".")[0]] = places[3]
    return parts | {f"{path}.{layer}": places[layer] for layer in range(3)}


def spread(model, where, folder):
    """Let Accelerate dispatch a model, as transformers does when it loads one."""
    parts = device_map(model, where)
    main = "cpu" if where == "two devices" else GPU  # here nothing on "cpu" is offloaded
    options = {"main_device": main, "offload_dir": folder, "force_hooks": True}
    logging.getLogger("accelerate.big_modeling").setLevel(logging.ERROR)
    skipped = model._skip_keys_device_placement
    return accelerate.dispatch_model(model, parts, skip_keys=skipped, **options)


@pytest.fixture
def offloaded(tmp_path):
    return spread(tiny_model(), "offloaded", tmp_path / "weights")


@pytest.fixture
def two_devices(tmp_path):
    return spread(tiny_model(), "two devices", tmp_path)


def test_the_stand_ins_are_what_they_stand_for(offloaded, two_devices):
    """Weights without values, and hooks that fetch them; or hooks alone."""
    assert offloaded.device.type == "meta"
    for layer, is_meta in enumerate((True, False, True)):
        assert offloaded.model.layers[layer].mlp.down_proj.weight.is_meta is is_meta
    assert not any(parameter.is_meta for parameter in two_devices.parameters())
    assert hasattr(two_devices.model.layers[1].mlp.down_proj, "_hf_hook")


# ---- what is measured


def likelihoods(model, tokenizer):
    requests = [((5, 6, 7), (8, 9)), ((5, 6), (7,)), ((3, 4), (1, 2, 3))]
    alone = log_likelihoods(model, requests, 2, max_length=16)
    return alone + log_likelihoods(model, requests, 2, max_length=16, side_by_side=True)


def steps_of_learning(model, tokenizer):
    neutral = fl.load_pairs(split="validation", kind="neutral")[:16]
    learned = fl.learned_gates(model, tokenizer, PAIRS, neutral, GATES, text=TEXT, steps=1)
    return learned.to_json()


def gap_under(intervention, model, tokenizer):
    with intervention(model):
        return fl.next_token_divergence(model, tokenizer, PAIRS)


MEASURES = {
    "gap": partial(fl.next_token_divergence, pairs=PAIRS),
    "decision gap": partial(fl.decision_gap, pairs=PAIRS),
    "metric": partial(fl.article_metric, pair=fl.ARTICLE_PAIR),
    "projection": lambda *loaded: fl.project_pair(*loaded, fl.ARTICLE_PAIR).coordinates,
    "layers": lambda *loaded: fl.layer_differences(*loaded, PAIRS, neutral=NEUTRAL).to_csv(),
    "signed": lambda *loaded: fl.bias_scores(*loaded, PAIRS, signed=True),
    "decision scores": partial(decision_scores, pairs=PAIRS),
    "fisher": lambda model, tokenizer: fl.importance_scores(
        model, method="fisher", tokenizer=tokenizer, text=TEXT
    ),
    "refined": lambda *loaded: fl.refine_scores(*loaded, SCORES, PAIRS, count=4),
    "means": lambda *loaded: gating.mean_activations(*loaded, TEXT),
    "learned gates": steps_of_learning,
    "perplexity": lambda *loaded: fl.perplexity(*loaded, TEXT, window=16),
    "text": lambda *loaded: fl.generate(*loaded, ["A Black man"], max_length=8),
    "samples": lambda *loaded: fl.sample_continuations(
        *loaded, PAIRS[:1], n=2, max_new_tokens=4
    ).to_csv(),
    "likelihoods": likelihoods,
    "under a cut": partial(gap_under, lambda model: fl.ablate(model, CUT)),
    "under gates": partial(gap_under, lambda model: fl.gated(model, GATES)),
    "hash": lambda model, tokenizer: bits_of(model),
    "what a copy lacks": lambda model, tokenizer: fl.removed_neurons(
        model, fl.prune(tiny_model(), CUT)
    ).to_json(),
}
for method in (*DIFFERENCE_METHODS, *CAUSAL_METHODS):
    MEASURES[method] = partial(fl.bias_scores, pairs=PAIRS, method=method)
for method in WEIGHT_METHODS:
    MEASURES[method] = lambda model, tokenizer, method=method: fl.importance_scores(
        model, method=method
    )


@lru_cache
def on_one_device(measure, tokenizer):
    return MEASURES[measure](tiny_model(), tokenizer)


@pytest.mark.parametrize("measure", MEASURES)
def test_the_numbers_are_those_of_one_device(offloaded, measure, tokenizer):
    measured = MEASURES[measure](offloaded, tokenizer)
    assert np.array_equal(measured, on_one_device(measure, tokenizer))


@pytest.mark.parametrize(
    ("family", "where"),
    [
        ("Llama", "two devices"),
        ("Llama, biases, tied", "offloaded"),
        ("Gemma 3, multimodal", "offloaded"),
        ("Phi-3", "offloaded"),
    ],
)
def test_other_families_and_places(family, where, tokenizer, tmp_path):
    whole, other = tiny_model(family), spread(tiny_model(family), where, tmp_path)
    for measure in ("decision gap", "attribution", "maw", "hash"):
        numbers = [MEASURES[measure](model, tokenizer) for model in (whole, other)]
        assert np.array_equal(*numbers)


def test_a_comparison_and_what_it_keeps(tokenizer, tmp_path):
    held_out = fl.HeldOut(PAIRS, NEUTRAL, TEXT)
    tables = []
    for model in (tiny_model(), spread(tiny_model(), "offloaded", tmp_path / "weights")):
        options = {"n_random": 1, "metric": False, "cache": tmp_path / "cache"}
        compared = fl.compare(model, tokenizer, {"cut": CUT}, held_out, **options)
        tables.append(compared.table.to_csv() + compared.draws.to_csv() + compared.weights_sha256)
    assert tables[0] == tables[1]
    assert len(list((tmp_path / "cache").iterdir())) == 1  # both are one model to the cache


def test_an_offloaded_model_stays_as_it_is(offloaded, tokenizer):
    before = bits_of(offloaded), models.places_of(offloaded)
    for measure in ("attribution", "maw", "under a cut"):
        MEASURES[measure](offloaded, tokenizer)
    assert (bits_of(offloaded), models.places_of(offloaded)) == before
    assert before[1] == "offloaded, cpu"
    assert all(parameter.requires_grad for parameter in offloaded.parameters())
    assert all(parameter.grad is None for parameter in offloaded.parameters())


def test_weights_that_are_nowhere_are_not_scored():
    empty = tiny_model().to("meta")
    for measure in ("maw", "hash"):
        with pytest.raises(ValueError, match="model: its weights have no values"):
            MEASURES[measure](empty, None)


# ---- what is not done with offloaded weights


@pytest.mark.parametrize(
    ("wish", "change"),
    [
        ("cut", partial(fl.prune, selection=CUT)),
        ("cut", partial(fl.prune, selection=CUT, inplace=True)),
        ("folded", partial(fl.fold_gates, gates=GATES)),
        ("planted into", partial(fl.plant_neurons, tokenizer=None, pairs=PAIRS, n=1, cost=0.1)),
        ("saved", partial(fl.save_model, tokenizer=None, folder="out")),
    ],
)
def test_offloaded_weights_are_not_changed(offloaded, wish, change, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = bits_of(offloaded)
    message = rf"model: it can't be {wish}, .*offloaded.* Load it on one device, or in bfloat16"
    with pytest.raises(ValueError, match=message):
        change(offloaded)
    assert bits_of(offloaded) == before
    assert not (tmp_path / "out").exists()


SLOPES = {
    "attribution": lambda *loaded: fl.bias_scores(
        *loaded, PAIRS, method="attribution", relative=True
    ),
    "patching": MEASURES["patching"],
    "decision scores": MEASURES["decision scores"],
    "fisher": MEASURES["fisher"],
    "learned gates": steps_of_learning,
    "balanced gates": lambda *loaded: fl.balanced_gates(
        *loaded, PAIRS, NEUTRAL, text=TEXT, fraction=0.1
    ),
}


@pytest.mark.parametrize("score", SLOPES)
def test_slopes_without_room_are_refused_before_a_pass(offloaded, score, tokenizer, monkeypatch):
    def count(module, inputs):
        pytest.fail("a forward pass")

    in_layers = sum(
        parameter.nbytes
        for layer in offloaded.model.layers
        for parameter in layer.parameters()
        if parameter.is_meta
    )
    monkeypatch.setattr(models, "free_bytes", lambda device: in_layers - 1)
    offloaded.model.embed_tokens.register_forward_pre_hook(count)
    with pytest.raises(ValueError, match=r"model: .* offloaded, slopes need all .* on cpu at once"):
        SLOPES[score](offloaded, tokenizer)


def test_room_for_slopes_counts_what_a_backward_pass_keeps(two_devices, offloaded, monkeypatch):
    kept = [
        parameter.nbytes
        for name, parameter in offloaded.named_parameters()
        if parameter.is_meta and "embed" not in name
    ]
    monkeypatch.setattr(models, "free_bytes", lambda device: sum(kept))
    models.check_room_for_slopes(offloaded)
    monkeypatch.setattr(models, "free_bytes", lambda device: 0)
    models.check_room_for_slopes(two_devices)


# ---- on several devices, without offload, all is done


# transformers takes what lies on "cpu" for offloaded
@pytest.mark.filterwarnings("ignore:Attempting to save a model with offloaded modules")
@pytest.mark.parametrize("inplace", [False, True])
def test_a_cut_on_two_devices(two_devices, inplace, tokenizer, tmp_path):
    expected = bytes_of(fl.prune(tiny_model(), CUT))
    before = bytes_of(two_devices)
    cut = fl.prune(two_devices, CUT, inplace=inplace)
    assert same_bytes(cut, expected)
    assert same_bytes(two_devices, before) is not inplace
    for mlp in models.glu_blocks(cut):
        for name in ("gate_proj", "up_proj", "down_proj"):
            assert hasattr(getattr(mlp, name), "_hf_hook")
    fl.save_model(cut, tokenizer, tmp_path / "cut")
    reloaded, _ = fl.load_model(tmp_path / "cut", device="cpu")
    gaps = [fl.next_token_divergence(model, tokenizer, PAIRS) for model in (cut, reloaded)]
    assert torch.equal(*gaps)


def test_gates_are_folded_on_two_devices(two_devices):
    assert same_bytes(
        fl.fold_gates(two_devices, GATES), bytes_of(fl.fold_gates(tiny_model(), GATES))
    )


@pytest.mark.parametrize("change", [partial(fl.prune, selection=CUT), models.copy_model])
def test_a_copy_moves_alone(two_devices, change):
    """Accelerate gives the original a `to` of its own, which copies would share."""
    copied = change(two_devices).to(torch.bfloat16)
    assert copied.dtype == torch.bfloat16
    assert two_devices.dtype == torch.float32


# ---- loading

OFFLOADED = '{"": "cpu", "model.layers.1": "disk", "model.layers.2": "disk"}'


@pytest.fixture(scope="module")
def folder(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    fl.save_model(tiny_model(), tokenizer, folder)
    return folder


def test_a_model_loads_to_where_the_dict_says(folder, tokenizer, capsys):
    loaded, _ = fl.load_model(folder, device_map=json.loads(OFFLOADED))
    assert not loaded.training
    assert models.places_of(loaded) == "cpu, offloaded"
    assert bits_of(loaded) == bits_of(tiny_model())
    for measure in ("gap", "maw"):
        expected = on_one_device(measure, tokenizer)
        assert torch.equal(MEASURES[measure](loaded, tokenizer), expected)
    fl.describe_model(loaded)
    assert f"float32 on {models.places_of(loaded)}" in capsys.readouterr().out


@pytest.mark.parametrize("named", models.DEVICE_MAPS)
def test_accelerate_chooses_by_name(folder, named):
    loaded, _ = fl.load_model(folder, device_map=named)
    assert bits_of(loaded) == bits_of(tiny_model())


def test_offloaded_weights_have_the_dtype_asked_for(folder):
    loaded, _ = fl.load_model(folder, device_map=json.loads(OFFLOADED), dtype="bfloat16")
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}
    assert bits_of(loaded) == bits_of(tiny_model(dtype=torch.bfloat16))


ALL = {"model": "cpu", "lm_head": "cpu"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"device": "cpu", "device_map": "auto"},
            "device, device_map: expected one of them.* got 'cpu' and 'auto'",
        ),
        ({"device_map": "even"}, "expected auto, balanced, sequential, or a dict .* got 'even'"),
        ({"device_map": {}}, r"expected auto, balanced, sequential, or a dict .* got \{\}"),
        ({"device_map": ["cpu"]}, r"expected auto, balanced, sequential, or a dict .* got \["),
        ({"device_map": ALL | {"lm_head": "moon"}}, "expected for 'lm_head' a device .* 'moon'"),
        ({"device_map": ALL | {"lm_head": 99}}, "expected for 'lm_head' a device .* got 99"),
        ({"device_map": ALL | {"lm_head": None}}, "expected for 'lm_head' a device .* got None"),
        (
            {"device_map": {"": "meta"}},
            "expected for '' a device .* got 'meta', where .* no values",
        ),
        (
            {"device_map": ALL | {"model.layer.0": "cpu"}},
            r"expected parts of .*, such as model\.layers\.0; got model\.layer\.0",
        ),
        (
            {"device_map": {"model.layers": "cpu", "model.norm": "cpu"}},
            r"a device for every part of .*; none for model\.embed_tokens\.weight, lm_head\.weight",
        ),
        (
            {"device_map": {"model.layers.0": "cpu"}},
            r"none for (\S+, ){2}\S+ and \d+ more",
        ),
    ],
)
def test_bad_maps_are_refused_before_weights_are_read(folder, options, message, monkeypatch):
    def read(*arguments, **options):
        pytest.fail("weights were read")

    monkeypatch.setattr(models.AutoModelForCausalLM, "from_pretrained", read)
    with pytest.raises(ValueError, match=message):
        fl.load_model(folder, **options)


def test_a_part_may_lie_elsewhere_than_the_rest(tokenizer, tmp_path):
    """transformers would take layer 10 for a part of layer 1, and Accelerate would not."""
    deep = tiny_model(num_hidden_layers=11)
    fl.save_model(deep, tokenizer, tmp_path)
    places = {"": GPU, "model.layers.1": "disk", "model.layers.2.mlp.up_proj": "disk"}
    loaded, _ = fl.load_model(tmp_path, device_map=places)
    assert bits_of(loaded) == bits_of(deep)
    lying = [name for name, parameter in loaded.named_parameters() if parameter.is_meta]
    assert len(lying) == 10
    assert all(name.startswith(("model.layers.1.", "model.layers.2.mlp.up_")) for name in lying)
    gaps = [MEASURES["gap"](model, tokenizer) for model in (loaded, deep)]
    assert torch.equal(*gaps)


def test_the_memory_of_all_devices_decides_on_the_dtype(folder, monkeypatch):
    config = models.AutoConfig.from_pretrained(folder)
    config.dtype = torch.bfloat16
    needed = models.float32_bytes(config)
    places = [torch.device("cpu"), torch.device("cuda", 1)]
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **options: True)
    monkeypatch.setattr(models, "free_bytes", lambda place: needed // 2)
    assert models._auto_dtype(config, "name", places) == torch.float32
    monkeypatch.setattr(models, "free_bytes", lambda place: needed // 2 - 1)
    with pytest.warns(
        UserWarning, match="cpu and cuda:1 together have .* it is loaded in bfloat16"
    ):
        assert models._auto_dtype(config, "name", places) == torch.bfloat16


def test_which_memory_counts(monkeypatch):
    assert models.check_places("auto", ALL | {"lm_head": "disk"}) == [GPU]
    assert models.check_places("auto", {"": "disk"}) == [GPU]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert models.check_places("auto", "balanced") == [GPU]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    gpus = [torch.device("cuda", 0), torch.device("cuda", 1)]
    assert models.check_places("auto", "balanced") == gpus


# ---- the command line

COMMANDS = ("diagnose", "score", "prune", "compare", "report")


@pytest.fixture
def run(folder, capfd, monkeypatch, tmp_path):
    """Run the command line on the tiny model; return exit code, standard output and error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fl, "load_text", lambda name, language="en": TEXT)

    def run(command, *options):
        out = {"prune": ["--out", "cut"], "report": ["--out", "page.html"]}.get(command, [])
        arguments = ["fairlab", command, "--model", str(folder), *out, *map(str, options)]
        monkeypatch.setattr(sys, "argv", arguments)
        with pytest.raises(SystemExit) as end:
            cli.main()
        return end.value.code or 0, *capfd.readouterr()

    return run


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--device-map", "auto", "--device", "cpu"], "device, device_map: expected one of them"),
        (["--device-map", "even"], "device_map: expected auto, balanced, sequential"),
        (["--device-map", "{model: 0}"], "device_map: expected a JSON dict, such as"),
        (["--device-map", '{"model": "moon"}'], "device_map: expected for 'model' a device"),
    ],
)
def test_bad_options_are_refused_before_a_model_loads(run, command, options, message, monkeypatch):
    monkeypatch.setattr(fl, "load_model", lambda *_, **__: pytest.fail("a model is loaded"))
    code, out, err = run(command, *options)
    assert (code, out) == (2, "")
    assert message in err and err.count("\n") == 1


@pytest.mark.parametrize(
    "options",
    [
        ["diagnose", "--pairs", "article"],
        ["score", "--pairs", "article", "--method", "article"],
    ],
)
def test_commands_print_the_numbers_of_one_device(run, options):
    printed = []
    for more in (["--device", "cpu"], ["--device-map", OFFLOADED]):
        code, out, err = run(*options, "--json", *more)
        assert code == 0, err
        printed.append(json.loads(out) | {"environment": None})  # it has the time
    assert printed[0] == printed[1]


def test_an_offloaded_model_is_not_cut(run, monkeypatch, tmp_path):
    monkeypatch.setattr(fl, "article_cut", lambda *_, **__: pytest.fail("neurons are chosen"))
    options = ["--method", "article", "--fraction", "0.1", "--device-map", OFFLOADED]
    code, out, err = run("prune", *options)
    assert (code, out) == (2, "")
    assert "model: it can't be cut, since some of its weights are offloaded" in err
    assert not list(tmp_path.iterdir())


def test_a_changed_model_lies_where_the_original_does(run, folder, monkeypatch):
    load, places = fl.load_model, []

    def see(*arguments, **options):
        loaded = load(*arguments, **options)
        places.append(models.places_of(loaded[0]))
        return loaded

    def compare(model, tokenizer, cuts, held_out, **options):
        raise ValueError("so far")

    monkeypatch.setattr(fl, "load_model", see)
    monkeypatch.setattr(fl, "compare", compare)
    options = ["--pairs", "race", "--changed", folder, "--quick", "--no-cache"]
    code, _, err = run("compare", *options, "--device-map", OFFLOADED)
    assert (code, err.splitlines()[-1]) == (2, "fairlab: so far")
    assert places == ["cpu, offloaded"] * 2


@pytest.mark.parametrize("command", COMMANDS)
def test_help_names_the_option(command, run):
    code, out, _ = run(command, "--help")
    assert code == 0 and "--device-map" in out
