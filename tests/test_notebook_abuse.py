"""Lessons as people run them: a cell twice, cells in another order, a stop in the middle.

The lessons run here with a small model in place of the default one, in this process. Many of their
asserts do not hold of it, which is no matter: a cell that is run again must print what it printed,
or end in an error, but never print other numbers.
"""

import contextlib
import io
import os
import signal
import threading
from copy import deepcopy
from functools import lru_cache
from pathlib import Path

import matplotlib
import nbformat
import pytest
import torch
from printed_numbers import first_difference

import fairlab as fl
from tiny_models import bytes_of, same_bytes, tiny_model

LESSONS = Path(__file__).parent.parent / "notebooks"
# as wide as the default model, so that a fraction of its neurons is as many
SIZES = {"num_hidden_layers": 4, "intermediate_size": 1536, "hidden_size": 16}
TOO_LONG = ("stories", "explorer", "%pip", "read_everywhere(", "article_metric(", "refine_scores")


@lru_cache
def cells(number):
    """Return the code cells of a lesson, but for exercises and what takes long."""
    (path,) = LESSONS.glob(f"{number}_*.ipynb")
    found = []
    for cell in nbformat.read(path, as_version=4).cells:
        is_exercise = "raises-exception" in cell.metadata.get("tags", [])
        is_left_out = is_exercise or any(word in cell.source for word in TOO_LONG)
        if cell.cell_type == "code" and not is_left_out:
            found.append(compile(cell.source, f"lesson {number}, cell {len(found)}", "exec"))
    return found


def run(code, names):
    """Run a cell; return what it printed, and the error that ended it."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(io.StringIO()):
        try:
            exec(code, names)
        except Exception as error:
            return printed.getvalue(), error
    return printed.getvalue(), None


@pytest.fixture
def small_default(tokenizer, monkeypatch):
    """Have `fl.load_model` return a small model, a new one at each call."""
    matplotlib.use("agg")
    model, load_pairs, text = tiny_model(**SIZES), fl.load_pairs, fl.load_text("calibration")
    monkeypatch.setattr(fl, "load_model", lambda *a, **k: (deepcopy(model), tokenizer))
    monkeypatch.setattr(fl, "load_pairs", lambda *a, **k: load_pairs(*a, **k)[::6])
    # a planting that takes no time: less text to look at, and a strength that is not searched
    monkeypatch.setattr("fairlab.planting.load_text", lambda name: text[:8000])
    monkeypatch.setattr("fairlab.planting.find_strength", lambda rise, cost: rise(0.5) or 0.5)
    return model


@pytest.mark.parametrize("number", ["01", "05", "07"])
def test_cells_run_again_from_the_last_to_the_first_print_no_other_numbers(number, small_default):
    """What a cell changes for those before it shows when they run again after it."""
    names = {}
    first = [run(code, names) for code in cells(number)]
    assert sum(error is None for _, error in first) > len(first) / 2
    for place in reversed(range(1, len(first))):  # all but the one that loads the model
        printed, error = run(cells(number)[place], names)
        if error is None:
            assert first_difference(first[place][0], printed) is None, f"lesson {number}, {place}"


# ---- the kernel is interrupted


def interrupted(function, module, number):
    """Call a function and interrupt it, as a notebook's stop button does, at the n-th call of a
    part of the model; say if it came there."""
    calls = 0

    def stop(*_):
        nonlocal calls
        calls += 1
        if calls == number:
            signal.raise_signal(signal.SIGINT)

    # what ran a notebook in an earlier test may have left its own handler
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    handle = module.register_forward_pre_hook(stop)
    try:
        function()
    except KeyboardInterrupt:
        return True
    finally:
        handle.remove()
        signal.signal(signal.SIGINT, before or signal.default_int_handler)
    return False


def compare(model, tokenizer, pairs):
    cut = fl.NeuronSelection({0: (1, 5), 2: (7,)}, (3, 24))
    text = fl.load_text("evaluation")[:200]
    held_out = fl.HeldOut(pairs, fl.load_pairs(kind="neutral")[:2], text)
    return fl.compare(model, tokenizer, {"cut": cut}, held_out, n_random=1, metric=False)


def scores(model, tokenizer, pairs):
    return fl.bias_scores(model, tokenizer, pairs, method="attribution", batch_size=2)


def refined(model, tokenizer, pairs):
    return fl.refine_scores(model, tokenizer, torch.rand(3, 24), pairs, count=3)


@pytest.mark.parametrize("measure", [compare, scores, refined])
def test_after_an_interrupt_the_model_is_the_one_it_was(measure, tokenizer, some_pairs):
    model, pairs = tiny_model(), some_pairs[:3]
    before, gap = bytes_of(model), fl.next_token_divergence(model, tokenizer, pairs)
    flags = [weight.requires_grad for weight in model.parameters()]
    stops = 0
    for number in (1, 3, 8, 21):
        stops += interrupted(
            lambda: measure(model, tokenizer, pairs), model.model.layers[1], number
        )
        assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())
        assert not any("forward" in vars(part) for part in model.modules())
        assert [weight.requires_grad for weight in model.parameters()] == flags
        assert same_bytes(model, before) and torch.is_grad_enabled()
    assert stops >= 2
    assert torch.equal(fl.next_token_divergence(model, tokenizer, pairs), gap)
    measure(model, tokenizer, pairs)


# ---- a kernel of its own

BEGIN = """
import torch, fairlab as fl
from tiny_models import tiny_model
torch.set_num_threads(1)
model, tokenizer = tiny_model(), fl.load_tokenizer()
ids = tokenizer("The old man", return_tensors="pt").input_ids
cut = fl.NeuronSelection({0: (1, 5), 2: (7,)}, (3, 24))
neutral, text = fl.load_pairs(kind="neutral")[:2], fl.load_text("evaluation")[:400]
held_out = fl.HeldOut(fl.load_pairs("race")[:4], neutral, text)
with torch.no_grad():
    before = model(ids).logits
"""
# cells that do not end by themselves, or not soon
ENDLESS = {
    "a block": """
with fl.ablate(model, cut), torch.no_grad():
    assert not torch.equal(model(ids).logits, before)
    print("it runs", flush=True)
    while True:
        model(ids)
""",
    "a comparison": """
print("it runs", flush=True)
fl.compare(model, tokenizer, {"cut": cut}, held_out, n_random=10_000, metric=False)
""",
}
AFTER = """
with torch.no_grad():
    assert torch.equal(model(ids).logits, before)
assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())
print(torch.is_grad_enabled(), torch.get_default_dtype(), len(fl.next_token_divergence(
    model, tokenizer, held_out.pairs)))
"""


@pytest.fixture
def own_kernel(monkeypatch):
    """Start a kernel as Jupyter does; return it, and what runs a cell in it."""
    jupyter_client = pytest.importorskip("jupyter_client")
    pytest.importorskip("ipykernel")
    root = LESSONS.parent
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(root), str(root / "tests")]))
    monkeypatch.setenv("TQDM_DISABLE", "1")
    manager = jupyter_client.KernelManager(kernel_name="python3")
    manager.start_kernel()
    client = manager.blocking_client()
    client.start_channels()

    def run(code, when_printed=lambda: None):
        """Run a cell; return what it printed, and the name of the error that ended it."""
        printed = []

        def note(message):
            if message["content"].get("name") == "stdout":
                printed.append(message["content"]["text"])
                when_printed()

        reply = client.execute_interactive(code, output_hook=note, timeout=120)["content"]
        return "".join(printed), reply.get("ename")

    try:
        client.wait_for_ready(timeout=120)
        yield manager, run
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for another process")
def test_a_kernel_that_is_interrupted_has_the_model_as_it_was(own_kernel):
    """A signal comes wherever Python is just then; the next cell runs as before."""
    manager, run_cell = own_kernel
    assert run_cell(BEGIN) == ("", None)
    for code in ENDLESS.values():
        # a moment later, so that it stops in the midst of a pass
        late = threading.Timer(0.4, manager.interrupt_kernel)
        assert run_cell(code, late.start) == ("it runs\n", "KeyboardInterrupt")
        assert run_cell(AFTER) == ("True torch.float32 4\n", None)
