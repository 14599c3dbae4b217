"""Run prompts and texts through a model.

Contents: `pair_batches`, `run_decoder`, `next_log_p`, `divergence` (of pairs); `logits_at`,
`log_probabilities`; `text_windows`, `text_chunks`, `chunk_loss`, `token_losses`, `perplexity` (of
texts); `layer_inputs` and `skipping` (to run the upper layers alone); `halving`, `check_ready`,
`check_memory`, `check_material` and other conditions under which everything is measured.
"""

import functools
import gc
import inspect
import math
import warnings
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from numbers import Integral, Real
from typing import Literal

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fairlab.models import free_bytes, input_device, neuron_counts, refuse_wrapped
from fairlab.pairs import PromptPair, as_pairs, check_string, check_tokenizer, encode_pair
from fairlab.precision import full_precision, undoing
from fairlab.weights import progress

Prompt = tuple[int, ...]  # token ids
WINDOW = 512  # how many tokens of a text a model reads at once


def halving(least: int, what: str = "prompts") -> Callable[[Callable], Callable]:
    """Make a decorator for what takes a model and a `batch_size`, and adds to nothing outside.

    Where memory runs out, or `check_memory` says that it would, it starts again with half of the
    batch, and says so; numbers stay the same but for rounding. With `least` in a batch, or in half
    precision, where pairs run alone, the error is raised as it came.
    """

    def decorate(measure: Callable) -> Callable:
        signature = inspect.signature(measure)

        @functools.wraps(measure)
        def measure_again(*args: object, **kwargs: object) -> object:
            given = signature.bind(*args, **kwargs)
            given.apply_defaults()
            for argument, value in given.arguments.items():
                if isinstance(value, Iterator):  # a second try would find it empty
                    given.arguments[argument] = list(value)
            while True:
                try:
                    return measure(*given.args, **given.kwargs)
                except (RuntimeError, MemoryError) as error:
                    size = given.arguments["batch_size"]
                    if not _is_lack_of_memory(error) or size <= least:
                        raise
                    if is_half(given.arguments["model"]):
                        raise
                # only here nothing holds the tensors of the pass that failed
                gc.collect()
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()
                given.arguments["batch_size"] = half = max(size // 2, least)
                warnings.warn(
                    f"there is no memory for {size} {what} at once; trying again with {half}",
                    stacklevel=2,
                )

        return measure_again

    return decorate


def _is_lack_of_memory(error: BaseException) -> bool:
    """Say whether an error is one of torch's or Python's for a lack of memory, on any device."""
    # on the CPU, torch raises a RuntimeError: "DefaultCPUAllocator: not enough memory"
    signs = ("out of memory", "not enough memory", "can't allocate memory")
    return isinstance(error, MemoryError) or any(sign in str(error) for sign in signs)


def precise_dtype(model: PreTrainedModel) -> torch.dtype:
    """Return the dtype in which a model is measured: its own, or float32 where that is more."""
    refuse_wrapped(model)
    return torch.promote_types(model.dtype, torch.float32)


def is_half(model: PreTrainedModel) -> bool:
    """Say whether a model computes in float16 or bfloat16."""
    return model.dtype.itemsize < 4


def at_least_float32(tensor: Tensor) -> Tensor:
    """Turn float16 and bfloat16 into float32; float32 and float64 stay as they are."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def check_option(argument: str, value: object, allowed: Collection[str]) -> None:
    """Raise a ValueError that names the argument, what is allowed and what came."""
    if not isinstance(value, str) or value not in allowed:  # an array has no truth value
        raise ValueError(f"{argument}: expected one of {', '.join(allowed)}; got {value!r}")


def check_whole(argument: str, value: object, low: int, high: int | None = None) -> int:
    """Return a whole number, NumPy's too, as an int; refuse all else, True among it, by name."""
    is_whole = isinstance(value, Integral) and not isinstance(value, bool)
    if not is_whole or value < low or (high is not None and value > high):
        expected = f"of at least {low}" if high is None else f"from {low} to {high}"
        raise ValueError(f"{argument}: expected a whole number {expected}; got {value!r}")
    return int(value)


def is_number(value: object) -> bool:
    """Say whether a value is a finite real number, NumPy's or Python's; True is none."""
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def check_positive(argument: str, value: object, *, or_zero: bool = False) -> float:
    """Return a finite number above 0, or 0 where that is allowed; refuse all else by name."""
    if not is_number(value) or value < 0 or (value == 0 and not or_zero):
        expected = "of at least 0" if or_zero else "above 0"
        raise ValueError(f"{argument}: expected a number {expected}; got {value!r}")
    return float(value)


def check_weight(argument: str, value: object) -> float:
    """Return a number between 0 and 1, both included; refuse all else by name."""
    if not is_number(value) or not 0 <= value <= 1:
        raise ValueError(f"{argument}: expected a number from 0 to 1; got {value!r}")
    return float(value)


def check_scale(value: object) -> float:
    """Return what activations are multiplied by, any finite number; refuse all else."""
    if not is_number(value):
        raise ValueError(f"scale: expected a finite number (0 removes); got {value!r}")
    return float(value)


def check_fraction(fraction: object) -> float:
    """Return a fraction of the neurons, between 0 and 1; refuse all else."""
    if not is_number(fraction) or not 0 < fraction < 1:
        raise ValueError(
            f"fraction: expected a float between 0 and 1 (0.002 is 0.2 %); got {fraction!r}"
        )
    return float(fraction)


def check_batch_size(batch_size: object) -> int:
    """Return a batch size that has room for the two prompts of a pair; refuse all else."""
    return check_whole("batch_size", batch_size, 2)


def check_material(
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[PromptPair],
    neutral: Sequence[PromptPair],
    text: str | None,
) -> tuple[list[PromptPair], list[PromptPair]]:
    """Return the pairs as lists; refuse them, and a text, before the first of several passes."""
    pairs, neutral = as_pairs(pairs), as_pairs(neutral, argument="neutral")
    for argument, given in (("pairs", pairs), ("neutral", neutral)):
        for pair in given:
            encode_pair(tokenizer, pair, aligned=False, argument=argument)
    if text is not None:
        check_string("text", text)
    return pairs, neutral


def check_ready(
    model: PreTrainedModel, *, longest: int, prompts: Iterable[Sequence[int]] = ()
) -> None:
    """Raise an error if a model can't be measured on an input.

    It is no plain one, is in training mode, can't read the longest input, or has no embedding for a
    token of the prompts.
    """
    refuse_wrapped(model)
    known = len(model.get_input_embeddings().weight)
    highest = max(chain.from_iterable(prompts), default=0)
    if highest >= known:
        raise ValueError(
            f"tokenizer: it makes token {highest}, and the model knows those from 0 to "
            f"{known - 1}; give the tokenizer that belongs to the model"
        )
    if model.training:
        raise ValueError(
            "model: it is in training mode, where dropout adds noise to every difference; "
            "call model.eval()"
        )
    limit = context_length(model)
    if longest > limit:
        raise ValueError(
            f"model: it reads up to {limit} tokens (max_position_embeddings); "
            f"the longest input has {longest}"
        )


def context_length(model: PreTrainedModel) -> float:
    """Return how many tokens a model reads at once; infinity if its configuration sets no limit."""
    refuse_wrapped(model)
    return getattr(model.config.get_text_config(), "max_position_embeddings", None) or math.inf


def check_memory(
    model: PreTrainedModel,
    batches: Iterable[tuple[int, int, int]],
    *,
    slopes: bool = False,
) -> None:
    """Raise a MemoryError before any pass, if there is no room for what a batch holds at once.

    Counted is only what is there in any case: what goes into the widest matrix and what comes out,
    or else the logits. So nothing is refused that fits, and what passes here may still run out of
    memory. Inside `halving` a smaller batch is tried. A model on several devices is not looked at.

    Parameters
    ----------
    batches : iterable of (int, int, int)
        Of each batch its rows, the tokens of the longest one, and at how many places of each row
        there are logits.
    slopes : bool
        Whether a backward pass follows, as in `gate_slopes`: then the activations of all neurons
        are kept until the logits are there.
    """
    device = input_device(model)
    known = device.type in ("cpu", "cuda", "mps")
    if not known or any(weight.device != device for weight in model.parameters()):
        return
    matrices = [part for part in model.base_model.modules() if isinstance(part, nn.Linear)]
    width = max((part.in_features + part.out_features for part in matrices), default=0)
    if slopes:
        width = sum(neuron_counts(model))
    vocabulary = len(model.get_output_embeddings().weight)

    def bytes_of(batch: tuple[int, int, int]) -> int:
        rows, tokens, places = batch
        in_layers = rows * tokens * width * model.dtype.itemsize
        # as the model makes them: of half precision not all become float32 at once
        of_logits = rows * places * vocabulary * model.dtype.itemsize
        return in_layers + of_logits if slopes else max(in_layers, of_logits)

    largest = max(batches, key=bytes_of, default=(0, 0, 0))
    needed, free = bytes_of(largest), free_bytes(device)
    if needed > free:
        rows, tokens, _ = largest
        # no ValueError: `halving` knows it, and tries less
        raise MemoryError(
            f"memory: {rows} × {tokens} tokens at once need more than {needed / 1e9:.2g} GB, and "
            f"{free / 1e9:.2g} GB are free on {device}; free some, or read less at once (shorter "
            "prompts or texts, or a smaller batch_size where there is one)"
        )


@dataclass(frozen=True)
class PairBatch:
    """Unique prompts as the rows of one batch, and which two rows make up each pair.

    Attributes
    ----------
    input_ids : Tensor of shape (prompts, tokens)
        Token ids, padded on the right.
    attention_mask : Tensor of shape (prompts, tokens)
        1 on tokens, 0 on padding.
    last : Tensor of shape (prompts,)
        Position of the last token of each prompt.
    pairs : Tensor of shape (pairs,), on the CPU
        Index of each pair in the caller's list.
    pairs_on_device : Tensor of shape (pairs,)
        The same beside the other tensors, for a table that is filled there layer by layer: what is
        fetched from a GPU, or sent to it, waits for all that it has to do.
    rows_a, rows_b : Tensors of shape (pairs,)
        Row of the first and of the second prompt of each pair.
    start : int
        The first position that counts for any pair.
    weights : Tensor of shape (pairs, tokens - start)
        1 / (number of positions that count for the pair) at these positions, 0 elsewhere, so that
        each row sums to 1. NaN for a pair of unequal length, which has no such positions.
    """

    input_ids: Tensor
    attention_mask: Tensor
    last: Tensor
    pairs: Tensor
    pairs_on_device: Tensor
    rows_a: Tensor
    rows_b: Tensor
    start: int
    weights: Tensor


def pair_batches(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[PromptPair],
    *,
    positions: Literal["differing", "all"] = "differing",
    aligned: bool = True,
    logits: bool = True,
    slopes: bool = False,
    batch_size: int = 32,
) -> Iterator[PairBatch]:
    """Yield batches of unique prompts, shortest first, with both prompts of a pair in one batch.

    A prompt that several pairs share is run once, unless the pairs that are connected through
    shared prompts have more than `batch_size` prompts. In half precision each pair is a batch of
    its own: what a prompt's neighbours in a batch change by rounding would be as large as what is
    measured. All input is checked before the first batch, and so is the memory, `logits` of the
    last tokens and what a backward pass needs (`slopes`) included. `aligned` is that of
    `encode_pair`: pass False where only the last token of each prompt is looked at.
    """
    check_option("positions", positions, ("differing", "all"))
    batch_size = check_batch_size(batch_size)
    encoded = [encode_pair(tokenizer, pair, aligned=aligned) for pair in as_pairs(pairs)]
    prompts = [(tuple(ids_a), tuple(ids_b)) for ids_a, ids_b, _ in encoded]
    every = list(chain.from_iterable(prompts))
    check_ready(model, longest=max(map(len, every)), prompts=every)
    first_positions = [first for _, _, first in encoded]
    if positions == "all":
        first_positions = [0] * len(encoded)
    if is_half(model):
        batches = [[index] for index in range(len(encoded))]
    else:
        batches = pack_pairs(prompts, batch_size)
    sizes = [_size_of(indices, prompts, logits) for indices in batches]
    check_memory(model, sizes, slopes=slopes)
    for indices in progress(batches, desc="prompt pairs", unit="batch"):
        yield _pair_batch(model, indices, prompts, first_positions)


def _size_of(
    indices: list[int], prompts: list[tuple[Prompt, Prompt]], logits: bool
) -> tuple[int, int, int]:
    """Return the rows of a batch, its longest prompt, and where in each row there are logits."""
    rows: set[Prompt] = set()
    for index in indices:
        rows.update(prompts[index])
    lengths = set(map(len, rows))
    return len(rows), max(lengths), len(lengths) if logits else 0


def _pair_batch(
    model: PreTrainedModel,
    indices: list[int],
    prompts: list[tuple[Prompt, Prompt]],
    first_positions: list[int],
) -> PairBatch:
    """Make one batch of the pairs with these indices."""
    row_of: dict[Prompt, int] = {}
    for index in indices:
        for prompt in prompts[index]:
            row_of.setdefault(prompt, len(row_of))
    rows_a = torch.tensor([row_of[prompts[index][0]] for index in indices])  # (pairs,)
    rows_b = torch.tensor([row_of[prompts[index][1]] for index in indices])  # (pairs,)

    rows = [torch.tensor(prompt) for prompt in row_of]
    # with zeros, which every model has an embedding for: the tokenizer's own padding may be none
    input_ids = nn.utils.rnn.pad_sequence(rows, batch_first=True)
    lengths = torch.tensor([len(prompt) for prompt in row_of])  # (prompts,)
    steps = torch.arange(input_ids.shape[1])  # (tokens,)

    # a pair's positions run from its first one to the end of its prompts, if these are equally long
    first = torch.tensor([first_positions[index] for index in indices])  # (pairs,)
    counts = (steps >= first[:, None]) & (steps < lengths[rows_a][:, None])  # (pairs, tokens)
    weights = counts / counts.sum(1, keepdim=True)
    weights[lengths[rows_a] != lengths[rows_b]] = math.nan
    start = int(first.min())

    device = input_device(model)
    return PairBatch(
        input_ids=input_ids.to(device),
        attention_mask=(steps < lengths[:, None]).long().to(device),
        last=(lengths - 1).to(device),
        pairs=torch.tensor(indices),
        pairs_on_device=torch.tensor(indices, device=device),
        rows_a=rows_a.to(device),
        rows_b=rows_b.to(device),
        start=start,
        weights=weights[:, start:].to(device, torch.promote_types(model.dtype, torch.float32)),
    )


def pack_pairs(prompts: list[tuple[Prompt, Prompt]], batch_size: int) -> list[list[int]]:
    """Split the indices of pairs into batches of at most `batch_size` unique prompts.

    The shortest come first; pairs that share a prompt stay together if a batch has room for them.
    """

    def unique_prompts(indices: list[int]) -> set[Prompt]:
        return {prompt for index in indices for prompt in prompts[index]}

    components = sorted(connected_pairs(prompts), key=lambda pairs: len(prompts[pairs[0]][0]))
    units: list[list[int]] = []  # what no batch may split
    for component in components:
        if len(unique_prompts(component)) <= batch_size:
            units.append(component)
        else:
            units.extend([index] for index in component)

    # fill one batch after the other
    batches: list[list[int]] = [[]]
    for unit in units:
        if len(unique_prompts(batches[-1] + unit)) > batch_size:
            batches.append([])
        batches[-1] += unit
    return batches


def connected_pairs(prompts: list[tuple[Prompt, Prompt]]) -> list[list[int]]:
    """Group the indices of pairs that are connected through shared prompts, in their order."""
    node_of: dict[Prompt, int] = {}
    for pair in prompts:
        for prompt in pair:
            node_of.setdefault(prompt, len(node_of))
    # a graph whose nodes are the prompts and whose edges are the pairs
    nodes = np.array([(node_of[a], node_of[b]) for a, b in prompts])  # (pairs, 2)
    edges = np.ones(len(prompts))
    graph = coo_array((edges, (nodes[:, 0], nodes[:, 1])), shape=(len(node_of), len(node_of)))
    _, component_of = connected_components(graph, directed=False)  # (prompts,)

    components = defaultdict(list)
    for index, node in enumerate(nodes[:, 0]):
        components[component_of[node]].append(index)
    return list(components.values())


def run_decoder(model: PreTrainedModel, batch: PairBatch) -> None:
    """Run a batch, for what hooks see, without the output layer: much of a small model's work."""
    model.base_model(
        input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False
    )


def next_log_p(model: PreTrainedModel, batch: PairBatch) -> Tensor:
    """Compute the next-token log-probabilities of the prompts of a batch.

    In at least float32, shape (prompts, vocabulary).
    """
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    logits, ends = logits_at(model, batch.last, inputs)
    prompts = torch.arange(len(ends), device=ends.device)
    return log_probabilities(logits[prompts, ends])


def logits_at(
    model: PreTrainedModel, positions: Tensor, inputs: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """Run a batch and compute logits at these positions alone; all of them would cost much more.

    Returns
    -------
    logits : Tensor of shape (rows, different positions, vocabulary)
        In the dtype of the model.
    places : Tensor of the shape of `positions`
        Where each position stands among the different ones.
    """
    kept, places = positions.unique(return_inverse=True)
    # a list: a tensor would have to lie on the device of the last layer
    logits = model(**inputs, use_cache=False, logits_to_keep=kept.tolist()).logits
    return logits, places


def log_probabilities(logits: Tensor) -> Tensor:
    """Turn logits (…, vocabulary) into log-probabilities, in at least float32; refuse NaN."""
    log_p = at_least_float32(logits).log_softmax(-1)
    check_probabilities(log_p)
    return log_p


def divergence(log_p: Tensor, batch: PairBatch) -> Tensor:
    """Compute the Jensen–Shannon divergence of the pairs of a batch, in nats, shape (pairs,)."""
    log_a, log_b = log_p[batch.rows_a], log_p[batch.rows_b]  # (pairs, vocabulary)
    log_m = torch.logaddexp(log_a, log_b) - math.log(2)
    # a token that is left out is −inf in all three, and −inf − (−inf) is NaN
    term_a = log_a.exp() * (log_a - log_m).nan_to_num(0)
    term_b = log_b.exp() * (log_b - log_m).nan_to_num(0)
    return (term_a + term_b).sum(-1).div(2).clamp(min=0)


def check_probabilities(numbers: Tensor) -> None:
    """Raise a ValueError if a NaN stands among next-token probabilities or what is made of them."""
    if numbers.isnan().any():
        raise ValueError("model: its next-token probabilities are not finite; look for NaN weights")


def single_token_ids(tokenizer: PreTrainedTokenizerBase, words: Sequence[str]) -> list[int]:
    """Return the tokens that are a whole word, with or without a capital and a space before it."""
    tokens = set()
    for word in words:
        for form in (word, word.capitalize(), f" {word}", f" {word.capitalize()}"):
            ids = tokenizer(form, add_special_tokens=False).input_ids
            if len(ids) == 1:
                tokens.add(ids[0])
    return sorted(tokens)


def tokens_to_leave_out(tokenizer: PreTrainedTokenizerBase, words: Sequence[str]) -> list[int]:
    """Return the tokens of words, each of which must be one token in some form."""
    if isinstance(words, str) or not isinstance(words, Iterable):
        got = f"one string {words!r} (put it in a list)" if isinstance(words, str) else repr(words)
        raise TypeError(f"leave_out: expected a list of words; got {got}")
    words = list(words)
    for word in words:
        if not isinstance(word, str) or not word.strip() or not single_token_ids(tokenizer, [word]):
            raise ValueError(
                "leave_out: expected words that are one token each, with or without a capital or a "
                f"space before them, since only these can be left out; got {word!r}"
            )
    return single_token_ids(tokenizer, words)


def leave_out_tokens(log_p: Tensor, tokens: Sequence[int]) -> Tensor:
    """Leave tokens out of distributions (prompts, vocabulary); the rest sum to 1 again."""
    if not tokens:
        return log_p
    columns = torch.tensor(tokens, device=log_p.device)
    return log_p.index_fill(1, columns, -math.inf).log_softmax(-1)


def text_windows(
    tokenizer: PreTrainedTokenizerBase, text: str, size: int, *, longest: float = math.inf
) -> list[list[int]]:
    """Cut a text into windows of `size` tokens without overlap; the last one may be shorter.

    BOS stands before each window, where the tokenizer adds one. `size` does not count it, but no
    window is longer than `longest` with it.
    """
    check_tokenizer(tokenizer)
    check_string("text", text)
    ids = tokenizer(text, add_special_tokens=False, verbose=False).input_ids
    if len(ids) < 2:
        raise ValueError(f"text: expected at least two tokens; got {len(ids)}")
    first = tokenizer("a").input_ids[0]
    bos = [first] if first == tokenizer.bos_token_id else []
    size = min(size, longest - len(bos))
    return [bos + ids[start : start + size] for start in range(0, len(ids), size)]


def count_scored(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str) -> int:
    """Count the tokens of a text that `token_losses` has a loss for."""
    windows = text_windows(tokenizer, text, WINDOW, longest=context_length(model))
    return sum(len(ids) - 1 for ids in windows)


def text_chunks(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    size: int = 256,
    *,
    logits: bool = True,
    slopes: bool = False,
) -> list[list[int]]:
    """Cut a text into windows of one size, without an incomplete one at its end.

    They have `size` tokens (BOS not counted), or as many as the model reads. A text of fewer
    tokens is one chunk. There must be memory to read one of them, with its `logits`, and with a
    backward pass (`slopes`).
    """
    windows = text_windows(tokenizer, text, size, longest=context_length(model))
    length = len(windows[0])
    check_ready(model, longest=length, prompts=windows)
    places = length if logits else 0
    check_memory(model, [(1, length, places)], slopes=slopes)
    return [window for window in windows if len(window) == len(windows[0])]


def chunk_loss(model: PreTrainedModel, chunk: list[int]) -> Tensor:
    """Compute the mean next-token cross-entropy of a chunk, in at least float32."""
    tokens = torch.tensor([chunk], device=input_device(model))  # (1, tokens)
    logits = model(input_ids=tokens, use_cache=False).logits[0, :-1]  # (tokens - 1, vocabulary)
    return nn.functional.cross_entropy(at_least_float32(logits), tokens[0, 1:])


def perplexity(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str, *, window: int = WINDOW
) -> float:
    """Compute the perplexity of a text: `exp` of the mean of `token_losses`.

    Parameters
    ----------
    text : str
        Plain prose of at least two tokens.
    window : int
        How many tokens the model reads at once, 2 or more; without overlap.

    Returns
    -------
    float
        1: every token foreseen; the size of the vocabulary: a model that guesses evenly. Comparable
        only between models with one tokenizer, on one text and window.

    Raises
    ------
    ValueError
        As `token_losses`.
    """
    return token_losses(model, tokenizer, text, window=window).mean().exp().item()


def token_losses(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str, *, window: int = WINDOW
) -> Tensor:
    """Compute `−ln p(token | those before it in its window)` of the tokens of a text.

    The text is tokenised as a whole and cut into windows of `window` tokens, or of as many as the
    model reads, without overlap (BOS stands before each, where the tokenizer adds one). The first
    token of a window has nothing before it and is left out, unless BOS is there.

    Returns
    -------
    Tensor
        One value a scored token, in nats, 0 or more, float32 (float64 for a float64 model) on the
        CPU.

    Raises
    ------
    ValueError
        A text of fewer than two tokens, a window below 2, or losses that are not finite.
    """
    return losses_by_scale(model, tokenizer, text, window=window, scales=(1.0,))[:, 0]


@full_precision()
def losses_by_scale(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    *,
    window: int,
    scales: Sequence[float],
) -> Tensor:
    """Compute the token losses with all logits multiplied by each scale; (tokens, scales)."""
    window = check_whole("window", window, 2)
    windows = text_windows(tokenizer, text, window, longest=context_length(model))
    check_ready(model, longest=max(len(ids) for ids in windows), prompts=windows)
    scored = [ids for ids in windows if len(ids) > 1]  # one token has nothing before it
    losses = []
    for ids in progress(scored, desc="perplexity", unit="window"):
        tokens = torch.tensor([ids], device=input_device(model))  # (1, tokens)
        losses.append(_window_losses(model, tokens, scales, batch_size=len(ids)))
    table = torch.cat(losses)
    if not torch.isfinite(table).all():
        raise ValueError("model: its losses are not finite; look for NaN weights")
    return table


@halving(1, "tokens' logits")
@torch.no_grad()
def _window_losses(
    model: PreTrainedModel, tokens: Tensor, scales: Sequence[float], batch_size: int
) -> Tensor:
    """Compute the losses of a window, (1, tokens); `batch_size` logits of it are held at once."""
    length = tokens.shape[1]
    check_memory(model, [(1, length, min(batch_size, length))])
    if batch_size >= tokens.shape[1]:
        logits = model(input_ids=tokens, use_cache=False).logits[0, :-1]
        return _scaled_losses(at_least_float32(logits), tokens[0, 1:], scales).cpu()
    losses = []
    for some in torch.arange(tokens.shape[1] - 1, device=tokens.device).split(batch_size):
        logits, _ = logits_at(model, some, {"input_ids": tokens})  # (1, tokens, vocabulary)
        targets = tokens[0, some + 1]
        losses.append(_scaled_losses(at_least_float32(logits[0]), targets, scales).cpu())
    return torch.cat(losses)


def _scaled_losses(logits: Tensor, targets: Tensor, scales: Sequence[float]) -> Tensor:
    """Compute the cross-entropy of targets with scaled logits, shape (tokens, scales)."""
    losses = []
    # a few tokens at a time: their logits stay in the processor's cache, which is three times as
    # fast as all of them scale by scale
    for some, of_some in zip(logits.split(16), targets.split(16), strict=True):
        # some: (16 tokens, vocabulary)
        target_logits = some.gather(1, of_some[:, None])[:, 0]  # (16 tokens,)
        columns = []
        for scale in scales:
            columns.append(torch.logsumexp(some * scale, 1) - target_logits * scale)
        losses.append(torch.stack(columns, 1))
    return torch.cat(losses)


@contextmanager
def layer_inputs(layers: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """Collect what enters the layers in every forward pass inside the block.

    Each has the shape (rows, tokens, hidden).
    """
    collected: list[Tensor] = []

    def collect(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        collected.append(inputs[0])

    with undoing() as undo:
        for layer in layers:
            undo.append(layer.register_forward_pre_hook(collect).remove)
        yield collected


@contextmanager
def skipping(below: Sequence[nn.Module], hidden: Tensor) -> Iterator[None]:
    """Skip layers whose result is known: inside the block each of them returns `hidden`."""

    def return_hidden(*args: object, **kwargs: object) -> Tensor:
        return hidden

    # most layers have no `forward` of their own and use that of their class
    own_forwards = {layer: vars(layer).get("forward") for layer in below}

    def give_back() -> None:
        for layer, forward in own_forwards.items():
            if forward is None:  # it may not have got one yet, where a stop came early
                vars(layer).pop("forward", None)
            else:
                layer.forward = forward

    with undoing() as undo:
        undo.append(give_back)
        for layer in own_forwards:
            layer.forward = return_hidden
        yield
