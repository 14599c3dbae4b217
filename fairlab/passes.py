"""Run prompts and texts through a model: batches of pairs, windows of text, log-probabilities,
losses, divergence.

Contents: `pair_batches`, `next_log_p`, `divergence` (of pairs); `text_chunks`, `chunk_loss`,
`token_losses`, `perplexity` (of texts); `full_precision`, `check_ready` and other conditions under
which everything is measured.
"""

import math
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Literal
from unittest.mock import patch

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fairlab.pairs import PromptPair, as_pairs, encode_pair

# shows itself only where the work takes over 2 s; in notebooks tqdm does not heed its own variable
progress = partial(tqdm, delay=2, leave=False, disable=os.environ.get("TQDM_DISABLE") == "1")


@contextmanager
def full_precision() -> Iterator[None]:
    """Keep torch from rounding float32 products to TF32 or bfloat16 inside the block, whatever the
    user has set.

    Also a decorator: everything that measures runs under it. Autocast is off, too.
    """
    switches = [
        (torch.backends.cudnn, "allow_tf32", False)
    ]  # (where, name, the value that rounds nothing)
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


def check_option(argument: str, value: str, allowed: Sequence[str]) -> None:
    """Raise a ValueError that names the argument, what is allowed and what came."""
    if value not in allowed:
        raise ValueError(f"{argument}: expected one of {', '.join(allowed)}; got {value!r}")


def check_ready(model: PreTrainedModel, *, longest: int) -> None:
    """Raise a ValueError if a model is in training mode, or can't read as many tokens as the
    longest input has."""
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


def pair_batches(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[PromptPair],
    *,
    positions: Literal["differing", "all"] = "differing",
    batch_size: int = 32,
) -> Iterator[PairBatch]:
    """Yield batches of unique prompts, shortest first, such that both prompts of a pair are in one
    batch.

    A prompt that several pairs share is run once, unless more than `batch_size` prompts hang
    together through shared ones. In half precision each pair is a batch of its own: what a prompt's
    neighbours in a batch change by rounding would be as large as what is measured. All input is
    checked before the first batch.
    """
    check_option("positions", positions, ("differing", "all"))
    if not isinstance(batch_size, int) or batch_size < 2:
        raise ValueError(
            f"batch_size: expected a whole number of at least 2 (a pair); got {batch_size!r}"
        )
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
        firsts = torch.tensor(
            [encoded[index][2] if positions == "differing" else 0 for index in members]
        )
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
            weights=weights[:, int(firsts.min()) :].to(
                device, torch.promote_types(model.dtype, torch.float32)
            ),
        )


def _group(
    prompts: list[tuple[tuple[int, ...], tuple[int, ...]]], batch_size: int
) -> list[list[int]]:
    """Split pair numbers into batches of at most `batch_size` unique prompts; pairs that share one
    stay together."""
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


def next_log_p(model: PreTrainedModel, batch: PairBatch) -> Tensor:
    """Compute the next-token log-probabilities of the prompts of a batch in at least float32, with
    gradients if these are enabled; shape (prompts, vocabulary)."""
    places, column = batch.last.unique(return_inverse=True)
    inputs = {
        "input_ids": batch.input_ids,
        "attention_mask": batch.attention_mask,
        "use_cache": False,
    }
    logits = model(**inputs, logits_to_keep=places).logits[torch.arange(len(column)), column.cpu()]
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)


def divergence(log_p: Tensor, batch: PairBatch) -> Tensor:
    """Compute the Jensen–Shannon divergence of the pairs of a batch from its prompts'
    log-probabilities."""
    log_a, log_b = log_p[batch.rows_a], log_p[batch.rows_b]
    log_m = torch.logaddexp(log_a, log_b) - math.log(2)
    terms = [
        log.exp() * (log - log_m).nan_to_num(0) for log in (log_a, log_b)
    ]  # a token left out is −inf in all
    return (terms[0] + terms[1]).sum(-1).div(2).clamp(min=0)


def token_ids(tokenizer: PreTrainedTokenizerBase, words: Sequence[str]) -> list[int]:
    """Return the tokens that stand for the words alone, with and without a space before them and a
    capital."""
    if isinstance(words, str):
        raise TypeError(
            f"leave_out: expected a list of words; got one string {words!r} (put it in a list)"
        )
    forms = {
        form
        for word in words
        for form in (word, word.capitalize(), f" {word}", f" {word.capitalize()}")
    }
    encoded = [tokenizer(form, add_special_tokens=False).input_ids for form in sorted(forms)]
    return sorted({ids[0] for ids in encoded if len(ids) == 1})


def without(log_p: Tensor, left_out: Sequence[int]) -> Tensor:
    """Leave tokens out of distributions and scale what is left to sum to 1."""
    if not left_out:
        return log_p
    return log_p.index_fill(1, torch.tensor(left_out, device=log_p.device), -math.inf).log_softmax(
        -1
    )


def text_chunks(tokenizer: PreTrainedTokenizerBase, text: str, size: int = 256) -> list[list[int]]:
    """Cut a text into chunks of tokens of one size, BOS before each where the tokenizer adds
    one."""
    ids = tokenizer(text, add_special_tokens=False, verbose=False).input_ids
    if len(ids) < 2:
        raise ValueError(f"text: expected at least two tokens; got {len(ids)}")
    first = tokenizer("a").input_ids[0]
    bos = [first] if first == tokenizer.bos_token_id else []
    return [
        bos + ids[start : start + size] for start in range(0, max(len(ids) - size, 0) + 1, size)
    ]


def chunk_loss(model: PreTrainedModel, chunk: list[int]) -> Tensor:
    """Compute the mean next-token cross-entropy of a chunk in at least float32, with gradients if
    these are enabled."""
    tokens = torch.tensor([chunk], device=model.device)
    logits = model(input_ids=tokens, use_cache=False).logits[0, :-1]
    return nn.functional.cross_entropy(
        logits.to(torch.promote_types(logits.dtype, torch.float32)), tokens[0, 1:]
    )


def perplexity(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str, *, window: int = 512
) -> float:
    """Compute the perplexity of a text: `exp` of the mean of `token_losses`.

    Returns
    -------
    float
        From 1 (every token foreseen) upwards; the size of the vocabulary for a model that guesses
        evenly. Comparable only between models with one tokenizer, on one text and window.

    Raises
    ------
    ValueError
        As `token_losses`.
    """
    return token_losses(model, tokenizer, text, window=window).mean().exp().item()


def token_losses(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str, *, window: int = 512
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
    """Return the token losses with all logits multiplied by each of `scales`, shape (tokens,
    scales)."""
    if not isinstance(window, int) or window < 2:
        raise ValueError(f"window: expected a whole number of at least 2; got {window!r}")
    ids = tokenizer(text, add_special_tokens=False, verbose=False).input_ids
    if len(ids) < 2:
        raise ValueError(f"text: expected at least two tokens; got {len(ids)}")
    first = tokenizer("a").input_ids[0]
    bos = [first] if first == tokenizer.bos_token_id else []
    window = min(window, context_length(model) - len(bos))
    pieces = [bos + ids[start : start + window] for start in range(0, len(ids), window)]
    check_ready(model, longest=max(map(len, pieces)))
    losses = []
    for piece in progress(
        [piece for piece in pieces if len(piece) > 1], desc="perplexity", unit="window"
    ):
        tokens = torch.tensor([piece], device=model.device)
        with torch.no_grad():
            logits = model(input_ids=tokens, use_cache=False).logits[0, :-1]
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        target = logits.gather(1, tokens[0, 1:, None])[:, 0]
        by_scale = [
            torch.logsumexp(logits * scale if scale != 1 else logits, 1) - target * scale
            for scale in scales
        ]
        losses.append(torch.stack(by_scale, 1).cpu())
    result = torch.cat(losses)
    if not torch.isfinite(result).all():
        raise ValueError("model: its losses are not finite; look for NaN weights")
    return result


@contextmanager
def skipping(below: Sequence[nn.Module], hidden: Tensor) -> Iterator[None]:
    """Skip layers whose result is known: inside the block each of them returns it."""
    with ExitStack() as stack:
        for layer in below:
            stack.enter_context(patch.object(layer, "forward", lambda *_, **__: hidden))
        yield
