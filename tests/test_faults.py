"""What goes wrong round a run: damaged files, full disks, lack of memory, processes that are
killed."""

import errno
import gc
import os
import re
import shutil
import signal
import warnings
from contextlib import contextmanager, suppress
from dataclasses import replace

import numpy as np
import pytest
import torch

import fairlab as fl
from fairlab import files, passes, weights
from fairlab.cli import kept
from fairlab.evaluation import flattening, readings
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


def full_disk(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("fails", ["os.replace", "numpy.savez"])
def test_a_reading_that_can_not_be_kept_is_not_lost(fails, shelf, monkeypatch):
    keeper, measured = shelf
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
    kept.keep(path, CUT.to_json())
    assert kept.kept_cut(path) == CUT
    for content in (b"", b"\xff\xfe", b"[]", b'{"neurons": 3}', path.read_bytes()[:-9]):
        path.write_bytes(content)
        with pytest.warns(UserWarning, match="damaged and is made again"):
            assert kept.kept_cut(path) is None
    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.warns(UserWarning, match=r"is not kept.*No space left"):
        kept.keep(path, CUT.to_json())
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
    "a cache that is no path": ({"cache": 3}, "cache: expected a folder; got int"),
    "a short text": ({"text": "A"}, "text: expected at least two tokens"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_comparison_refuses_before_any_pass(name, tiny, tokenizer, held_out, monkeypatch):
    changes, says = BAD[name]
    monkeypatch.setattr(type(tiny), "forward", lambda *_, **__: pytest.fail("the model read"))
    monkeypatch.setattr(readings, "bits_of", lambda _: pytest.fail("the weights were read"))
    given = {"selections": {"gates": GATES}, "held_out": held_out, **changes}
    if "text" in given:
        given["held_out"] = replace(held_out, text=given.pop("text"))
    with pytest.raises((TypeError, ValueError), match=says):
        fl.compare(tiny, tokenizer, **given)


# ---- processes that are killed


CAN_FORK = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")


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


IN_BATCHES = {"readings": read, "flattening": flatten, "texts": sample, "benchmarks": likelihoods}


@pytest.mark.parametrize("name", IN_BATCHES)
@pytest.mark.usefixtures("quick_collection")
def test_where_memory_runs_out_batches_are_halved(name, tiny, tokenizer, held_out):
    measure = IN_BATCHES[name]
    wanted = measure(tiny, tokenizer, held_out)
    with room_for(tiny, 3), pytest.warns(UserWarning, match="memory ran out with .* at once") as told:
        found = measure(tiny, tokenizer, held_out)
    assert torch.allclose(found, wanted, rtol=1e-4, atol=1e-6, equal_nan=True)
    sizes = [int(re.search(r"again with (\d+)", str(one.message))[1]) for one in told]
    assert sizes[-1] == 2 and sizes == sorted(sizes, reverse=True)  # said once each
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
    with room_for(tiny, 10, LACKS[lack], "logits"), pytest.warns(UserWarning, match="tokens' logits"):
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
