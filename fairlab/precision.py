"""Whatever the user has set, compute as fairlab means it.

Contents: `full_precision`; `attribute_set_to`; `undoing`, by which a block leaves no trace.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

import torch


@contextmanager
def full_precision() -> Iterator[None]:
    """Compute as fairlab means it inside the block, whatever the user has set.

    No TF32, no bfloat16, no autocast; float32 where no dtype is named; and no inference mode, whose
    tensors have no slopes. Also a decorator: everything that measures runs under it.
    """
    backends = torch.backends
    with ExitStack() as stack, undoing() as undo:
        if torch.is_inference_mode_enabled():  # left once, by torch: a stop there is not undone
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.no_grad())  # slopes ask for gradients where they need them
        undo.append(partial(torch.set_default_dtype, torch.get_default_dtype()))
        torch.set_default_dtype(torch.float32)
        for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
            before = torch.is_autocast_enabled(device)
            undo.append(partial(torch.set_autocast_enabled, device, before))
            torch.set_autocast_enabled(device, False)
        if hasattr(backends.cuda.matmul, "fp32_precision"):  # torch 2.9 and newer
            for place in (backends.cuda.matmul, backends.cudnn.conv, backends.mkldnn.matmul):
                undo.append(partial(setattr, place, "fp32_precision", place.fp32_precision))
                place.fp32_precision = "ieee"
        else:
            undo.append(partial(setattr, backends.cudnn, "allow_tf32", backends.cudnn.allow_tf32))
            backends.cudnn.allow_tf32 = False
            before = torch.get_float32_matmul_precision()
            undo.append(partial(torch.set_float32_matmul_precision, before))
            torch.set_float32_matmul_precision("highest")
        yield


@contextmanager
def attribute_set_to(owner: object, name: str, value: object) -> Iterator[None]:
    """Give an attribute another value inside the block."""
    with undoing() as undo:
        undo.append(partial(setattr, owner, name, getattr(owner, name)))
        setattr(owner, name, value)
        yield


@contextmanager
def undoing() -> Iterator[list[Callable[[], object]]]:
    """Call at the end of the block all that it put into the list, the last one first.

    An ExitStack that was interrupted while it undoes would leave out what it was at. Here all of it
    is called twice, so that nothing is left where a stop comes in the middle of the first time:
    each of them must say what is to hold, so that saying it again changes nothing.
    """
    undo: list[Callable[[], object]] = []
    try:
        try:
            yield undo
        finally:
            for step in reversed(undo):
                step()
    finally:
        for step in reversed(undo):
            step()
