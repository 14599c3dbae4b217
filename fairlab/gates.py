"""Turn neurons down, off or up while a model runs, and ask what a small turn would do.

Contents: `gate`, the one intervention of fairlab: cutting, scoring and repairing are all done with
it; `gate_slopes`, the slope of a measure of the model with respect to every gate at once; `frozen`;
`table_shape`.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from fairlab.models import check_room_for_slopes, glu_blocks, input_device, neuron_counts
from fairlab.pairs import check_kind
from fairlab.precision import undoing

# The gradient of a gap is often smaller than what float16 can hold, so a multiple of the measure is
# differentiated. A power of two costs no precision.
_LOSS_SCALE = 1024.0


@contextmanager
def gate(
    model: PreTrainedModel,
    gates: Tensor,
    toward: Tensor | Callable[[int, Tensor], Tensor] | None = None,
) -> Iterator[None]:
    """Put `gates · h + (1 − gates) · toward` in place of every MLP activation h.

    That holds inside the `with` block.

    h is the input of `down_proj`. A gate of 1 leaves a neuron as it is, 0 removes it (or fixes it
    at `toward`), 0.5 turns it down halfway, 2 doubles its distance from `toward`. No weight is
    touched: the gates are hooks, gone when the block ends, also after an exception.

    Parameters
    ----------
    gates : Tensor
        Shape (layers, neurons). It may ask for gradients: after a backward pass inside the block
        `gates.grad` says by how much what was measured changes with each gate.
    toward : Tensor or callable, optional
        What a neuron at gate 0 does instead, in units of the activation: a tensor of the shape of
        `gates`, such as the neurons' mean over plain text; or `toward(layer, h)`, which gets the
        layer's activations of shape (rows, tokens, neurons) and returns as many. 0 by default.

    Raises
    ------
    ValueError
        A model without GLU neurons, gates of another shape than the model, gates or `toward` that
        are not finite.

    Examples
    --------
    >>> gates = torch.ones(30, 1536)
    >>> gates[8, 112] = 0
    >>> with gate(model, gates):
    ...     fairlab.next_token_divergence(model, tokenizer, [fairlab.ARTICLE_PAIR])
    """
    blocks = glu_blocks(model)
    _check_table(model, "gates", gates)
    # sent to a GPU once, and not layer by layer in every pass
    there = gates.to(input_device(model))
    if toward is not None and not callable(toward):
        _check_table(model, "toward", toward)
        toward = toward.to(there.device)
    turned = (gates != 1).any(1).tolist()  # (layers,)
    with undoing() as undo:
        for layer, mlp in enumerate(blocks):
            # a layer whose gates are all 1 needs no hook, unless their gradients are asked for
            if gates.requires_grad or turned[layer]:
                hook = partial(_apply_gates, layer, there, toward)
                undo.append(mlp.down_proj.register_forward_pre_hook(hook).remove)
        yield


def _apply_gates(
    layer: int,
    gates: Tensor,
    toward: Tensor | Callable[[int, Tensor], Tensor] | None,
    module: nn.Module,
    inputs: tuple[Tensor, ...],
) -> tuple[Tensor, ...]:
    """Replace the input of one layer's `down_proj`, as a forward pre-hook."""
    h = inputs[0]  # (rows, tokens, neurons)
    layer_gates = gates[layer].to(h.device)  # (neurons,)
    gated = h * layer_gates
    if not gates.requires_grad:
        # 0 times NaN is NaN, but a neuron that is off must be off whatever it held
        gated = gated.masked_fill(layer_gates == 0, 0)
    if toward is not None:
        goal = toward(layer, h) if callable(toward) else toward[layer].to(h.device)
        gated = gated + (1 - layer_gates) * goal
    return (gated.to(h.dtype), *inputs[1:])


def gate_slopes(
    model: PreTrainedModel,
    measure: Callable[[], Tensor],
    *,
    toward: Tensor | Callable[[int, Tensor], Tensor] | None = None,
) -> Tensor:
    """Compute ∂measure/∂gate at gate 1 for all neurons: one forward and one backward pass.

    To first order, `−slope` is what turning a gate from 1 to 0 does to the measure.

    Parameters
    ----------
    measure : callable
        Runs the model and returns one number as a tensor, such as a loss or a sum of gaps.
    toward : Tensor or callable, optional
        As in `gate`.

    Returns
    -------
    Tensor
        On the CPU, shape (layers, neurons), in units of the measure, at least float32. 0: no effect
        to first order. The model's parameters get no gradient, and cost none.
    """
    shape = table_shape(model)
    check_room_for_slopes(model)
    precise = torch.promote_types(model.dtype, torch.float32)
    gates = torch.ones(shape, dtype=precise, requires_grad=True)  # (layers, neurons)
    with frozen(model), torch.enable_grad(), gate(model, gates, toward):
        (measure() * _LOSS_SCALE).backward()
    return gates.grad / _LOSS_SCALE


@contextmanager
def frozen(model: PreTrainedModel) -> Iterator[None]:
    """Keep the model's parameters from asking for gradients inside the block."""
    trainable = [name for name, weight in model.named_parameters() if weight.requires_grad]

    def set_all(*, ask: bool) -> None:
        # by name, since an offloaded parameter is another object after each forward pass
        for name in trainable:
            model.get_parameter(name).requires_grad_(ask)

    with undoing() as undo:
        undo.append(partial(set_all, ask=True))
        set_all(ask=False)
        yield


def table_shape(model: PreTrainedModel) -> tuple[int, int]:
    """Return the shape (layers, neurons) of a table; refuse a model whose layers are not alike."""
    widths = neuron_counts(model)
    if len(set(widths)) > 1:
        raise ValueError(
            f"model: its layers have different widths ({' or '.join(map(str, sorted(set(widths))))}"
            " neurons), so their neurons make no table; use the uncut model, or one whose layers "
            "are alike"
        )
    return len(widths), widths[0]


def _check_table(model: PreTrainedModel, argument: str, table: Tensor) -> None:
    """Refuse what is no table with one finite value for every neuron."""
    check_kind(argument, table, Tensor, "a tensor of shape (layers, neurons)")
    widths = neuron_counts(model)
    if table.ndim != 2 or len(table) != len(widths) or {table.shape[1]} != set(widths):
        neurons = " or ".join(str(width) for width in sorted(set(widths)))
        raise ValueError(
            f"{argument}: expected the shape (layers, neurons) of the model, "
            f"{len(widths)} layers of {neurons}; got {tuple(table.shape)}"
        )
    if not torch.isfinite(table).all():
        raise ValueError(f"{argument}: expected finite values; got NaN or infinity")
