"""Share the work of one command among the processes that a launcher started.

Contents: `joined`, `count`, `is_first`, `name`, `own_device`, `end_unless_first` (who works);
`share`, `gathered`, `from_first`, `summed` (at what); `LostProcess`.

`accelerate launch` and `torchrun` start a command several times and tell each process its number in
the environment. Only the command line joins the others: in a notebook or a script every process has
the whole of each list, and waits for nobody. What is exchanged (tables, readings) is small and goes
by gloo from memory to memory, so that processes may have a GPU each, share one, or have none.
"""

import os
import signal
import sys
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from datetime import timedelta
from typing import TypeVar

Item = TypeVar("Item")
LONGEST_WAIT = timedelta(days=7)  # for a slower process; one that ends is noticed at once
_state = None  # Accelerate's PartialState, where this process has joined others


class LostProcess(BaseException):
    """Another process ended, or all were told to: like Ctrl-C it is no error to be caught."""


@contextmanager
def joined() -> Iterator[None]:
    """Work together inside the block with the other processes, if a launcher started any.

    From the second process on, nothing is printed inside it.
    """
    global _state
    if "LOCAL_RANK" not in os.environ or int(os.environ.get("WORLD_SIZE", "1")) < 2:
        yield
        return
    import torch
    from accelerate import PartialState

    signal.signal(signal.SIGTERM, _stop)  # what launchers send to the others where one ends
    on_cpu = not torch.cuda.is_available()
    _state = PartialState(cpu=on_cpu, backend="gloo", timeout=LONGEST_WAIT)
    with ExitStack() as stack:
        if not is_first():
            # left open, since loggers keep it
            nothing = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
            stack.enter_context(redirect_stdout(nothing))
            stack.enter_context(redirect_stderr(nothing))
        yield


def count() -> int:
    """Return how many processes share the work; 1 alone."""
    return _state.num_processes if _state else 1


def is_first() -> bool:
    """Say whether this process is the one that prints and writes."""
    return _state is None or _state.is_main_process


def name() -> str:
    """Return what errors of this process begin with: "process 1: ", nothing of the first one."""
    return "" if is_first() else f"process {_state.process_index}: "


def own_device(device: str) -> str:
    """Return the device of this process alone where any one of its kind is asked for."""
    if _state and device in ("auto", _state.device.type):
        return str(_state.device)
    return device


def end_unless_first() -> None:
    """End a process that has done its share: what is left, the first one does alone."""
    if not is_first():
        sys.exit()


def share(items: Sequence[Item]) -> Sequence[Item]:
    """Return this process's share of a list: a stretch of it, since neighbours share prompts.

    All of it where it is alone. Of a short list it may be empty.
    """
    if _state is None:
        return items
    start = len(items) * _state.process_index // _state.num_processes
    end = len(items) * (_state.process_index + 1) // _state.num_processes
    return items[start:end]


def gathered(value: Item) -> list[Item]:
    """Return what each process has in this place, in their order.

    All of them have to come here, as often as each other, so never where memory may still run out.
    """
    if _state is None:
        return [value]
    from accelerate.utils import gather_object

    try:
        return gather_object([value])
    except RuntimeError as error:  # gloo: the connection was closed
        raise _lost() from error


def from_first(value: Item) -> Item:
    """Return what the first process has: all go on with the same, to the bit."""
    return gathered(value)[0]


def summed(table: Mapping[Hashable, Item]) -> Mapping[Hashable, Item]:
    """Return the sums of tensors over all processes, by key; a process may lack some of them.

    They are added in the order of the processes, so that all have the same bits.
    """
    if _state is None:
        return table
    sums = {}
    for part in gathered({key: tensor.cpu() for key, tensor in table.items()}):
        for key, tensor in part.items():
            sums[key] = sums[key] + tensor if key in sums else tensor
    return sums


def _stop(number: int, frame: object) -> None:
    """End the work when a launcher says so, as a signal handler."""
    raise _lost()


def _lost() -> LostProcess:
    # told once, and undisturbed
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    return LostProcess("the run ends early, since one of its processes did, or it was told to")
