"""What goes wrong round a run: damaged files, full disks, lack of memory, processes that are
killed."""

import errno
import functools
import gc
import inspect
import json
import linecache
import logging
import multiprocessing
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import warnings
import weakref
from contextlib import contextmanager, suppress
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import run_tests
import torch
import transformers
import typer
from safetensors import SafetensorError
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import fairlab as fl
from fairlab import cli, files, gates, gating, models, passes, planting, precision, weights
from fairlab.cli import kept
from fairlab.evaluation import compare as comparing
from fairlab.evaluation import flattening, readings
from fairlab.scores import decision_scores
from fairlab.suites import harness
from fairlab.suites.likelihoods import log_likelihoods
from tiny_models import tiny_model

TEXT = "The clerk read the letter twice and put it away. " * 4
CUT = fl.NeuronSelection({0: (1, 2), 2: (5,)}, (3, 24))
OTHER = fl.NeuronSelection({1: (4,)}, (3, 24))


@pytest.fixture(scope="module")
def tiny():
    return tiny_model()


@pytest.fixture(scope="module")
def held_out():
    templates = list(dict.fromkeys(pair.template for pair in fl.load_pairs("race")))[:2]
    pairs = [pair for pair in fl.load_pairs("race") if pair.template in templates]
    neutral = [pair for pair in fl.load_pairs("mood", kind="neutral")][:4]
    return fl.HeldOut(pairs, neutral, TEXT)


# ---- kept readings


def reading(seconds=1.0, **changes):
    """Make up a reading of three pairs and five tokens."""
    arrays = {
        "gap": np.array([0.1, 0.2, 0.3], np.float32),
        "gap_without_pronouns": np.array([0.1, 0.2, 0.3], np.float32),
        "metric": np.full(3, np.nan, np.float32),
        "decision": np.array([0.5, np.nan, -0.5], np.float32),
        "losses": np.arange(5, dtype=np.float32),
        "seconds": np.array(seconds),
    }
    return readings.Reading(**arrays | changes)


def numbers_of(read):
    return b"".join(np.asarray(value).tobytes() for value in vars(read).values())


@pytest.fixture
def shelf(tmp_path):
    """Have a folder with one kept reading, and the list of cuts that were measured."""
    measured = []

    def measure(cut):
        measured.append(cut)
        return reading()

    keeper = readings.KeptReadings(tmp_path / "kept", measure, (3, 5))
    keeper(CUT)
    measured.clear()
    return keeper, measured


def test_a_damaged_reading_is_measured_again(shelf):
    """Bits flipped all over the file, and the file broken off: the same numbers, always."""
    keeper, measured = shelf
    path, whole = keeper.path(CUT), keeper.path(CUT).read_bytes()
    broken = [b"", *(whole[:end] for end in range(1, len(whole), 100))]
    for place in range(0, len(whole), 7):  # 7: in every part of the file's headers
        changed = bytearray(whole)
        changed[place] ^= 1 << place % 8
        broken.append(bytes(changed))
    again = 0
    for content in broken:
        path.write_bytes(content)
        measured.clear()
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("ignore")
            warnings.simplefilter("always", UserWarning)
            assert numbers_of(keeper(CUT)) == numbers_of(reading())
        told = [str(one.message) for one in told if "measured again" in str(one.message)]
        assert len(told) == len(measured)  # told if and only if measured again
        if measured:
            again += 1
            assert str(path) in told[0]
            assert path.read_bytes()[:2] == b"PK"
    assert again > len(broken) / 2  # the rest are dates and padding: the numbers are whole


@pytest.mark.parametrize(
    "changes",
    [
        {"gap": np.zeros(4, np.float32)},
        {"losses": np.zeros(4, np.float32)},
        {"losses": np.full(5, np.nan, np.float32)},
        {"gap": np.array([0.1, np.inf, 0.2], np.float32)},
        {"decision": np.zeros((3, 1), np.float32)},
        {"metric": np.zeros(3, int)},
        {"seconds": np.array(np.nan)},
    ],
    ids=str,
)
def test_a_reading_of_another_form_is_measured_again(changes, shelf):
    keeper, measured = shelf
    np.savez(keeper.path(CUT), **vars(reading(**changes)))
    with pytest.warns(UserWarning, match="damaged and is measured again"):
        assert numbers_of(keeper(CUT)) == numbers_of(reading())
    assert measured == [CUT]
    assert keeper(CUT) is not None and measured == [CUT]  # the new one was kept


def test_a_kept_reading_runs_no_code(shelf, tmp_path):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "sprung"),)

    keeper, measured = shelf
    np.savez(keeper.path(CUT), **vars(reading(gap=np.array([Trap()] * 3, dtype=object))))
    with pytest.warns(UserWarning, match="damaged and is measured again"):
        keeper(CUT)
    assert measured == [CUT] and not (tmp_path / "sprung").exists()


def full_disk(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("fails", ["os.replace", "numpy.savez"])
def test_a_reading_that_can_not_be_kept_is_not_lost(fails, shelf, monkeypatch):
    keeper, _ = shelf
    monkeypatch.setattr(fails, full_disk)
    with pytest.warns(UserWarning, match=r"a reading is not kept.*No space left.*run goes on"):
        assert numbers_of(keeper(OTHER)) == numbers_of(reading())
    assert [path.name for path in keeper.folder.iterdir()] == [keeper.path(CUT).name]


def test_a_comparison_outlives_a_full_disk(tiny, tokenizer, held_out, tmp_path, monkeypatch):
    options = {"n_random": 1, "metric": False}
    wanted = fl.compare(tiny, tokenizer, {"cut": CUT}, held_out, **options)
    calls, replace = [], os.replace

    def second_fails(*arguments):
        calls.append(arguments)
        return full_disk() if len(calls) == 2 else replace(*arguments)

    monkeypatch.setattr(os, "replace", second_fails)
    with pytest.warns(UserWarning, match="a reading is not kept"):
        found = fl.compare(tiny, tokenizer, {"cut": CUT}, held_out, cache=tmp_path, **options)
    assert found.table.equals(wanted.table)
    assert len(calls) == 3 and len(list(tmp_path.glob("*/*.npz"))) == 2


def test_a_kept_text_or_cut_is_no_trap(tmp_path, monkeypatch):
    path = tmp_path / "cuts" / "a.json"
    files.keep(path, CUT.to_json())
    assert kept.kept_cut(path) == CUT
    for content in (b"", b"\xff\xfe", b"[]", b'{"neurons": 3}', path.read_bytes()[:-9]):
        path.write_bytes(content)
        with pytest.warns(UserWarning, match="damaged and is made again"):
            assert kept.kept_cut(path) is None
    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.warns(UserWarning, match=r"is not kept.*No space left"):
        files.keep(path, CUT.to_json())
    assert list(path.parent.iterdir()) == [path]


# ---- what is refused before the model reads anything


GATES = fl.NeuronGates({0: {1: (0.5, 0.1)}}, (3, 24))
BAD = {
    "selections that are a list": ({"selections": [CUT]}, "selections: expected a dict.*got list"),
    "selections that are None": ({"selections": None}, "selections: expected a dict"),
    "no selection": ({"selections": {}}, "selections: expected at least one"),
    "a path": ({"selections": {"a": "cut.json"}}, "selections: expected Neuron.*'a'; got str"),
    "pairs in place of all": ({"held_out": []}, "held_out: expected fairlab.HeldOut"),
    "batches of one": ({"batch_size": 1}, "batch_size: expected a whole number of at least 2"),
    "batches of none": ({"batch_size": None}, "batch_size: expected a whole number"),
    "no random cut": ({"n_random": 0}, "n_random: expected a whole number of at least 1"),
    "a seed": ({"seed": -1}, "seed: expected a whole number"),
    "a table alone": ({"match": torch.ones(3, 24)}, "match: expected a dict"),
    "a table of another shape": ({"match": {"a": torch.ones(3, 25)}}, "match: .*shape"),
    "a table with NaN": ({"match": {"a": torch.full((3, 24), torch.nan)}}, "match: .*finite"),
    "what is imitated": ({"imitated": [CUT]}, "imitated: expected a dict"),
    "a cache that is a file": ({"cache": __file__}, "cache: expected a folder; got the file"),
    "a cache that can not be written": (
        {"cache": Path(__file__, "kept")},
        "cache: .*kept can't be written",
    ),
    "a cache that is no path": ({"cache": 3}, "cache: expected a folder; got int"),
    "a short text": ({"text": "A"}, "text: expected at least two tokens"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_comparison_refuses_before_any_pass(name, tiny, tokenizer, held_out, monkeypatch):
    changes, says = BAD[name]
    monkeypatch.setattr(type(tiny), "forward", lambda *_, **__: pytest.fail("the model read"))
    for module in (readings, comparing):
        monkeypatch.setattr(module, "bits_of", lambda _: pytest.fail("the weights were read"))
    given = {"selections": {"gates": GATES}, "held_out": held_out, **changes}
    if "text" in given:
        given["held_out"] = replace(held_out, text=given.pop("text"))
    with pytest.raises((TypeError, ValueError), match=says):
        fl.compare(tiny, tokenizer, **given)


# ---- processes that are killed


CAN_FORK = pytest.mark.skipif(not run_tests.CAN_FORK, reason="no safe fork")


def killed_in(work):
    """Do some work in a fork of this process, which must be killed in it."""
    child = os.fork()
    if not child:
        with suppress(BaseException):
            work()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL


def dying(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)


def dies_at(call, function):
    """Return a function whose n-th call kills the process."""
    calls = []

    def counted(*arguments, **options):
        calls.append(arguments)
        return dying() if len(calls) == call else function(*arguments, **options)

    return counted


def fill_with(text):
    def fill(folder):
        (folder / "config.json").write_text(text, encoding="utf-8")
        (folder / "model.safetensors").write_text(text, encoding="utf-8")

    return fill


def replace_with(folder, text):
    files.replace_folder(folder, fill_with(text), stale=lambda name: name == "stale")


def texts_of(folder):
    return {path.name: path.read_text(encoding="utf-8") for path in folder.iterdir()}


NEW = dict.fromkeys(["config.json", "model.safetensors"], "new")
OLD = dict.fromkeys(NEW, "old") | {"notes.txt": "mine"}


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "my [model]"  # a name that is a pattern, too
    fill_with("old")(make(folder))
    (folder / "notes.txt").write_text("mine", encoding="utf-8")
    return folder


def make(folder):
    folder.mkdir()
    return folder


def grow_old(parent):
    for path in parent.rglob("*"):
        os.utime(path, (0, 0))


@CAN_FORK
@pytest.mark.parametrize("call", [1, 2])
def test_kill_9_between_the_renames_costs_no_model(call, folder, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", dies_at(call, os.rename))
        killed_in(lambda: replace_with(folder, "new"))
    if call == 2:
        (old,) = folder.parent.glob("my*.before-*")
        assert not folder.exists() and texts_of(old) == OLD
        with pytest.raises(ValueError, match=r"old one is in .*\.before-\d+: rename it"):
            weights.find_weights(folder)
        with (
            pytest.warns(UserWarning, match="stopped while it replaced it; the old one is back"),
            pytest.raises(ValueError, match=r"holds .*; choose a new folder"),
        ):
            files.check_output_folder("folder", folder)
    assert texts_of(folder) == OLD
    assert len(list(folder.parent.iterdir())) == 2  # the model, and what was to take its place
    replace_with(folder, "new")
    assert len(list(folder.parent.iterdir())) == 2  # it is young: perhaps another process's
    grow_old(folder.parent)
    replace_with(folder, "newer")
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    assert texts_of(folder) == dict.fromkeys(NEW, "newer") | {"notes.txt": "mine"}


@CAN_FORK
def test_kill_9_after_the_renames_leaves_the_new_model(folder, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", dying)
        killed_in(lambda: replace_with(folder, "new"))
    assert texts_of(folder) == NEW | {"notes.txt": "mine"}
    assert len(list(folder.parent.iterdir())) == 3
    grow_old(folder.parent)
    replace_with(folder, "newer")
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_a_folder_that_the_user_named_so_is_left_alone(folder):
    kept = [make(folder.with_name(name)) for name in ("my [model].before-7", ".my [model]-7-notes")]
    (kept[1] / "mine.txt").touch()
    grow_old(folder.parent)
    replace_with(folder, "new")
    shutil.rmtree(folder)
    files.check_output_folder("folder", folder)
    assert sorted(folder.parent.iterdir()) == sorted(kept)


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("call", [1, 2])
def test_a_stop_at_either_rename_leaves_one_whole_model(error, when, call, folder, monkeypatch):
    rename, calls = os.rename, []

    def stopped(*arguments):
        calls.append(arguments)
        if (len(calls), when) == (call, "before"):
            raise error
        rename(*arguments)
        if (len(calls), when) == (call, "after"):
            raise error

    monkeypatch.setattr(os, "rename", stopped)
    with pytest.raises(error):
        replace_with(folder, "new")
    new = (call, when) == (2, "after")
    assert texts_of(folder) == (NEW | {"notes.txt": "mine"} if new else OLD)
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


@CAN_FORK
def test_kill_9_while_a_reading_is_kept_leaves_none(shelf, monkeypatch):
    keeper, measured = shelf
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", dying)
        killed_in(lambda: keeper(OTHER))
    assert len(list(keeper.folder.iterdir())) == 2 and not keeper.path(OTHER).exists()
    grow_old(keeper.folder)
    keeper(OTHER)
    assert measured == [OTHER]
    names = {path.name for path in keeper.folder.iterdir()}
    assert names == {keeper.path(CUT).name, keeper.path(OTHER).name}


@CAN_FORK
def test_kill_9_while_a_text_is_written_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "cut[1].json"
    files.write_text(path, "old")
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", dying)
        killed_in(lambda: files.write_text(path, "new"))
    assert path.read_text(encoding="utf-8") == "old" and len(list(tmp_path.iterdir())) == 2
    grow_old(tmp_path)
    files.write_text(path, "newer")
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    assert path.read_text(encoding="utf-8") == "newer"


# ---- a lack of memory


LACKS = {
    "GPU": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    "CPU": lambda: RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate"),
    "Python": MemoryError,
}


@contextmanager
def room_for(model, rows, lack=LACKS["GPU"], module=None):
    """Let a module, by default the embeddings, take so many rows at once inside the block."""

    def refuse_more(_, inputs):
        # of logits, one row is read at a time: its tokens count
        if inputs[0].shape[1 if module else 0] > rows:
            raise lack()

    module = module and model.get_output_embeddings()
    hook = (module or model.get_input_embeddings()).register_forward_pre_hook(refuse_more)
    try:
        yield
    finally:
        hook.remove()


def read(model, tokenizer, held_out):
    few = replace(held_out, pairs=held_out.pairs[:4], neutral=held_out.neutral[:2])
    found = readings.read_cut(model, tokenizer, few, CUT, metric=True, batch_size=8)
    return torch.tensor(np.concatenate(list(vars(found).values())[:-1]))  # not the seconds


def flatten(model, tokenizer, held_out):
    losses = torch.rand(9, len(flattening.SCALES), generator=torch.Generator().manual_seed(0))
    given = (model, tokenizer, held_out.pairs[:4], losses, [0.1])
    (found,) = flattening.flattened_gaps(*given, batch_size=8)
    return torch.tensor(np.stack([found.before, found.after]))


def sample(model, tokenizer, held_out):
    options = {"n": 3, "max_new_tokens": 2, "batch_size": 8}
    table = fl.sample_continuations(model, tokenizer, held_out.pairs[:2], **options)
    return torch.tensor([ord(letter) for letter in "".join(table.text)])


def likelihoods(model, *_):
    requests = [((5, 6, number), (7, 8)) for number in range(9)]
    return torch.tensor(log_likelihoods(model, requests, 8, max_length=9))[:, 0]


@pytest.fixture
def quick_collection():
    """Let the garbage collector, which takes half a second in a large process, see new things
    alone."""
    gc.freeze()
    yield
    gc.unfreeze()


def few(name, batch_size=8, **options):
    """Measure a few pairs by a public function."""

    def measure(model, tokenizer, held_out):
        given = (model, tokenizer, held_out.pairs[:4])
        return getattr(fl, name)(*given, **options, batch_size=batch_size)

    return measure


def activations(*given):
    return few("neuron_differences", points=["residual"])(*given)["residual"]


def written(model, tokenizer, held_out):
    prompts = [pair.prompt_a for pair in held_out.pairs] * 2
    texts = fl.generate(model, tokenizer, prompts, max_new_tokens=2, num_beams=1, batch_size=8)
    return torch.tensor([ord(letter) for letter in "".join(texts)])


def refined(model, tokenizer, held_out):
    scores = torch.arange(72.0).view(3, 24)
    given = (model, tokenizer, scores, held_out.pairs[:4])
    return fl.refine_scores(*given, count=2, batch_size=8)


def decided(model, tokenizer, held_out):
    return decision_scores(model, tokenizer, held_out.pairs[:4], batch_size=32)


OF_OTHERS = {
    "gaps": few("next_token_divergence"),
    "decisions": few("decision_gap", 32),
    "activations": activations,
    "attribution": few("bias_scores", method="attribution"),
    "patching": few("bias_scores", method="patching"),
    "decision scores": decided,
    "written texts": written,
    "refined scores": refined,
}
IN_BATCHES = OF_OTHERS | {
    "readings": read,
    "flattening": flatten,
    "texts": sample,
    "benchmarks": likelihoods,
}


@pytest.mark.parametrize("name", IN_BATCHES)
@pytest.mark.usefixtures("quick_collection")
def test_where_memory_runs_out_batches_are_halved(name, tiny, tokenizer, held_out):
    measure = IN_BATCHES[name]
    wanted = measure(tiny, tokenizer, held_out)
    room = 6 if "decision" in name else 3  # a pair has a row for each of its answers there
    with (
        room_for(tiny, room),
        pytest.warns(UserWarning, match="there is no memory for .* at once") as told,
    ):
        found = measure(tiny, tokenizer, held_out)
    assert torch.allclose(found, wanted, rtol=1e-4, atol=1e-6, equal_nan=True)
    sizes = [int(re.search(r"again with (\d+)", str(one.message))[1]) for one in told]
    assert 2 <= sizes[-1] <= room
    # said once each; decision scores begin with a pass of their own for the decisions
    assert name == "decision scores" or sizes == sorted(sizes, reverse=True)
    with (
        room_for(tiny, 0),
        warnings.catch_warnings(action="ignore"),
        pytest.raises(torch.OutOfMemoryError, match="CUDA"),
    ):
        measure(tiny, tokenizer, held_out)


@pytest.mark.parametrize("lack", LACKS)
@pytest.mark.usefixtures("quick_collection")
def test_where_memory_runs_out_fewer_logits_are_held(lack, tiny, tokenizer, held_out):
    text = held_out.text
    wanted = passes.token_losses(tiny, tokenizer, text)
    with (
        room_for(tiny, 10, LACKS[lack], "logits"),
        pytest.warns(UserWarning, match="tokens' logits"),
    ):
        found = passes.token_losses(tiny, tokenizer, text)
    assert torch.allclose(found, wanted, rtol=1e-5)


def test_other_errors_are_no_lack_of_memory(tiny, tokenizer, held_out):
    with (
        room_for(tiny, 3, lambda: RuntimeError("shapes do not match")),
        pytest.raises(RuntimeError, match="shapes do not match"),
    ):
        read(tiny, tokenizer, held_out)
    half = tiny_model(dtype=torch.bfloat16)
    with room_for(half, 1), pytest.raises(torch.OutOfMemoryError):  # a pair is a batch there
        read(half, tokenizer, held_out)


class Peak(TorchDispatchMode):
    """Follow how many bytes the tensors made inside the block hold at once, and keep the most."""

    def __init__(self, model):
        super().__init__()
        self.held = self.most = 0
        own = [*model.parameters(), *model.buffers()]
        self.known = {tensor.untyped_storage().data_ptr() for tensor in own}

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        made = function(*arguments, **(options or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor):
                self.note(tensor.untyped_storage())
        return made

    def note(self, storage):
        place, size = storage.data_ptr(), storage.nbytes()
        if size and place not in self.known:
            self.known.add(place)
            self.held += size
            self.most = max(self.most, self.held)
            weakref.finalize(storage, self.release, place, size)

    def release(self, place, size):
        self.known.discard(place)
        self.held -= size


def fisher(model, tokenizer, _):
    return fl.importance_scores(model, method="fisher", tokenizer=tokenizer, text=TEXT)


def losses(model, tokenizer, _):
    return passes.token_losses(model, tokenizer, TEXT)


def means(model, tokenizer, _):
    return gating.mean_activations(model, tokenizer, TEXT)


def learned(model, tokenizer, held_out):
    given = (model, tokenizer, held_out.pairs[:8], NEUTRAL, GATES)
    return fl.learned_gates(*given, text=TEXT, steps=1)


def projected(model, tokenizer, held_out):
    return fl.project_pair(model, tokenizer, held_out.pairs[0])


# what asks for memory before it runs
ASKED = IN_BATCHES | {
    "perplexity": losses,
    "mean activations": means,
    "Fisher's importance": fisher,
    "learned gates": learned,
    "a projection": projected,
    "benchmarks in bfloat16": likelihoods,
}
# without logits, it is the layers that take the room
WITHOUT_LOGITS = ("activations", "mean activations", "a projection")


@pytest.mark.parametrize("name", ASKED)
@pytest.mark.usefixtures("quick_collection")
def test_memory_is_asked_for_first_and_nothing_is_refused_that_fits(
    name, tiny, tokenizer, held_out, monkeypatch
):
    model = tiny_model(intermediate_size=4096) if name in WITHOUT_LOGITS else tiny
    model = tiny_model(dtype=torch.bfloat16) if "bfloat16" in name else model
    measure = partial(ASKED[name], model, tokenizer, held_out)
    measure()  # what is tried once for each model is tried
    with Peak(model) as peak:
        measure()
    free = [peak.most]
    monkeypatch.setattr(passes, "free_bytes", lambda device: free[0])
    with warnings.catch_warnings(action="error"):  # halving would warn
        measure()
    for forward in (type(model), type(model.model)):
        monkeypatch.setattr(forward, "forward", lambda *_, **__: pytest.fail("the model read"))
    free[0] = peak.most // 30
    with warnings.catch_warnings(action="error"), pytest.raises((UserWarning, MemoryError)):
        measure()
    free[0] = 0
    says = r"memory: \d+ × \d+ tokens at once need more than [\d.e-]+ GB, and 0 GB are free on"
    with warnings.catch_warnings(action="ignore"), pytest.raises(MemoryError, match=says):
        measure()


def test_planting_asks_for_memory_before_it_reads(tiny, tokenizer, held_out, monkeypatch):
    models.glu_blocks(tiny)  # tried once
    monkeypatch.setattr(passes, "free_bytes", lambda device: 0)
    monkeypatch.setattr(type(tiny.model), "forward", lambda *_, **__: pytest.fail("the model read"))
    with pytest.raises(MemoryError, match=r"memory: 1 × 128 tokens at once need more than"):
        fl.plant_neurons(tiny, tokenizer, held_out.pairs[:4], n=1, cost=0.05)


def test_a_batch_that_has_no_room_is_halved_before_any_pass(tiny, tokenizer, held_out, monkeypatch):
    wanted, free = read(tiny, tokenizer, held_out), iter([0, 0])
    monkeypatch.setattr(passes, "free_bytes", lambda device: next(free, 10**12))
    with pytest.warns(UserWarning, match="there is no memory for .* prompts at once") as told:
        found = read(tiny, tokenizer, held_out)
    sizes = [int(re.search(r"again with (\d+)", str(one.message))[1]) for one in told]
    assert sizes == [4, 2]
    assert torch.allclose(found, wanted, rtol=1e-4, atol=1e-6, equal_nan=True)


def test_a_model_on_several_devices_is_not_looked_at(tiny, monkeypatch):
    monkeypatch.setattr(passes, "free_bytes", lambda device: 0)
    model = deepcopy(tiny)
    with pytest.raises(MemoryError, match="memory: 2 × 3 tokens at once"):
        passes.check_memory(model, [(2, 3, 1), (1, 3, 1)])
    model.model.layers[1].to("meta")
    passes.check_memory(model, [(2, 3, 1)])


@pytest.mark.parametrize(("error", "said"), [(MemoryError("a: b"), "a: b"), (MemoryError(), "Mem")])
def test_on_the_command_line_a_lack_of_memory_is_one_line(error, said, monkeypatch, capsys):
    def run():
        raise error

    monkeypatch.setattr(cli, "app", run)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert re.fullmatch(rf"fairlab: {said}.*\n", capsys.readouterr().err)


# ---- a stop or an error at any moment


def places(model):
    layers = fl.decoder_layers(model)
    return layers, torch.zeros(1, 2, model.config.hidden_size)


MANAGERS = {
    "full precision": lambda model: precision.full_precision(),
    "an attribute": lambda model: precision.attribute_set_to(model, "generation_config", None),
    "what enters layers": lambda model: passes.layer_inputs(places(model)[0]),
    "skipped layers": lambda model: passes.skipping(*places(model)),
    "no progress bar": lambda model: weights.no_progress_bar(),
    "hub errors": lambda model: weights.hub_errors_explained("name"),
    "gates": lambda model: fl.gate(model, torch.full((3, 24), 0.5)),
    "gates to be learned": lambda model: fl.gate(model, torch.ones(3, 24, requires_grad=True)),
    "a cut": lambda model: fl.ablate(model, CUT),
    "neuron gates": lambda model: fl.gated(model, GATES),
    "a cut or gates": lambda model: gating.applied(model, CUT),
    "activations": lambda model: fl.record(model, ["residual", "down_proj_input"]),
    "frozen weights": lambda model: gates.frozen(model),
    "hooks of others": lambda model: models._hooks_set_aside(model),
    "weights at hand": lambda model: models.weights_at_hand(model),
    "MLPs": lambda model: planting._record_mlps(model, [0, 2]),
    "a planting": lambda model: planting._undone_on_failure(models.glu_blocks(model)),
    "the harness": lambda model: harness.quiet_harness(),
}


@pytest.fixture(scope="module")
def with_hook():
    """Make a model without a vocabulary to speak of, with a hook of its user's."""
    model = tiny_model(vocab_size=64)
    model.model.layers[1].mlp.register_forward_hook(lambda *_: None)
    models.glu_blocks(model)  # tried once
    return model


def warmed_up(name, model):
    """Enter a manager of the table once, which may import what it needs; return the state then."""
    if name == "the harness":
        pytest.importorskip("lm_eval", reason='no harness: pip install "fairlab[eval]"')
    with MANAGERS[name](model):
        pass
    return state_of(model)


def state_of(model):
    """Return all that a block may change, outside and in the model."""
    of_modules = [
        (len(module._forward_hooks), len(module._forward_pre_hooks), "forward" in vars(module))
        for module in model.modules()
    ]
    settings = [torch.get_default_dtype(), torch.is_grad_enabled(), torch.is_autocast_enabled()]
    settings += [torch.is_inference_mode_enabled(), torch.get_float32_matmul_precision()]
    settings += [torch.backends.cudnn.allow_tf32, model.training, id(model.generation_config)]
    settings += [transformers.utils.logging.is_progress_bar_enabled(), list(warnings.filters)]
    settings += [[weight.requires_grad for weight in model.parameters()]]
    return of_modules, settings, of_the_harness(), readings.bits_of(model)


def of_the_harness():
    """Return what the harness's part may change, as far as it is imported."""
    found = [logging.getLogger("lm_eval").level, random.getstate()]
    for name in ("api.model", "api.task", "models.huggingface"):
        found.append(getattr(sys.modules.get(f"lm_eval.{name}"), "tqdm", None))
    if "datasets" in sys.modules:
        found.append(sys.modules["datasets"].is_progress_bar_enabled())
    return found


PACKAGE = Path(fl.__file__).parent


@functools.cache
def place_of(filename):
    """Say whether a file is of the package, and its name; asked at every call, of any library."""
    path = Path(filename)
    return path.is_relative_to(PACKAGE), path.stem


class Stopper:
    """Raise KeyboardInterrupt at the n-th line of fairlab, or of files with other names, that runs
    inside the block and of whose frame `counts` is true."""

    def __init__(self, line, counts, others=()):
        self.left, self.counts, self.others = line, counts, others

    def __enter__(self):
        sys.settrace(self.trace)
        return self

    def __exit__(self, *_):
        sys.settrace(None)

    def trace(self, frame, event, argument):
        is_ours, name = place_of(frame.f_code.co_filename)
        if not is_ours and name not in self.others:
            return None
        if event == "line" and self.counts(frame):
            self.left -= 1
            if not self.left:
                raise KeyboardInterrupt
        return self.trace


def of_a_manager(frame):
    """Say whether a context manager is running; what it calls changes nothing by itself."""
    return frame.f_code.co_flags & inspect.CO_GENERATOR


def of_a_trial(frame):
    """Say whether a model is being tried, but for the end of a block: there a signal is looked for
    after the block's own clearing up, and a tracer comes before it."""
    line = linecache.getline(frame.f_code.co_filename, frame.f_lineno)
    return frame.f_code.co_name in ("_check_mechanics", "_trial") and "with " not in line


@pytest.mark.parametrize("name", MANAGERS)
def test_a_stop_at_any_line_of_its_beginning_leaves_no_trace(name, with_hook):
    before = warmed_up(name, with_hook)
    for line in range(1, 2000):
        manager, entered = MANAGERS[name](with_hook), False
        with suppress(KeyboardInterrupt):
            with Stopper(line, of_a_manager):
                manager.__enter__()
            entered = True
            manager.__exit__(None, None, None)
        assert state_of(with_hook) == before, line
        if entered:
            break
    assert 1 < line < 1999


# what runs at the end of a block beside fairlab: what calls it, and what takes hooks away
AT_THE_END = ("contextlib", "hooks")


def stopped_at_its_end(manager, error, line, others):
    """Leave a block, by an error or without one, and be stopped at the n-th line of its end.

    Say whether it ended before. A stop inside contextlib, before that has called what undoes,
    leaves it to the end of the generator, which comes when the traceback goes: here at once, in a
    notebook with the next error. Nothing in Python comes before that line.
    """
    manager.__enter__()
    with suppress(KeyboardInterrupt, RuntimeError, OSError):
        with Stopper(line, lambda frame: True, others) as stopper:
            manager.__exit__(error and type(error), error, None)
        return stopper.left > 0
    return stopper.left > 0


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("name", MANAGERS)
def test_a_stop_at_any_line_of_its_end_leaves_no_trace(name, fails, with_hook):
    before = warmed_up(name, with_hook)
    for line in range(1, 2000):
        error = RuntimeError("stop") if fails else None
        ended = stopped_at_its_end(MANAGERS[name](with_hook), error, line, AT_THE_END)
        assert state_of(with_hook) == before, line
        if ended:
            break
    assert 1 < line < 1999


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, SystemExit])
@pytest.mark.parametrize("name", MANAGERS)
def test_an_error_in_a_block_leaves_no_trace(name, error, with_hook):
    before = warmed_up(name, with_hook)
    with pytest.raises(error), MANAGERS[name](with_hook):
        if name == "the harness":
            random.random()
        if name == "a planting":
            with_hook.model.layers[0].mlp.up_proj.weight.data[3] += 1
        raise error("stop")
    assert state_of(with_hook) == before


def test_a_stop_while_a_model_is_tried_leaves_no_trace(with_hook):
    """Its hooks turn activations round: one that stayed would change all that is measured."""
    before = state_of(with_hook)
    for line in range(1, 2000):
        models._TRIED.pop(with_hook, None)
        done = False
        with suppress(KeyboardInterrupt), Stopper(line, of_a_trial):
            models.glu_blocks(with_hook)
            done = True
        assert state_of(with_hook) == before, line
        if done:
            break
    assert 50 < line < 1999


FILE_MANAGERS = {
    "a whole file": lambda folder: files.whole_file(folder / "old.txt"),
    "a temporary folder": lambda folder: files.temporary_folder(folder, ".model-"),
    "what may fail": lambda folder: files.may_fail("a reading", folder),
}


@pytest.mark.parametrize("name", FILE_MANAGERS)
def test_a_stop_at_any_line_of_its_beginning_leaves_the_files(name, tmp_path):
    (tmp_path / "old.txt").write_text("old", encoding="utf-8")
    for line in range(1, 200):
        manager, entered = FILE_MANAGERS[name](tmp_path), False
        with suppress(KeyboardInterrupt):
            with Stopper(line, of_a_manager):
                manager.__enter__()
            entered = True
            manager.__exit__(RuntimeError, RuntimeError("stop"), None)
        assert texts_of(tmp_path) == {"old.txt": "old"}, line
        if entered:
            break
    assert line < 199


# what writes, renames and removes
OF_FILES = (*AT_THE_END, "pathlib", "tempfile", "shutil", "weakref")


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("name", FILE_MANAGERS)
def test_a_stop_at_any_line_of_its_end_leaves_the_files(name, fails, tmp_path):
    """The old file or the new one, as a whole, and nothing beside it."""
    for line in range(1, 1000):
        (tmp_path / "old.txt").write_text("old", encoding="utf-8")
        error = OSError("stop") if fails else None
        ended = stopped_at_its_end(FILE_MANAGERS[name](tmp_path), error, line, OF_FILES)
        left = texts_of(tmp_path)
        new = {"old.txt": ""} if name == "a whole file" and not fails else {"old.txt": "old"}
        assert left in ({"old.txt": "old"}, new), line
        if ended:
            break
    assert left == new and line < 999


def test_a_stop_at_any_line_of_replacing_a_folder_leaves_one_whole_model(folder):
    """Those of `shutil`, which copies files and removes what is not used, are left out."""
    new = NEW | {"notes.txt": "mine"}
    for line in range(1, 500):
        with suppress(KeyboardInterrupt), Stopper(line, lambda frame: True) as stopper:
            replace_with(folder, "new")
        assert texts_of(folder) in (OLD, new), line
        if stopper.left > 0:
            break
        fill_with("old")(folder)
    assert texts_of(folder) == new and 20 < line < 499


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, SystemExit])
def test_only_a_stop_of_the_user_ends_a_command_with_what_was_kept(error, tmp_path, capsys):
    cache = tmp_path / "readings"
    files.keep(cache / "cuts" / "a.json", CUT.to_json())
    is_stop = error is KeyboardInterrupt
    with pytest.raises(typer.Exit if is_stop else error) as ended, kept.message_if_stopped(cache):
        files.keep(cache / "cuts" / "b.json", CUT.to_json())
        files.keep(cache / "texts" / "c.json", "[]")
        raise error("stop")
    told = capsys.readouterr().err
    if is_stop:
        assert ended.value.exit_code == 130
        assert f"(1 chosen cut, 1 text sample) is kept in {tmp_path}; the same command" in told
    else:
        assert told == "" and str(ended.value) == "stop"


def test_a_command_that_ends_says_nothing(tmp_path, capsys):
    for cache in (None, tmp_path):
        with kept.message_if_stopped(cache):
            pass
    assert capsys.readouterr() == ("", "")


def some(held_out):
    return replace(held_out, pairs=held_out.pairs[:4], neutral=held_out.neutral[:2])


def compared(model, tokenizer, held_out):
    fl.compare(model, tokenizer, {"gates": GATES}, some(held_out), n_random=1)


LONG_RUNS = {name: IN_BATCHES[name] for name in IN_BATCHES if name not in OF_OTHERS} | {
    "perplexity": lambda model, tokenizer, held_out: fl.perplexity(model, tokenizer, TEXT),
    "a comparison": compared,
}


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("name", LONG_RUNS)
def test_a_stop_in_a_pass_leaves_no_trace(name, error, tiny, tokenizer, held_out):
    calls = []

    def stop(*_):
        calls.append(1)
        if len(calls) > 1 or name in ("perplexity", "flattening"):
            raise error("stop")

    before = state_of(tiny)
    hook = tiny.get_input_embeddings().register_forward_pre_hook(stop)
    try:
        with pytest.raises(error, match="stop"):
            LONG_RUNS[name](tiny, tokenizer, held_out)
    finally:
        hook.remove()
    assert state_of(tiny) == before


@pytest.fixture
def gguf(tmp_path, monkeypatch):
    """Have a file to unpack and a cache for it; count how often a stand-in unpacks it."""
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr(weights, "user_cache_dir", lambda name: str(tmp_path / "cache"))

    def convert(gguf, folder):
        (folder / "config.json").write_text("{}", encoding="utf-8")
        (folder / "model.safetensors").write_bytes(os.urandom(1000))

    monkeypatch.setattr(weights, "convert_gguf", convert)
    return tmp_path / "model.gguf"


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("step", ["write_checksums", "is_intact", "_move_into_cache"])
def test_a_stop_while_unpacking_leaves_nothing(error, step, gguf, tmp_path, monkeypatch):
    calls, function = [], getattr(weights, step)

    def stop(*arguments):
        calls.append(arguments)
        if step != "is_intact" or len(calls) > 1:  # the second time it looks at what is there
            raise error
        return function(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(weights, step, stop)
        with pytest.raises(error):
            weights.dequantised(gguf)
    assert list((tmp_path / "cache").iterdir()) == []
    assert weights.is_intact(weights.dequantised(gguf))


@CAN_FORK
@pytest.mark.parametrize("step", ["write_checksums", "_move_into_cache", "os.rename"])
def test_kill_9_while_unpacking_leaves_nothing_that_is_taken(step, gguf, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(step if "." in step else f"fairlab.weights.{step}", dying)
        killed_in(lambda: weights.dequantised(gguf))
    assert len(list((tmp_path / "cache").iterdir())) == 1
    grow_old(tmp_path / "cache")
    folder = weights.dequantised(gguf)
    assert weights.is_intact(folder) and list((tmp_path / "cache").iterdir()) == [folder]


def in_two_processes(work):
    """Do some work in two forks at once; return how they ended."""
    barrier = multiprocessing.get_context("fork").Barrier(2)
    children = []
    for _ in range(2):
        child = os.fork()
        if not child:
            code = 1
            with suppress(BaseException):
                barrier.wait(20)
                work()
                code = 0
            os._exit(code)
        children.append(child)
    return [os.waitpid(child, 0)[1] for child in children]


@CAN_FORK
def test_two_processes_fill_a_cache_at_once(gguf, shelf, tmp_path):
    keeper, _ = shelf

    def fill():
        for number in range(15):
            assert numbers_of(keeper(fl.NeuronSelection({0: (number,)}, (3, 24))))
            files.write_text(tmp_path / "text.json", str(number) * 1000)
        assert weights.is_intact(weights.dequantised(gguf))

    assert in_two_processes(fill) == [0, 0]
    names = [path.suffix for path in keeper.folder.iterdir()]
    assert names == [".npz"] * 16  # nothing half-written is left
    (folder,) = (tmp_path / "cache").iterdir()
    assert weights.is_intact(folder)
    assert (tmp_path / "text.json").read_text(encoding="utf-8") == "14" * 1000


# ---- full disks and folders that can't be written


@pytest.fixture(params=["a small disk", "every write fails"])
def full(request, tmp_path, monkeypatch):
    """Have a folder on a disk without room for 400 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if request.param == "every write fails":
        whole = files.whole_file

        @contextmanager
        def fails(path):
            with whole(path) as file:
                yield file
                full_disk()

        monkeypatch.setattr(files, "whole_file", fails)
        monkeypatch.setattr(readings, "whole_file", fails)
        yield folder
        return
    mount = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", folder]
    if (
        not shutil.which("mount")
        or subprocess.run(mount, check=False, capture_output=True).returncode
    ):
        print(
            "no disk of 400 kB can be mounted here: a full disk was tried with failing writes only"
        )
        pytest.skip("mounting is not allowed")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_costs_nothing_that_was_there(full):
    (full / "mine.txt").write_text("mine", encoding="utf-8")
    small = files.checked_path("out", full / "cut.json")
    with pytest.raises(OSError, match="No space left"):
        files.write_text(small, "x" * 1_000_000)
    keeper = readings.KeptReadings(full / "kept", lambda cut: reading(), (3, 5))
    keeper.read = lambda cut: reading(losses=np.zeros(400_000))
    with pytest.warns(UserWarning, match=r"not kept.*No space left"):
        assert len(keeper(CUT).losses) == 400_000
    assert sorted(path.name for path in full.rglob("*")) == ["kept", "mine.txt"]
    assert (full / "mine.txt").read_text(encoding="utf-8") == "mine"


def test_files_that_belong_together_are_written_both_or_not_at_all(full):
    """Beside the first of them there is no room for the second, though there was before."""
    old = {full / "page.html": "old", full / "page.json": ""}
    for path, text in old.items():
        path.write_text(text, encoding="utf-8")
    rest = min(shutil.disk_usage(full).free, 1_000_000)
    with pytest.raises(OSError, match="No space left"):
        files.write_texts(dict(zip(old, ("x" * 3000, "x" * rest), strict=True)))
    assert {path: path.read_text(encoding="utf-8") for path in full.iterdir()} == old


def test_a_full_disk_costs_no_model(full, tiny, tokenizer):
    """A model of 12 MB, and a tokenizer that fails at its end, where writes are patched."""
    folder = make(full / "model")
    (folder / "notes.txt").write_text("mine", encoding="utf-8")
    broken = deepcopy(tokenizer)
    broken.save_pretrained = full_disk
    with pytest.raises((OSError, SafetensorError), match="No space left"):
        fl.save_model(tiny, broken, folder, force=True)
    assert [path.name for path in full.rglob("*")] == ["model", "notes.txt"]


def test_the_room_on_the_disk_is_looked_at_first(gguf, tokenizer, tmp_path, monkeypatch):
    files.check_room(tmp_path, 1000)
    usage = shutil._ntuple_diskusage(10**9, 10**9 - 10**6, 10**6)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(OSError, match=r"No space left.*2 GB are needed and 0.001 GB are free"):
        files.check_room(tmp_path, 2 * 10**9)
    with pytest.raises(OSError, match=r"No space left.*GB are needed and 0.001 GB are free"):
        fl.save_model(tiny_model(), tokenizer, tmp_path / "model")
    assert not (tmp_path / "model").exists()
    monkeypatch.undo()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    monkeypatch.setattr(weights, "user_cache_dir", lambda name: str(tmp_path / "cache"))
    monkeypatch.setattr(weights, "_read_tokenizer", lambda *_: None)
    monkeypatch.setattr(weights, "_read_model", lambda *_: tiny_model())
    monkeypatch.setattr(weights, "_end_as_the_model_does", lambda *_: None)
    monkeypatch.setattr(type(tiny_model()), "save_pretrained", lambda *_: pytest.fail("written"))
    with pytest.raises(ValueError, match=r"can't be unpacked into .*13? GB|make room there"):
        weights.dequantised(gguf)
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.skipif(os.name == "nt", reason="Windows has other variables")
def test_without_a_home_there_is_a_cache_and_a_command_line():
    root, started = Path(__file__).parent.parent, []
    for home in ({}, {"HOME": "/nonexistent"}):
        variables = {"PYTHONPATH": str(root), "SYSTEMROOT": os.environ.get("SYSTEMROOT", "")} | home
        code = "import fairlab.files, fairlab.cli; print(fairlab.files.readings_folder())"
        started.append(
            subprocess.Popen(
                [sys.executable, "-c", code], env=variables, stdout=subprocess.PIPE, text=True
            )
        )
    for process in started:
        told, _ = process.communicate(timeout=60)
        assert process.returncode == 0 and told.strip().endswith("readings")


# ---- weights that are not finite


def with_data(name):
    """Measure by a public function that takes a model, a tokenizer and pairs."""
    return lambda *given, **options: getattr(fl, name)(*given[:3], **options)


NEUTRAL = fl.load_pairs("mood", kind="neutral")[:24]
SCORES = torch.arange(72.0).view(3, 24)
# each public function that takes a model and computes numbers with it
NEEDS_NUMBERS = {
    name: with_data(name)
    for name in ("bias_scores", "decision_gap", "layer_differences", "next_token_divergence")
} | {
    "article_cut": lambda *g: fl.article_cut(*g, fraction=0.1),
    "article_metric": lambda m, t, pairs: fl.article_metric(m, t, pairs[0]),
    "balanced_gates": lambda *g: fl.balanced_gates(*g, NEUTRAL, text=TEXT, fraction=0.1),
    "compare": lambda m, t, pairs: fl.compare(
        m, t, {"cut": CUT}, fl.HeldOut(pairs, NEUTRAL[:2], TEXT), n_random=1
    ),
    "generate": lambda m, t, _: fl.generate(m, t, ["The old man"], max_new_tokens=1),
    "guarded_cut": lambda *g: fl.guarded_cut(*g, NEUTRAL[:2], text=TEXT, fraction=0.1),
    "importance_scores": lambda m, *_: fl.importance_scores(m, method="l2"),
    "learned_gates": lambda *g: fl.learned_gates(*g, NEUTRAL, GATES, text=TEXT, steps=1),
    "neuron_differences": lambda *g: fl.neuron_differences(*g, points=["residual"]),
    "mean_activations": lambda m, t, _: gating.mean_activations(m, t, TEXT),
    "perplexity": lambda m, t, _: fl.perplexity(m, t, TEXT),
    "plant_neurons": lambda *g: fl.plant_neurons(*g, n=1, cost=0.05),
    "project_pair": lambda m, t, pairs: fl.project_pair(m, t, pairs[0]),
    "refine_scores": lambda m, t, pairs: fl.refine_scores(m, t, SCORES, pairs, count=1),
    "run_lm_eval": lambda m, t, _: fl.run_lm_eval(
        m, t, "stereoset", data={"stereoset": [STEREOSET]}
    ),
    "sample_continuations": lambda *g: fl.sample_continuations(*g, n=1, max_new_tokens=1),
    "top_token_shifts": lambda m, t, pairs: fl.top_token_shifts(m, t, pairs[0]),
}
STEREOSET = {
    "target": "a",
    "bias_type": "race",
    "sentences": [
        {"gold_label": label, "sentence": f"The man was {label}."}
        for label in ("stereotype", "anti-stereotype", "unrelated")
    ],
}
# those that only look at a model, cut it or hand on what it computes: a NaN is the model's own, and
# a cut may take it away
OTHERS_TAKE_ANY = {
    "ablate", "decoder_layers", "describe_model", "fold_gates", "gate", "gated",
    "prune", "record", "removed_neurons", "save_model", "show_page", "write_report",
}  # fmt: skip
# weights that a function does not read
NOT_READ = {
    "article_cut": {"output"},
    "article_metric": {"output"},
    "bias_scores": {"output"},
    "importance_scores": {"embeddings", "a norm", "down", "output"},
    "layer_differences": {"output"},
    "mean_activations": {"output"},
    "neuron_differences": {"output"},
    "project_pair": {"output"},
}
WEIGHTS = {
    "embeddings": lambda model: model.model.embed_tokens.weight[504],  # "The"
    "a norm": lambda model: model.model.layers[1].input_layernorm.weight,
    "gate": lambda model: model.model.layers[1].mlp.gate_proj.weight[3],
    "down": lambda model: model.model.layers[1].mlp.down_proj.weight[3],
    "output": lambda model: model.lm_head.weight[9],
}


def test_every_function_that_takes_a_model_is_listed():
    names = set()
    for name in fl.__all__:
        function = getattr(fl, name)
        if callable(function) and "model" in inspect.signature(function).parameters:
            names.add(name)
    assert names == (set(NEEDS_NUMBERS) | OTHERS_TAKE_ANY) - {"mean_activations"}


@pytest.mark.parametrize("name", NEEDS_NUMBERS)
def test_no_public_function_takes_a_weight_that_is_not_finite(name, tiny, tokenizer, held_out):
    said = {}
    # planting looks at the model for two seconds first
    places = list(WEIGHTS)[: 2 if name == "plant_neurons" else None]
    for number, place in enumerate(places):
        model = deepcopy(tiny)
        with torch.no_grad():
            WEIGHTS[place](model)[4] = (torch.nan, torch.inf)[number % 2]
        try:
            NEEDS_NUMBERS[name](model, tokenizer, held_out.pairs[:3])
        except ValueError as error:
            said[place] = str(error)
        else:
            said[place] = "nothing"
    read = {place: text for place, text in said.items() if place not in NOT_READ.get(name, ())}
    assert all(re.match("model: .* not finite", text) for text in read.values()), said


@CAN_FORK
def test_kill_9_while_a_report_is_written_leaves_whole_files(
    tiny, tokenizer, held_out, tmp_path, monkeypatch
):
    """Its two files are complete before one takes its name, and then the numbers do so first."""
    measured = fl.compare(tiny, tokenizer, {"cut": CUT}, some(held_out), n_random=1, metric=False)
    path = tmp_path / "report.html"
    options = {"model": tiny, "model_name": "tiny", "chosen_on": None, "force": True}

    def write():
        fl.write_report(path, measured, **options)

    old = {path.name: "old page", "report.json": '"old"'}
    for call in (1, 2):
        for name, text in old.items():
            (tmp_path / name).write_text(text, encoding="utf-8")
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", dies_at(call, os.replace))
            killed_in(write)
        assert path.read_text(encoding="utf-8") == old[path.name]
        numbers = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
        assert numbers == "old" if call == 1 else numbers["model"]["name"] == "tiny"
        (page,) = tmp_path.glob(".report.html.*.part")
        assert page.read_text(encoding="utf-8").rstrip().endswith("</html>")
        page.unlink()
    grow_old(tmp_path)
    write()
    assert {file.name for file in tmp_path.iterdir()} == set(old)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "is a pointer of Git LFS"),
        (b"", "can't be read as a GGUF model"),
        (b"GGUF\x03\0\0\0", "can't be read as a GGUF model"),
    ],
)
def test_what_is_no_gguf_file_is_one_sentence(content, says, tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "user_cache_dir", lambda name: str(tmp_path / "cache"))
    (tmp_path / "m.gguf").write_bytes(content)
    with pytest.raises(ValueError, match=rf"name: .*m\.gguf {says}"):
        weights.find_weights(tmp_path / "m.gguf")
    assert not any((tmp_path / "cache").glob("*"))


def test_a_stopped_benchmark_goes_on_with_the_next_task(tiny, tokenizer, tmp_path, monkeypatch):
    data = {
        "stereoset": [STEREOSET],
        **{
            name: fl.data_path(f"suites/mini_{file}.jsonl")
            for name, file in {"boolq": "boolq", "bbq": "bbq", "crows_pairs_english": "crows",
                               "lambada_openai": "lambada"}.items()
        },
    }  # fmt: skip
    options = {"data": data, "samples": dict.fromkeys(list(data)[1:], 2)}
    wanted = fl.run_lm_eval(tiny, tokenizer, list(data), **options)
    run, ran = harness._measured_items, []

    def stops_at_the_third(*arguments):
        ran.append(arguments[2])
        if len(ran) == 3:
            raise KeyboardInterrupt
        return run(*arguments)

    def again(model=tiny, **changes):
        ran.clear()
        given = options | {"cache": tmp_path / "kept"} | changes
        return fl.run_lm_eval(model, tokenizer, list(data), **given)

    with monkeypatch.context() as patch:
        patch.setattr(harness, "_measured_items", stops_at_the_third)
        with pytest.raises(KeyboardInterrupt):
            again()
    monkeypatch.setattr(harness, "_measured_items", lambda *g: ran.append(g[2]) or run(*g))
    found = again()
    assert ran == list(data)[2:]
    assert json.dumps(found.items) == json.dumps(wanted.items)
    assert found.table.equals(wanted.table)
    found = again()
    assert ran == [] and json.dumps(found.items) == json.dumps(wanted.items)
    again(samples=options["samples"] | {"boolq": 3})
    assert ran == ["boolq"]
    other = deepcopy(tiny)
    other.lm_head.weight.data[5] += 0.1
    again(other)
    assert ran == list(data)
    with pytest.raises(ValueError, match="cache: .* can't be written"):
        again(cache=Path(__file__, "kept"))
