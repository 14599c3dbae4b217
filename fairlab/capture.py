"""Look inside a model: hooks for the length of a `with` block, batched passes that keep sums.

Contents: `CAPTURE_POINTS`, `available_points`, `record` (one forward pass), `neuron_differences`
(one number a neuron, over many pairs), `pair_differences` (one number a pair and layer),
`run_pairs` (the passes behind the two), `refuse_own_hooks`, `check_finite`.

What the points are, for a hidden state `x` that enters a decoder layer (Llama's order; widths in
brackets)::

    input_norm        RMSNorm(x)                                [hidden]
    attention_output  self-attention(input_norm)                [hidden]
    gate_proj         G, with n = RMSNorm(x + attention_output) [neurons]
    up_proj           U                                         [neurons]
    down_proj_input   h = act(G) * U, the neuron activations    [neurons]
    down_proj         h @ W_down.T                              [hidden]
    mlp_output        what the MLP returns: equal to down_proj  [hidden]
    residual          what the layer returns                    [hidden]
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fairlab.models import decoder_layers, input_device, refuse_wrapped
from fairlab.pairs import PromptPair, as_pairs, listed
from fairlab.passes import (
    PairBatch,
    at_least_float32,
    check_option,
    check_whole,
    halving,
    next_log_p,
    pair_batches,
    run_decoder,
)
from fairlab.precision import full_precision, undoing
from fairlab.processes import share, summed

_DOWN_PROJ = ("mlp.down_proj", "mlp.c_proj", "mlp.dense_4h_to_h", "fc2")
# point -> (names of its module inside a layer, of which the first that exists counts; whether the
# point is the module's input or its output)
_PLACES = {
    "input_norm": (("input_layernorm", "ln_1", "self_attn_layer_norm"), "output"),
    "attention_output": (("self_attn", "attn", "attention"), "output"),
    "gate_proj": (("mlp.gate_proj", "mlp.gate_up_proj"), "output"),
    "up_proj": (("mlp.up_proj", "mlp.gate_up_proj"), "output"),
    "down_proj_input": (_DOWN_PROJ, "input"),
    "down_proj": (_DOWN_PROJ, "output"),
    "mlp_output": (("mlp", "fc2"), "output"),
    "residual": (("",), "output"),
}
CAPTURE_POINTS = tuple(_PLACES)


@contextmanager
def record(
    model: PreTrainedModel, points: Iterable[str], layers: Iterable[int] | None = None
) -> Iterator[dict[tuple[str, int], Tensor]]:
    """Record activations of the forward passes inside the `with` block.

    Parameters
    ----------
    points : iterable of str
        Any of `CAPTURE_POINTS`.
    layers : iterable of int, optional
        Layer numbers from 0; all by default.

    Yields
    ------
    dict
        (point, layer) → float32 tensor on the CPU, shape (batch, tokens, width), of the latest
        forward pass, with all that `ablate` or `gate` did in it, whichever block is the inner one.

    Raises
    ------
    ValueError
        Unknown point, a point that this architecture lacks, or a layer that is not there.

    Examples
    --------
    >>> with record(model, ["residual"], layers=[0]) as activations:
    ...     model(**tokenizer("A man", return_tensors="pt"))
    >>> activations["residual", 0].shape
    """
    activations: dict[tuple[str, int], Tensor] = {}

    def keep(point: str, layer: int, values: Tensor) -> None:
        activations[point, layer] = values.detach().float().cpu()

    with full_precision(), _hooks(model, check_points(model, points), layers, keep):
        yield activations


@full_precision()
@halving(2)
def neuron_differences(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[PromptPair],
    *,
    points: Iterable[str] = ("down_proj_input",),
    statistic: Literal["absolute", "signed", "pooled"] = "absolute",
    positions: Literal["differing", "all"] = "differing",
    batch_size: int = 32,
) -> dict[str, Tensor]:
    """Measure by how much each neuron differs between two prompts, averaged over pairs.

    With `A^a_t`, `A^b_t` the activation of one neuron at token t, for each pair::

        absolute   mean_t |A^a_t - A^b_t|         (0: the neuron is blind to the word)
        signed     mean_t (A^a_t - A^b_t)         (positive: more active for attribute_a)
        pooled     |mean_t A^a_t - mean_t A^b_t|  (differences of opposite sign cancel)

    Parameters
    ----------
    points : iterable of str
        Any of `CAPTURE_POINTS`.
    statistic : str
        Which of the three above.
    positions : str
        "differing": t runs from the first differing token to the end. "all": over all tokens, BOS
        too, as in the article.
    batch_size : int
        Prompts in a forward pass. Memory is bounded by it; the result does not depend on it, but
        for rounding in float32. In half precision each pair runs alone.

    Returns
    -------
    dict
        Point → float32 tensor on the CPU, shape (layers, width), in units of the activation.

    Raises
    ------
    ValueError
        No pairs; a pair with unequal token counts; unknown option; activations that are not finite;
        layers of unequal width.
    """
    check_option("statistic", statistic, ("absolute", "signed", "pooled"))
    points, pairs = check_points(model, points), as_pairs(pairs)
    sums: dict[tuple[str, int], Tensor] = {}

    def add(point: str, layer: int, batch: PairBatch, values: Tensor) -> None:
        differences = values[batch.rows_a] - values[batch.rows_b]  # (pairs, tokens, width)
        if statistic == "absolute":
            total = torch.einsum("pt,ptw->w", batch.weights, differences.abs_())
        else:
            means = torch.einsum("pt,ptw->pw", batch.weights, differences)
            total = means.abs().sum(0) if statistic == "pooled" else means.sum(0)
        # only the sum over pairs is kept, so memory does not grow with their number
        sums[point, layer] = sums.get((point, layer), 0) + total  # (width,)

    options = {"positions": positions, "batch_size": batch_size}
    if mine := share(pairs):
        run_pairs(model, tokenizer, mine, points, add, **options)
    sums = summed(sums)
    tables = {}
    for point in points:
        rows = [sums[point, layer] / len(pairs) for layer in range(len(decoder_layers(model)))]
        if len({len(row) for row in rows}) > 1:
            raise ValueError(
                f"model: its layers have different widths at {point}, so they make no table; "
                "use the uncut model, or one whose layers are alike"
            )
        tables[point] = torch.stack(rows).float().cpu()  # (layers, width)
        check_finite(tables[point], point)
    return tables


@full_precision()
@halving(2)
def pair_differences(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[PromptPair],
    *,
    points: Iterable[str],
    positions: Literal["differing", "all"] = "differing",
    batch_size: int = 32,
) -> tuple[Tensor, Tensor]:
    """Measure the difference and the scale of activations for each pair, point and layer.

    Means over t and dimensions: `difference` of |A^a - A^b|, `scale` of (|A^a| + |A^b|) / 2.

    Returns
    -------
    (difference, scale)
        Float32 tensors on the CPU, shape (pairs, points, layers), in units of the activation.
        Difference 0: the same activations for both prompts.

    Raises
    ------
    ValueError
        As `neuron_differences`, but the layers may have any width.
    """
    points, pairs = check_points(model, points), as_pairs(pairs)
    shape = (len(pairs), len(points), len(decoder_layers(model)))
    # filled where the model computes, and fetched once at the end
    difference, scale = tables = torch.zeros(2, *shape, device=input_device(model))

    def note(point: str, layer: int, batch: PairBatch, values: Tensor) -> None:
        cells = (batch.pairs_on_device, points.index(point), layer)
        gaps = (values[batch.rows_a] - values[batch.rows_b]).abs_().mean(-1)  # (pairs, tokens)
        difference[cells] = (gaps * batch.weights).sum(1).float()
        sizes = values.abs().mean(-1)  # (prompts, tokens)
        sizes = (sizes[batch.rows_a] + sizes[batch.rows_b]) / 2  # (pairs, tokens)
        scale[cells] = (sizes * batch.weights).sum(1).float()

    run_pairs(model, tokenizer, pairs, points, note, positions=positions, batch_size=batch_size)
    difference, scale = tables.cpu()
    check_finite(difference, "the points asked for")
    return difference, scale


@full_precision()
def run_pairs(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[PromptPair],
    points: Iterable[str] = (),
    visit: Callable[[str, int, PairBatch, Tensor], None] | None = None,
    *,
    see_next: Callable[[PairBatch, Tensor], None] | None = None,
    positions: Literal["differing", "all"] = "differing",
    aligned: bool = True,
    batch_size: int = 32,
) -> None:
    """Run both prompts of every pair once and hand each activation to a callback; nothing is kept.

    Parameters
    ----------
    points : iterable of str
        Of which `CAPTURE_POINTS` the activations are handed over; none by default.
    visit : callable
        Called as `visit(point, layer, batch, values)` with at least float32 values of the shape
        (prompts, tokens - batch.start, width).
    see_next : callable
        Called as `see_next(batch, log_p)` with the next-token log-probabilities of the prompts,
        shape (prompts, vocabulary). Without it no logits are computed.
    positions : str
        Which positions count in `batch.weights`: "differing", from the first differing token on, or
        "all".
    aligned : bool
        As in `encode_pair`; False also takes pairs of unequal length, whose `batch.weights` are
        NaN.

    Raises
    ------
    ValueError
        Bad pairs or options, before any pass; probabilities that are not finite.
    """
    batch: PairBatch  # the one that is running

    def hand_over(point: str, layer: int, values: Tensor) -> None:
        values = values[:, batch.start :].to(batch.weights.device)  # from the layer's device
        visit(point, layer, batch, at_least_float32(values))

    options = {"positions": positions, "aligned": aligned, "batch_size": batch_size}
    logits = see_next is not None
    batches = pair_batches(model, tokenizer, pairs, logits=logits, **options)
    points = check_points(model, points) if points else ()
    with torch.no_grad(), _hooks(model, points, None, hand_over):
        for batch in batches:
            if see_next is None:
                run_decoder(model, batch)
                continue
            log_p = next_log_p(model, batch)  # (prompts, vocabulary)
            see_next(batch, log_p)


def refuse_own_hooks(model: PreTrainedModel) -> None:
    """Raise a ValueError if the model has hooks of fairlab: it is inside a `with` block."""
    refuse_wrapped(model)
    for module in model.modules():
        # torch has no public way to list the hooks of a module
        for hook in (*module._forward_pre_hooks.values(), *module._forward_hooks.values()):
            function = hook.func if isinstance(hook, partial) else hook
            if getattr(function, "__module__", "").startswith("fairlab."):
                raise ValueError(
                    "model: it is inside `ablate` or `record`; leave the with block first"
                )


def available_points(model: PreTrainedModel) -> tuple[str, ...]:
    """Return the capture points that every layer has; OLMo 2 has no `input_norm`."""
    available = list(CAPTURE_POINTS)
    for layer in decoder_layers(model):
        available = [point for point in available if _module_name(layer, point) is not None]
    return tuple(available)


def check_points(model: PreTrainedModel, points: Iterable[str]) -> tuple[str, ...]:
    """Return the points as a tuple, each of them once, or raise a ValueError."""
    points = [points] if isinstance(points, str) else listed("points", points, "names of points")
    available = available_points(model)
    for point in points:
        check_option("points", point, CAPTURE_POINTS)
        if point not in available:
            raise ValueError(
                f"points: not every layer of {type(model).__name__} has {point}; all have "
                f"{', '.join(available)}"
            )
    # a point that is named twice would count twice in the sums
    return tuple(dict.fromkeys(points))


def _module_name(layer: nn.Module, point: str) -> str | None:
    """Return the name of the module at a point, inside its layer; None if there is none."""
    for name in _PLACES[point][0]:
        try:
            layer.get_submodule(name)
        except AttributeError:
            continue
        return name
    return None


@contextmanager
def _hooks(
    model: PreTrainedModel,
    points: tuple[str, ...],
    layers: Iterable[int] | None,
    visit: Callable[[str, int, Tensor], None],
) -> Iterator[None]:
    """Call `visit(point, layer, values)` in every forward pass inside the block."""
    all_layers = decoder_layers(model)
    given = range(len(all_layers)) if layers is None else listed("layers", layers, "numbers")
    numbers = [check_whole("layers", number, 0, len(all_layers) - 1) for number in given]
    # (batch, tokens) of the pass that is running: OPT flattens the two inside its MLP
    shape: list[int] = []

    def remember_shape(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        shape[:] = inputs[0].shape

    embeddings = model.get_input_embeddings()
    with undoing() as undo:
        undo.append(embeddings.register_forward_pre_hook(remember_shape).remove)
        for number in numbers:
            for point in points:
                name = _module_name(all_layers[number], point)
                fused = name == "mlp.gate_up_proj"  # gate_proj and up_proj in one matrix (Phi-3)
                half = ("gate_proj", "up_proj").index(point) if fused else None
                hook = partial(_hand_over, partial(visit, point, number), half, shape)
                hook = partial(hook, is_input=_PLACES[point][1] == "input")
                module = all_layers[number].get_submodule(name)
                # after the pass, when all that changes an input has changed it: a cut is seen
                # whichever of the two `with` blocks is the inner one
                undo.append(module.register_forward_hook(hook).remove)
        yield


def _hand_over(
    visit: Callable[[Tensor], None],
    half: int | None,
    shape: list[int],
    module: nn.Module,
    inputs: tuple[Tensor, ...],
    output: Tensor | tuple[Tensor, ...],
    *,
    is_input: bool,
) -> None:
    """Hand a module's output, or its input, to `visit`: (batch, tokens, width)."""
    values = inputs if is_input else output
    # inputs are a tuple; so are the outputs of attention, which come with its weights
    if isinstance(values, tuple):
        values = values[0]
    if values.ndim == 2:  # (batch · tokens, width)
        values = values.view(*shape, -1)
    if half is not None:
        values = values.chunk(2, dim=-1)[half]
    visit(values)


def check_finite(table: Tensor, point: str) -> None:
    """Raise a ValueError if activations are not finite."""
    if not torch.isfinite(table).all():
        raise ValueError(
            f"model: its activations at {point} are not finite; look for NaN weights, "
            f"or overflow in {table.dtype}"
        )
