"""Look inside a model: hooks whose lifetime is a `with` block, and batched passes that keep only sums.

Contents: `CAPTURE_POINTS`, `record` (to look at one forward pass), `neuron_differences` (one number a neuron, over many
pairs), `pair_differences` (one number a pair and layer), `run_pairs` (what both stand on), `next_log_p` (one batch of
pairs), `available_points`; `full_precision` and `is_half` are about the arithmetic.

What the points are, for a hidden state `x` that enters a decoder layer (Llama's order; widths in brackets)::

    input_norm        RMSNorm(x)                                [hidden]
    attention_output  self-attention(input_norm)                [hidden]
    gate_proj         G, with n = RMSNorm(x + attention_output) [neurons]
    up_proj           U                                         [neurons]
    down_proj_input   h = act(G) * U, the neuron activations    [neurons]
    down_proj         h @ W_down.T                              [hidden]
    mlp_output        what the MLP returns: equal to down_proj  [hidden]
    residual          what the layer returns                    [hidden]
"""

import math
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fairlab.models import decoder_layers
from fairlab.pairs import PromptPair, as_pairs, encode_pair

# point -> (names of its module inside a layer, first one that exists; which side of it)
_PLACES = {
    "input_norm": (("input_layernorm", "ln_1", "self_attn_layer_norm"), "output"),
    "attention_output": (("self_attn", "attn", "attention"), "output"),
    "gate_proj": (("mlp.gate_proj", "mlp.gate_up_proj"), "output"),
    "up_proj": (("mlp.up_proj", "mlp.gate_up_proj"), "output"),
    "down_proj_input": (("mlp.down_proj", "mlp.c_proj", "mlp.dense_4h_to_h", "fc2"), "input"),
    "down_proj": (("mlp.down_proj", "mlp.c_proj", "mlp.dense_4h_to_h", "fc2"), "output"),
    "mlp_output": (("mlp", "fc2"), "output"),
    "residual": (("",), "output"),
}
CAPTURE_POINTS = tuple(_PLACES)

# shows itself only where the work takes over 2 s; in notebooks tqdm does not heed its own variable
progress = partial(tqdm, delay=2, leave=False, disable=os.environ.get("TQDM_DISABLE") == "1")


@contextmanager
def full_precision() -> Iterator[None]:
    """Keep torch from rounding float32 products to TF32 or bfloat16 inside the block, whatever the user has set.

    Also a decorator: everything that measures runs under it. Autocast is off, too.
    """
    switches = [(torch.backends.cudnn, "allow_tf32", False)]  # (where, name, the value that rounds nothing)
    if hasattr(torch.backends.cuda.matmul, "fp32_precision"):  # torch 2.9 and newer
        places = torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.mkldnn.matmul
        switches = [(place, "fp32_precision", "ieee") for place in places]
    before = [getattr(place, name) for place, name, _ in switches]
    legacy = None if len(switches) > 1 else torch.get_float32_matmul_precision()
    with ExitStack() as stack:
        for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
            stack.enter_context(torch.autocast(device, enabled=False))
        try:
            for place, name, exact in switches:
                setattr(place, name, exact)
            if legacy:
                torch.set_float32_matmul_precision("highest")
            yield
        finally:
            for (place, name, _), value in zip(switches, before, strict=True):
                setattr(place, name, value)
            if legacy:
                torch.set_float32_matmul_precision(legacy)


def is_half(model: PreTrainedModel) -> bool:
    """Say whether a model computes in float16 or bfloat16."""
    return model.dtype.itemsize < 4


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
        (point, layer) → float32 tensor on the CPU, shape (batch, tokens, width), of the latest forward pass.

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

    with full_precision(), _hooks(model, _check_points(model, points), layers, keep):
        yield activations


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
    """Measure by how much each neuron differs between the two prompts of a pair, averaged over pairs.

    With `A^a_t`, `A^b_t` the activation of one neuron at token t, for each pair::

        absolute   mean_t |A^a_t - A^b_t|         (0: the neuron is blind to the word)
        signed     mean_t (A^a_t - A^b_t)         (positive: more active for attribute_a)
        pooled     |mean_t A^a_t - mean_t A^b_t|  (differences of opposite sign cancel)

    Parameters
    ----------
    points : iterable of str
        Any of `CAPTURE_POINTS`.
    positions : str
        "differing": t runs from the first differing token to the end. "all": over all tokens, BOS too, as in the
        article.
    batch_size : int
        Prompts in a forward pass. Memory is bounded by it; the result does not depend on it, but for rounding in
        float32. In half precision each pair runs alone.

    Returns
    -------
    dict
        point → float32 tensor on the CPU, shape (layers, width), in units of the activation.

    Raises
    ------
    ValueError
        No pairs; a pair with unequal token counts; unknown option; activations that are not finite; layers of unequal
        width.
    """
    check_option("statistic", statistic, ("absolute", "signed", "pooled"))
    points, pairs = _check_points(model, points), as_pairs(pairs)
    sums: dict[tuple[str, int], Tensor] = {}

    def add(point: str, layer: int, batch: PairBatch, values: Tensor) -> None:
        differences = values[batch.rows_a] - values[batch.rows_b]
        if statistic == "absolute":
            total = torch.einsum("pt,ptw->w", batch.weights, differences.abs_())
        else:
            pooled = torch.einsum("pt,ptw->pw", batch.weights, differences)
            total = (pooled.abs() if statistic == "pooled" else pooled).sum(0)
        sums[point, layer] = sums[point, layer] + total if (point, layer) in sums else total

    run_pairs(model, tokenizer, pairs, points, add, positions=positions, batch_size=batch_size)
    layers = len(decoder_layers(model))
    tables = {}
    for point in points:
        rows = [sums[point, layer] / len(pairs) for layer in range(layers)]
        if len({len(row) for row in rows}) > 1:
            raise ValueError(
                f"model: its layers have different widths at {point}, so they make no table; use the uncut model"
            )
        tables[point] = _finite(torch.stack(rows).float().cpu(), point)
    return tables


def pair_differences(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[PromptPair],
    *,
    points: Iterable[str],
    positions: Literal["differing", "all"] = "differing",
    batch_size: int = 32,
) -> tuple[Tensor, Tensor]:
    """Measure the mean absolute difference of each pair at each point and layer, and the activations' scale there.

    Means over t and dimensions: `difference` of |A^a - A^b|, `scale` of (|A^a| + |A^b|) / 2.

    Returns
    -------
    (difference, scale)
        Float32 tensors on the CPU, shape (pairs, points, layers), in units of the activation. Difference 0: the same
        activations for both prompts.

    Raises
    ------
    ValueError
        As `neuron_differences`, but the layers may have any width.
    """
    points = _check_points(model, points)
    shape = (len(as_pairs(pairs)), len(points), len(decoder_layers(model)))
    difference, scale = torch.zeros(shape), torch.zeros(shape)

    def add(point: str, layer: int, batch: PairBatch, values: Tensor) -> None:
        place = (batch.pairs, points.index(point), layer)
        gaps = (values[batch.rows_a] - values[batch.rows_b]).abs_().mean(-1)
        sizes = values.abs().mean(-1)
        difference[place] = (gaps * batch.weights).sum(1).float().cpu()
        scale[place] = ((sizes[batch.rows_a] + sizes[batch.rows_b]) / 2 * batch.weights).sum(1).float().cpu()

    run_pairs(model, tokenizer, pairs, points, add, positions=positions, batch_size=batch_size)
    return _finite(difference, "the points asked for"), scale


@dataclass(frozen=True)
class PairBatch:
    """Which rows of a batch of prompts make up which pairs."""

    input_ids: Tensor  # (prompts, tokens), right-padded
    attention_mask: Tensor  # (prompts, tokens), 0 on padding
    last: Tensor  # (prompts,) index of the last real token
    pairs: Tensor  # (pairs of the batch,) their index in the caller's list
    rows_a: Tensor  # (pairs of the batch,) row of prompt a
    rows_b: Tensor  # (pairs of the batch,) row of prompt b
    start: int  # positions before it count for no pair of the batch
    weights: Tensor  # (pairs of the batch, tokens - start) 1 / (positions that count), 0 elsewhere: sums to 1 in a row


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
    batch_size: int = 32,
) -> None:
    """Run both prompts of every pair once and show what comes by, batch by batch; nothing is kept.

    Parameters
    ----------
    visit : callable
        Called as `visit(point, layer, batch, values)` with at least float32 values of the shape
        (prompts, tokens - batch.start, width).
    see_next : callable
        Called as `see_next(batch, log_p)` with the next-token log-probabilities of the prompts, shape
        (prompts, vocabulary). Without it no logits are computed.

    Raises
    ------
    ValueError
        Bad pairs or options, before any pass; probabilities that are not finite.
    """
    points = _check_points(model, points)
    for batch in pair_batches(model, tokenizer, pairs, positions=positions, batch_size=batch_size):

        def show(point: str, layer: int, values: Tensor, batch: PairBatch = batch) -> None:
            precise = torch.promote_types(values.dtype, torch.float32)
            visit(point, layer, batch, values[:, batch.start :].to(precise))

        with torch.no_grad(), _hooks(model, points, None, show):
            if see_next is None:
                model.base_model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False)
                continue
            log_p = next_log_p(model, batch)
        if log_p.isnan().any():
            raise ValueError("model: its next-token probabilities are not finite; look for NaN weights")
        see_next(batch, log_p)


def next_log_p(model: PreTrainedModel, batch: PairBatch) -> Tensor:
    """Compute the next-token log-probabilities of the prompts of a batch in at least float32, with gradients if these
    are enabled; shape (prompts, vocabulary)."""
    places, column = batch.last.unique(return_inverse=True)
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, "use_cache": False}
    logits = model(**inputs, logits_to_keep=places).logits[torch.arange(len(column)), column.cpu()]
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)


def pair_batches(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[PromptPair],
    *,
    positions: Literal["differing", "all"] = "differing",
    batch_size: int = 32,
) -> Iterator[PairBatch]:
    """Yield batches of unique prompts, shortest first, such that both prompts of a pair are in one batch.

    A prompt that several pairs share is run once, unless more than `batch_size` prompts hang together through shared
    ones. In half precision each pair is a batch of its own: what a prompt's neighbours in a batch change by rounding
    would be as large as what is measured. All input is checked before the first batch.
    """
    check_option("positions", positions, ("differing", "all"))
    if not isinstance(batch_size, int) or batch_size < 2:
        raise ValueError(f"batch_size: expected a whole number of at least 2 (a pair); got {batch_size!r}")
    encoded = [encode_pair(tokenizer, pair) for pair in as_pairs(pairs)]
    check_ready(model, longest=max(len(ids) for ids, _, _ in encoded))
    if is_half(model):
        batches = [[index] for index in range(len(encoded))]
    else:
        batches = _group([(tuple(a), tuple(b)) for a, b, _ in encoded], batch_size)
    device = next(model.parameters()).device
    for members in progress(batches, desc="prompt pairs", unit="batch"):
        rows: dict[tuple[int, ...], int] = {}
        for index in members:
            for ids in encoded[index][:2]:
                rows.setdefault(tuple(ids), len(rows))
        lengths = torch.tensor([len(ids) for ids in rows])
        steps = torch.arange(int(lengths.max()))
        pad = tokenizer.pad_token_id or 0
        padded = torch.tensor([list(ids) + [pad] * (len(steps) - len(ids)) for ids in rows])
        firsts = torch.tensor([encoded[index][2] if positions == "differing" else 0 for index in members])
        row_of = [[rows[tuple(encoded[index][side])] for index in members] for side in (0, 1)]
        ends = lengths[row_of[0]]
        counts = (steps >= firsts[:, None]) & (steps < ends[:, None])
        weights = counts / counts.sum(1, keepdim=True)
        yield PairBatch(
            input_ids=padded.to(device),
            attention_mask=(steps < lengths[:, None]).long().to(device),
            last=(lengths - 1).to(device),
            pairs=torch.tensor(members),
            rows_a=torch.tensor(row_of[0], device=device),
            rows_b=torch.tensor(row_of[1], device=device),
            start=int(firsts.min()),
            weights=weights[:, int(firsts.min()) :].to(device, torch.promote_types(model.dtype, torch.float32)),
        )


def _group(prompts: list[tuple[tuple[int, ...], tuple[int, ...]]], batch_size: int) -> list[list[int]]:
    """Split pair numbers into batches of at most `batch_size` unique prompts; pairs that share one stay together."""
    parent: dict[tuple[int, ...], tuple[int, ...]] = {}

    def root(prompt: tuple[int, ...]) -> tuple[int, ...]:
        while parent.setdefault(prompt, prompt) != prompt:
            prompt = parent[prompt]
        return prompt

    for a, b in prompts:
        parent[root(a)] = root(b)
    groups = defaultdict(list)
    for index, (a, _) in enumerate(prompts):
        groups[root(a)].append(index)
    batches: list[list[int]] = [[]]
    held: set[tuple[int, ...]] = set()
    for group in sorted(groups.values(), key=lambda group: len(prompts[group[0]][0])):
        together = {prompt for index in group for prompt in prompts[index]}
        if len(held) + len(together) > batch_size and len(together) <= batch_size and held:
            batches.append([])
            held = set()
        for index in group:
            if len(held | set(prompts[index])) > batch_size:
                batches.append([])
                held = set()
            batches[-1].append(index)
            held |= set(prompts[index])
    return batches


def check_ready(model: PreTrainedModel, *, longest: int) -> None:
    """Raise a ValueError if a model is in training mode, or can't read as many tokens as the longest input has."""
    if model.training:
        raise ValueError(
            "model: it is in training mode, where dropout adds noise to every difference; call model.eval()"
        )
    holds = context_length(model)
    if longest > holds:
        raise ValueError(
            f"model: it reads up to {holds} tokens (max_position_embeddings); the longest input has {longest}"
        )


def context_length(model: PreTrainedModel) -> float:
    """Return how many tokens a model reads at once; infinity if its configuration sets no limit."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None) or math.inf


def refuse_own_hooks(model: PreTrainedModel) -> None:
    """Raise a ValueError if the model is inside a `with` block of fairlab, which acts on it through hooks."""
    for module in model.modules():
        for hook in (*module._forward_pre_hooks.values(), *module._forward_hooks.values()):
            function = hook.func if isinstance(hook, partial) else hook
            if getattr(function, "__module__", "").startswith("fairlab."):
                raise ValueError("model: it is inside `ablate` or `record`; leave the with block first")


def available_points(model: PreTrainedModel) -> tuple[str, ...]:
    """Return the capture points that this architecture has; OLMo 2, for one, has no `input_norm`."""
    layer = decoder_layers(model)[0]
    return tuple(point for point in CAPTURE_POINTS if _module(layer, point) is not None)


def _check_points(model: PreTrainedModel, points: Iterable[str]) -> tuple[str, ...]:
    points = (points,) if isinstance(points, str) else tuple(dict.fromkeys(points))  # twice would count twice
    for point in points:
        check_option("points", point, CAPTURE_POINTS)
        if point not in available_points(model):
            has = ", ".join(available_points(model))
            raise ValueError(f"points: {type(model).__name__} has no {point}; it has {has}")
    return points


def _module(layer: nn.Module, point: str) -> nn.Module | None:
    for name in _PLACES[point][0]:
        try:
            return layer.get_submodule(name)
        except AttributeError:
            continue
    return None


@contextmanager
def _hooks(
    model: PreTrainedModel,
    points: tuple[str, ...],
    layers: Iterable[int] | None,
    see: Callable[[str, int, Tensor], None],
) -> Iterator[None]:
    """Call `see(point, layer, values)` in every forward pass inside the block; the hooks go when the block ends,
    however."""
    all_layers = decoder_layers(model)
    numbers = list(range(len(all_layers))) if layers is None else list(layers)
    for number in numbers:
        if number not in range(len(all_layers)):
            raise ValueError(f"layers: expected numbers from 0 to {len(all_layers) - 1}; got {number!r}")
    leading: list[int] = []  # (batch, tokens) of the pass, for models that flatten the two inside their MLP (OPT)

    def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        leading[:] = inputs[0].shape

    handles = [model.get_input_embeddings().register_forward_pre_hook(note)]
    try:
        for number in numbers:
            for point in points:
                module = _module(all_layers[number], point)
                fused = point in ("gate_proj", "up_proj") and module is getattr(
                    all_layers[number].mlp, "gate_up_proj", None
                )
                hook = partial(_hook, see, point, number, fused, leading)
                side = _PLACES[point][1]
                handles.append(
                    module.register_forward_pre_hook(hook) if side == "input" else module.register_forward_hook(hook)
                )
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hook(
    see: Callable[[str, int, Tensor], None],
    point: str,
    number: int,
    fused: bool,
    leading: list[int],
    module: nn.Module,
    inputs: tuple[Tensor, ...],
    output: Tensor | tuple[Tensor, ...] | None = None,
) -> None:
    values = inputs if output is None else output
    values = values[0] if isinstance(values, tuple) else values
    if values.ndim == 2:
        values = values.view(*leading, -1)
    if fused:
        values = values.chunk(2, dim=-1)[0 if point == "gate_proj" else 1]
    see(point, number, values)


def check_option(argument: str, value: str, allowed: Sequence[str]) -> None:
    """Raise a ValueError that names the argument, what is allowed and what came."""
    if value not in allowed:
        raise ValueError(f"{argument}: expected one of {', '.join(allowed)}; got {value!r}")


def _finite(table: Tensor, point: str) -> Tensor:
    if not torch.isfinite(table).all():
        raise ValueError(
            f"model: its activations at {point} are not finite; look for NaN weights, or overflow in {table.dtype}"
        )
    return table
