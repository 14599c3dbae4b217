"""Log-probabilities of continuations, with no more rows and logits than these need.

Contents: `log_likelihoods`, `start_token`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fairlab.models import input_device
from fairlab.passes import (
    check_memory,
    check_ready,
    halving,
    log_probabilities,
    logits_at,
    progress,
)

Request = tuple[tuple[int, ...], tuple[int, ...]]  # tokens of a context, and of its continuation


@dataclass
class Row:
    """The tokens of one row of a batch, and where the continuations in it are predicted."""

    tokens: list[int]
    positions: list[int]  # of each token: its place in the text
    branches: list[int]  # of each token: 0 in the context, else the number of its continuation
    spans: list[tuple[Request, list[int]]] = field(default_factory=list)  # and its columns


@halving(1, "texts")
def log_likelihoods(
    model: PreTrainedModel,
    requests: Sequence[tuple[Sequence[int], Sequence[int]]],
    batch_size: int,
    *,
    max_length: int,
    side_by_side: bool = False,
) -> list[tuple[float, bool]]:
    """Compute the log-probability of continuations, and whether each is what the model would write.

    Parameters
    ----------
    requests : list of (context, continuation)
        Their tokens.
    batch_size : int
        Rows in a forward pass.
    max_length : int
        How many tokens a row may have; longer ones are cut on the left, but not side by side:
        there the caller sees to it that context and continuation fit.
    side_by_side : bool
        One row a context, with all of its continuations behind it. By default one row a
        continuation (those of one token after the same context share theirs).

    Returns
    -------
    list of (float, bool)
        One a request: log p(continuation | context) in nats, summed over tokens, and whether each
        of its tokens is the likeliest.
    """
    requests = [(tuple(context), tuple(continuation)) for context, continuation in requests]
    unique = list(dict.fromkeys(requests))
    check_ready(model, longest=0, prompts=map(chain.from_iterable, unique))
    rows = _rows_of(unique, max_length, side_by_side)
    # long rows first: a lack of memory shows at once
    rows.sort(key=lambda row: len(row.tokens), reverse=True)
    batches = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
    check_memory(model, map(_size_of, batches))
    results = {}
    for batch in progress(batches, desc="benchmark", unit="batch"):
        results.update(_score_batch(model, batch))
    return [results[request] for request in requests]


def start_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return what stands before a text without context: `<|endoftext|>`, else BOS, else EOS."""
    known = tokenizer.get_vocab().get("<|endoftext|>")
    options = (known, tokenizer.bos_token_id, tokenizer.eos_token_id)
    return next(token for token in options if token is not None)


def _rows_of(requests: Sequence[Request], max_length: int, side_by_side: bool) -> list[Row]:
    """Make one row for all requests that begin with the same tokens."""
    rows: dict[tuple[int, ...], Row] = {}
    for context, continuation in requests:
        # the last token is predicted, but predicts nothing that is asked
        start, branch = (context + continuation[:-1])[-max_length:], ()
        if side_by_side:
            start, branch = context, continuation[:-1]
        end = len(start)
        if start not in rows:
            rows[start] = Row(list(start), positions=list(range(end)), branches=[0] * end)
        row = rows[start]
        # what predicts the continuation: the last tokens of the start, then those of the branch
        columns = list(range(end - len(continuation) + len(branch), end))
        columns += range(len(row.tokens), len(row.tokens) + len(branch))
        row.spans.append(((context, continuation), columns))
        row.tokens += branch
        row.positions += range(end, end + len(branch))  # as if it stood there alone
        row.branches += [len(row.spans)] * len(branch)
    return list(rows.values())


def _size_of(rows: Sequence[Row]) -> tuple[int, int, int]:
    """Return what `check_memory` asks of a batch whose longest row comes first."""
    columns: set[int] = set()
    for row in rows:
        for _, span in row.spans:
            columns.update(span)
    return len(rows), len(rows[0].tokens), len(columns)


@torch.no_grad()
def _score_batch(model: PreTrainedModel, rows: Sequence[Row]) -> dict[Request, tuple[float, bool]]:
    """Run some rows through the model and return the result of each request in them."""
    # (rows, tokens); padding stands on the right, where no token sees it
    inputs = {"input_ids": _padded([row.tokens for row in rows])}
    branches = _padded([row.branches for row in rows])
    if branches.any():
        inputs["attention_mask"] = _branch_mask(branches, model.dtype)
        inputs["position_ids"] = _padded([row.positions for row in rows])
    device = input_device(model)
    inputs = {name: tensor.to(device) for name, tensor in inputs.items()}

    # logits only of the columns that predict something asked: those of a context are not needed,
    # and would be much of the work
    columns = []
    for row in rows:
        for _, span in row.spans:
            columns += span
    logits, places = logits_at(model, torch.tensor(columns, device=device), inputs)

    results, start = {}, 0
    for row, row_logits in zip(rows, logits, strict=True):
        for request, span in row.spans:
            end = start + len(span)
            results[request] = _score(row_logits[places[start:end]], request[1])
            start = end
    return results


def _score(logits: Tensor, tokens: Sequence[int]) -> tuple[float, bool]:
    """Return the log-probability of tokens, and whether each is the likeliest."""
    log_p = log_probabilities(logits)  # (tokens, vocabulary)
    tokens = torch.tensor(tokens, device=logits.device)
    total = log_p.gather(1, tokens[:, None]).cpu().double().sum().item()
    return total, bool((log_p.argmax(-1) == tokens).all())


def _padded(rows: Sequence[Sequence[int]]) -> Tensor:
    """Return rows of numbers as one tensor (rows, longest row), with zeros on the right."""
    return pad_sequence([torch.tensor(row) for row in rows], batch_first=True)


def _branch_mask(branches: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the mask under which a token sees the context and its own continuation so far."""
    seen, seeing = branches[:, None, :], branches[:, :, None]
    visible = ((seen == 0) | (seen == seeing)).tril()  # (rows, tokens, tokens)
    # added to the attention's scores: 0 where a token sees, the lowest number elsewhere
    mask = torch.zeros(visible.shape, dtype=dtype)
    return mask.masked_fill(~visible, torch.finfo(dtype).min)[:, None]
