"""Whatever the user has set, compute as fairlab means it.

Contents: `full_precision`; `attribute_set_to`.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch


@contextmanager
def full_precision() -> Iterator[None]:
    """Compute as fairlab means it inside the block, whatever the user has set.

    No TF32, no bfloat16, no autocast; float32 where no dtype is named; and no inference mode, whose
    tensors have no slopes. Also a decorator: everything that measures runs under it.
    """
    backends = torch.backends
    with ExitStack() as stack:
        stack.callback(torch.set_default_dtype, torch.get_default_dtype())
        torch.set_default_dtype(torch.float32)
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.no_grad())  # slopes ask for gradients where they need them
        for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
            stack.enter_context(torch.autocast(device, enabled=False))
        if hasattr(backends.cuda.matmul, "fp32_precision"):  # torch 2.9 and newer
            for place in (backends.cuda.matmul, backends.cudnn.conv, backends.mkldnn.matmul):
                stack.enter_context(attribute_set_to(place, "fp32_precision", "ieee"))
        else:
            stack.enter_context(attribute_set_to(backends.cudnn, "allow_tf32", False))
            before = torch.get_float32_matmul_precision()
            stack.callback(torch.set_float32_matmul_precision, before)
            torch.set_float32_matmul_precision("highest")
        yield


@contextmanager
def attribute_set_to(owner: object, name: str, value: object) -> Iterator[None]:
    """Give an attribute another value inside the block."""
    before = getattr(owner, name)
    try:
        setattr(owner, name, value)
        yield
    finally:
        setattr(owner, name, before)
