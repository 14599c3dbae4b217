"""Several processes give what one gives, and say so where one of them ends.

That the shares add up is tried within one process, which plays each of several in turn; that they
find each other, deal, print once and stop, with real ones.
"""

import contextlib
import json
import multiprocessing
import os
import re
import shlex
import signal
import socket
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import run_tests
import torch
import typer
from pair_files import rows_of, write_rows

import fairlab as fl
from fairlab import cli, processes
from fairlab.cli.commands import SHARED, app
from fairlab.cli.kept import message_if_stopped
from fairlab.cli.plan import where_to_load
from fairlab.evaluation import compare as comparing
from tiny_models import tiny_model

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "notebooks" / "cluster.md"
TEXT = "The tide comes in twice a day, and twice a day it goes out again. " * 20
PAIRS = [*fl.load_pairs("race", split="validation")[:3], *fl.load_pairs("age", split="train")[:2]]
NEUTRAL = fl.load_pairs(split="validation", kind="neutral")[:3]
CUT = fl.NeuronSelection({0: (1, 2), 2: (5,)}, (3, 24))


def state_of(index, number):
    """Return what Accelerate would say to a process of so many, each with a GPU."""
    device = torch.device("cuda", index)
    first = {"process_index": index, "is_main_process": index == 0}
    return SimpleNamespace(num_processes=number, device=device, **first)


class Sent(Exception):
    """What a process would send to the others."""


@pytest.fixture
def in_turn(monkeypatch):
    """Measure as so many processes do: each sends its share, and then the first one has them all.

    Return what it measures, and what was sent.
    """

    def exchange(gathered):
        for module in (processes, comparing):
            monkeypatch.setattr(module, "gathered", gathered)

    def send(value):
        raise Sent(value)

    def measure(number, function):
        sent = []
        exchange(send)
        for index in reversed(range(number)):
            monkeypatch.setattr(processes, "_state", state_of(index, number))
            with pytest.raises(Sent) as caught:
                function()
            sent.insert(0, caught.value.args[0])
        exchange(lambda value: sent)
        return function(), sent

    return measure


MEASURES = {
    "activation": partial(fl.bias_scores, method="activation"),
    "article": partial(fl.bias_scores, method="article"),
    "attribution": partial(fl.bias_scores, method="attribution"),
    "attribution, relative": partial(fl.bias_scores, method="attribution", relative=True),
    "patching, relative": partial(fl.bias_scores, method="patching", relative=True),
    "fisher": lambda model, tokenizer, pairs: fl.importance_scores(
        model, method="fisher", tokenizer=tokenizer, text=TEXT
    ),
}


@pytest.mark.parametrize("number", [2, 7])
@pytest.mark.parametrize("what", MEASURES)
def test_shares_of_scores_add_up(what, number, tokenizer, in_turn):
    """Of seven processes, some have no pair, or no chunk of the text.

    In float64, since in float32 the slopes of a gap move by more than that with any other batch.
    """
    measure = partial(MEASURES[what], tiny_model(dtype=torch.float64), tokenizer, PAIRS)
    alone = measure()
    together, sent = in_turn(number, measure)
    assert any(share == {} for share in sent) is (number == 7)
    assert alone.any()
    torch.testing.assert_close(together, alone, rtol=1e-6, atol=1e-6 * float(alone.abs().max()))


@pytest.mark.parametrize("number", [2, 6])
def test_a_comparison_deals_its_readings(number, tokenizer, in_turn):
    """Its batches are those of one process, so that its numbers are the same to the bit."""
    held_out = fl.HeldOut(PAIRS, NEUTRAL, TEXT[:600])
    cuts = {"cut": CUT, "other": fl.NeuronSelection({1: (3,)}, (3, 24))}
    compare = partial(fl.compare, tiny_model(), tokenizer, cuts, held_out, n_random=1)
    alone = compare()
    together, sent = in_turn(number, compare)
    for table in ("table", "draws", "readings"):
        pd.testing.assert_frame_equal(getattr(together, table), getattr(alone, table))
    # the uncut model, two cuts and a random one of each, every one read by one process alone
    assert sum(map(len, sent)) == len({key for share in sent for key in share}) == 5
    assert max(map(len, sent)) - min(map(len, sent)) <= 1


def test_the_parts_of_a_job_array_join_to_the_whole(tokenizer):
    """Of a cut that is given, the rows of a category are those of a run on all of them."""
    model, categories = tiny_model(), ("race", "age")
    parts = []
    for pairs in (PAIRS, PAIRS[:3], PAIRS[3:]):
        held_out = fl.HeldOut(pairs, NEUTRAL, TEXT[:600])
        table = fl.compare(model, tokenizer, {"cut": CUT}, held_out, n_random=2).table
        parts.append(table[table["row"] == "category"].drop(columns=["p_holm", "sentence"]))
    whole, *parts = parts
    joined = pd.concat(parts, ignore_index=True)
    assert set(joined["category"]) == set(categories)
    order = ["measure", "category"]
    pd.testing.assert_frame_equal(
        joined.sort_values(order, ignore_index=True), whole.sort_values(order, ignore_index=True)
    )


# ---- one process of several


def test_alone_a_process_has_all(monkeypatch):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")  # some clusters set it for every job
    items, before = [1, 2, 3], signal.getsignal(signal.SIGTERM)
    with processes.joined():
        assert processes.share(items) is items and processes.summed(items) is items
        assert (processes.count(), processes.is_first(), processes.name()) == (1, True, "")
        assert processes.from_first("x") == "x" and processes.own_device("auto") == "auto"
        processes.end_unless_first()
    assert signal.getsignal(signal.SIGTERM) is before


def test_shares_are_stretches_of_one_length(monkeypatch):
    for length in range(9):
        shares = []
        for index in range(4):
            monkeypatch.setattr(processes, "_state", state_of(index, 4))
            shares.append(processes.share(list(range(length))))
        assert [item for share in shares for item in share] == list(range(length))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_each_process_has_a_device_of_its_own(monkeypatch):
    monkeypatch.setattr(processes, "_state", state_of(3, 4))
    devices = {asked: processes.own_device(asked) for asked in ("auto", "cuda", "cpu", "cuda:1")}
    assert list(devices.values()) == ["cuda:3", "cuda:3", "cpu", "cuda:1"]
    with pytest.raises(ValueError, match=r"^device_map: each of several processes holds a whole"):
        where_to_load("auto", "auto")
    assert processes.name() == "process 3: "
    with pytest.raises(SystemExit) as end:
        processes.end_unless_first()
    assert not end.value.code


@pytest.mark.parametrize("command", ["check", "diagnose", "cache"])
def test_what_can_not_be_shared_is_refused(command, monkeypatch, capsys):
    monkeypatch.setattr(processes, "_state", state_of(0, 2))
    monkeypatch.setattr(sys, "argv", ["fairlab", command, *["x.csv"] * (command == "check")])
    with pytest.raises(SystemExit) as end:
        cli.main()
    err = capsys.readouterr().err
    assert (end.value.code, err.count("\n")) == (2, 1)
    assert err.startswith(f"fairlab: {command}: it runs in one process, without accelerate launch")


def test_a_launcher_that_stops_the_others_is_understood(monkeypatch, tmp_path):
    ignored = []
    monkeypatch.setattr(signal, "signal", lambda *given: ignored.append(given))
    (tmp_path / "cuts").mkdir()
    message = r"^the run ends early, .*; what was done \(1 chosen cut\) is kept in "
    with pytest.raises(processes.LostProcess, match=message), message_if_stopped(tmp_path):
        (tmp_path / "cuts" / "a.json").touch()
        with contextlib.suppress(Exception):  # it is no error that may be caught
            processes._stop(signal.SIGTERM, None)
    assert ignored == [(signal.SIGTERM, signal.SIG_IGN)]


# ---- real ones

# three chunks: to choose on the whole calibration text takes each process ten seconds
SHORT = TEXT * 3
WITH_SHORT_TEXT = f"""
import fairlab as fl
fl.load_text = lambda *given: {SHORT!r}
"""
RUN = f"""
{WITH_SHORT_TEXT}
from fairlab.cli import main
main()
"""
# as the kernel does where memory runs out: without a word, while the second cut is read
KILLED = f"""
import os, signal
from fairlab.evaluation import compare
read, calls = compare.read_cut, []
def read_cut(*given, **options):
    calls.append(1)
    if len(calls) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return read(*given, **options)
compare.read_cut = read_cut
{RUN}
"""
real = pytest.mark.skipif(os.name == "nt", reason="gloo finds no address on some Windows machines")


@pytest.fixture(scope="module")
def folder(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    fl.save_model(tiny_model(), tokenizer, folder)
    return folder


@pytest.fixture
def options(folder, tmp_path):
    """Write a few pairs; return the options that choose on them, in little time."""
    path = write_rows(tmp_path / "pairs.csv", rows_of())
    return ["--model", folder, "--pairs", path, "--neutral", path, "--dtype", "float64", "--json"]


@pytest.fixture
def alone(capfd, monkeypatch):
    """Run a command on the short text in this process; return the JSON that it prints."""
    monkeypatch.setattr(fl, "load_text", lambda *given: SHORT)

    def alone(*arguments):
        monkeypatch.setattr(sys, "argv", ["fairlab", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        assert not end.value.code
        return json.loads(capfd.readouterr().out)

    return alone


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return str(found.getsockname()[1])


# what a process runs first: it is what it would be if it had been started from a shell
START = """
import os, sys
os.environ.update({variables})
sys.argv[:] = {arguments}
for number, path in enumerate({paths}, 1):
    os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
"""
# not accelerate.commands: it asks for HF_HOME when it is imported
IMPORTED = [
    "accelerate",
    "fairlab.evaluation.compare",
    "fairlab.recipes",
    "torch.distributed.run",
    "transformers.models.llama.modeling_llama",
]
AS_MODULE = "import runpy; runpy.run_module('fairlab', run_name='__main__', alter_sys=True)"
LAUNCHER = "from accelerate.commands.launch import main; main()"


@pytest.fixture(scope="module")
def context():
    """Start processes as forks of one in which the imports are done, where that can be: each would
    spend five seconds on them."""
    if not run_tests.CAN_FORK:
        return multiprocessing.get_context("spawn")
    forking = multiprocessing.get_context("forkserver")
    forking.set_forkserver_preload(IMPORTED)
    return forking


@pytest.fixture
def launch(context, tmp_path):
    """Run code in a process each, told what the environment should hold; return exit code, standard
    output and error of each."""

    def launch(codes, environments, arguments):
        near = {"GLOO_SOCKET_IFNAME": "lo0" if sys.platform == "darwin" else "lo"}
        near |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        started, written = [], []
        for index, (code, own) in enumerate(zip(codes, environments, strict=True)):
            paths = [str(tmp_path / f"{index}.{name}") for name in ("out", "err")]
            facts = {"variables": near | own, "arguments": ["fairlab", *map(str, arguments)]}
            source = START.format(paths=paths, **facts) + code
            started.append(context.Process(target=exec, args=(source, {"__name__": "launched"})))
            started[-1].start()
            written.append(list(map(Path, paths)))
        ended = []
        for process, paths in zip(started, written, strict=True):
            process.join(timeout=300)
            texts = [path.read_text(encoding="utf-8") for path in paths]
            ended.append((process.exitcode, *texts))
            for path in paths:
                path.unlink()
        return ended

    return launch


def as_torchrun_tells(number):
    """Return the environments of so many processes of one run."""
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "WORLD_SIZE": str(number)}
    return [where | {"RANK": str(index), "LOCAL_RANK": str(index)} for index in range(number)]


def near(value):
    """Return JSON values of which numbers may differ by rounding."""
    if isinstance(value, dict):
        return {key: near(one) for key, one in value.items()}
    if isinstance(value, list):
        return [near(one) for one in value]
    return pytest.approx(value, rel=1e-6, abs=1e-12) if isinstance(value, float) else value


@real
def test_accelerate_launches_a_score(options, alone, launch, tmp_path):
    expected = alone("score", *options)
    launcher = ["--multi_gpu", "--num_processes", "2", "--main_process_port", free_port()]
    # so that no configuration of accelerate counts
    environment = {"HF_HOME": str(tmp_path), "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}
    (tmp_path / "short.py").write_text(WITH_SHORT_TEXT + AS_MODULE, encoding="utf-8")
    (ended,) = launch([LAUNCHER], [environment], [*launcher, "-m", "short", "score", *options])
    assert ended[0] == 0, ended[2]
    assert json.loads(ended[1]) == near(expected)


@real
def test_where_one_process_is_killed_the_others_end_and_the_run_goes_on(
    options, alone, launch, tmp_path
):
    cache = tmp_path / "cache"
    compare = ["compare", *options, "--method", "article", "--fraction", "0.1", "--quick"]
    compare += ["--n-random", "3"]
    kept_there = [*compare, "--cache", cache]
    first, second = launch([RUN, KILLED], as_torchrun_tells(2), kept_there)
    assert (first[:2], second[0]) == ((1, ""), -signal.SIGKILL)
    (line,) = [line for line in first[2].splitlines() if line.startswith("fairlab: the run ends")]
    # of five readings the first process has two; the second one was killed in its second
    assert f"what was done (1 chosen cut, 3 readings) is kept in {cache}" in line
    assert line.endswith("the same command goes on from there")
    kept = {path: path.stat().st_mtime_ns for path in cache.rglob("*.*") if path.is_file()}
    first, second = launch([RUN, RUN], as_torchrun_tells(2), kept_there)
    assert (first[0], second) == (0, (0, "", "")), first[2]
    assert all(path.stat().st_mtime_ns == written for path, written in kept.items())
    assert len(list(cache.rglob("*.npz"))) == 5
    assert json.loads(first[1]) == near(alone(*compare, "--no-cache"))


# ---- the page


def commands_of_the_page():
    """Return the words of each command in the blocks of the page."""
    text = PAGE.read_text(encoding="utf-8")
    blocks = re.findall(r"^```bash\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    # a line that goes on is one line, and SLURM's numbers are numbers
    lines = re.sub(r"\$SLURM_\w+", "1", "\n".join(blocks).replace("\\\n", " ")).splitlines()
    return [shlex.split(line, comments=True) for line in lines if "fairlab " in line]


def test_the_job_array_has_every_category():
    (written,) = re.findall(r"CATEGORIES=\((.*)\)", PAGE.read_text(encoding="utf-8"))
    assert set(written.split()) == {pair.category for pair in fl.load_pairs()}
    assert "--array=0-7" in PAGE.read_text(encoding="utf-8") and len(written.split()) == 8


def test_the_commands_of_the_page_exist():
    from accelerate.commands.launch import launch_command_parser
    from torch.distributed.run import get_args_parser

    known = typer.main.get_command(app).commands
    launched = []
    for words in commands_of_the_page():
        if "bash" in words:  # srun bash -c '…'
            words = shlex.split(words[-1])
        start = words.index("fairlab")
        for parser, name in ((launch_command_parser(), "launch"), (get_args_parser(), "torchrun")):
            if name in words[:start]:
                parser.parse_args([*words[words.index(name) + 1 : start + 1]])
                launched.append(words[start + 1])
        names = {name for param in known[words[start + 1]].params for name in param.opts}
        assert {word for word in words[start:] if word.startswith("--")} <= names
    assert set(launched) <= set(SHARED) and len(launched) > 3
