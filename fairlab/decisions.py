"""Who is treated worse: how much higher the odds of a harsh outcome are for one of two groups.

Contents: `decision_gap`; `check_outcomes`, before a model loads; `summarize_decisions`, its means
with intervals; `decision_batches` and `decisions`, which scores and comparisons use.

The Jensen–Shannon gap says that two predictions differ, not in whose favour. Here each sentence has
two short lists of continuations, a harsher and a kinder outcome for the person it is about.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fairlab.models import input_device
from fairlab.pairs import (
    Outcomes,
    PromptPair,
    as_pairs,
    check_kind,
    encode_pair,
    load_outcomes,
    prompt_ids,
)
from fairlab.passes import (
    check_batch_size,
    check_memory,
    check_ready,
    halving,
    is_half,
    log_probabilities,
    logits_at,
    precise_dtype,
    progress,
)
from fairlab.precision import full_precision
from fairlab.statistics import jackknife_interval

Tokens = tuple[int, ...]


@full_precision()
@halving(2)
def decision_gap(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[PromptPair],
    *,
    outcomes: Mapping[str, Outcomes] | None = None,
    batch_size: int = 32,
) -> Tensor:
    """Compute for each pair how much the odds of a harsh outcome differ between its two prompts.

    ::

        log-odds(prompt) = ln mean p(harsher | prompt) − ln mean p(kinder | prompt)
        gap = log-odds(prompt a) − log-odds(prompt b)

    The means are over the continuations of each list; p of a continuation is the product over its
    tokens.

    Parameters
    ----------
    outcomes : dict of str to Outcomes, optional
        Template → its two lists, `load_outcomes()` by default.

    Returns
    -------
    Tensor
        Float32 on the CPU (float64 for a float64 model), shape (pairs,), in nats, of either sign.
        Positive: the odds of the harsher outcome are higher for the first word, the group that the
        stereotype targets. 0: they are the same for both. 0.1 is odds that are 10.5 % higher. It
        depends on the continuations that were written, so read it beside neutral pairs.

    Raises
    ------
    ValueError
        No pairs, a pair that is not measurable (`check_pairs`) or whose template has no outcomes,
        or a continuation that the tokenizer merges with the end of the prompt.

    Notes
    -----
    The two prompts of a pair may differ in their number of tokens; see `next_token_divergence`.

    In half precision, on the default model and 126 pairs with gaps of 0.31 nats on average (their
    size, without the sign), float16 errs by 0.01 a pair (root mean square; at most 0.03) and turns
    no sign, bfloat16 by 0.08 (at most 0.24) and turns the sign of 8 pairs
    (`experiments/precision.py`).

    Examples
    --------
    Answers of your own, a list or one on each side (the blank before them is put there, except at
    the start of a line):

    >>> template = "The {} applicant asked for a loan. The bank will"
    >>> pairs = build_pairs([template], [("Black", "white"), ("poor", "rich")])
    >>> outcomes = {template: Outcomes(harsher=("deny", "refuse"), kinder=("approve", "grant"))}
    >>> decision_gap(model, tokenizer, pairs, outcomes=outcomes)

    Those of a file with the columns harsher and kinder are `check_file("mine.csv").outcomes`.
    """
    pairs = as_pairs(pairs)
    gaps = torch.zeros(len(pairs), dtype=precise_dtype(model))
    for batch in decision_batches(model, tokenizer, pairs, outcomes, batch_size=batch_size):
        with torch.no_grad():
            gaps[batch.pairs] = decisions(model, batch).cpu().to(gaps.dtype)
    return gaps


def check_are_outcomes(outcomes: object) -> None:
    """Refuse what is no dict of `Outcomes`."""
    expected = "a dict of Outcomes by template"
    check_kind("outcomes", outcomes, Mapping, expected)
    for lists in outcomes.values():
        check_kind("outcomes", lists, Outcomes, expected)


def check_outcomes(
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[PromptPair],
    outcomes: Mapping[str, Outcomes],
) -> None:
    """Refuse what `decision_gap` would refuse, without a model.

    Pairs that are not measurable, or an answer that the tokenizer merges with the end of a prompt.
    Sentences without answers pass.
    """
    for pair in as_pairs(pairs):
        if pair.template in outcomes:
            _encoded_lists(tokenizer, pair, outcomes)


def summarize_decisions(
    pairs: Sequence[PromptPair], gaps: Tensor | Sequence[float]
) -> pd.DataFrame:
    """Average the decision gaps of each category, with intervals.

    Parameters
    ----------
    gaps : Tensor or list of float
        What `decision_gap` returned for these pairs.

    Returns
    -------
    pandas.DataFrame
        One row a category, in the order of the pairs: `category`, `gap` (mean, nats), `low`, `high`
        (95 % interval, `jackknife_interval` over templates and over word pairs, where there are two
        or more; NaN with one template), `pairs`, `templates`, `words`.

    Raises
    ------
    ValueError
        As many gaps as pairs are needed.
    """
    pairs = as_pairs(pairs)
    try:
        values = np.asarray(gaps, dtype=float)
    except (TypeError, ValueError) as error:
        raise TypeError(f"gaps: expected a list of numbers; got {gaps!r:.80}") from error
    if values.shape != (len(pairs),):
        raise ValueError(f"gaps: expected one of each of {len(pairs)} pairs; got {values.shape}")
    facts = pd.DataFrame(
        {
            "category": [pair.category for pair in pairs],
            "template": [pair.template for pair in pairs],
            "words": [f"{pair.attribute_a} / {pair.attribute_b}" for pair in pairs],
            "gap": values,
        }
    )
    rows = []
    for category, group in facts.groupby("category", sort=False):
        columns = np.stack([group.gap, np.ones(len(group))], 1)
        labels = [group.template.to_numpy(), group.words.to_numpy()]
        low, high = jackknife_interval(columns, lambda sums: sums[:, 0] / sums[:, 1], labels)
        rows.append(
            {
                "category": category,
                "gap": group.gap.mean(),
                "low": low,
                "high": high,
                "pairs": len(group),
                "templates": group.template.nunique(),
                "words": group.words.nunique(),
            }
        )
    return pd.DataFrame(rows)


@dataclass(frozen=True)
class NextTokens:
    """The first and only tokens of a pair's continuations: how both prompts may go on."""

    harsher: list[int]
    kinder: list[int]

    def gap(self, log_p_a: Tensor, log_p_b: Tensor) -> Tensor:
        """Compute the decision gap from the two next-token log-probabilities, (vocabulary,)."""
        odds_a = log_odds(log_p_a[self.harsher], log_p_a[self.kinder])
        return odds_a - log_odds(log_p_b[self.harsher], log_p_b[self.kinder])


def log_odds(harsher: Tensor, kinder: Tensor) -> Tensor:
    """Compute `ln mean p(harsher) − ln mean p(kinder)` from log-probabilities.

    Both have the shape (continuations,).
    """
    # ln mean p = ln Σ p − ln n
    log_mean_harsher = harsher.logsumexp(0) - math.log(len(harsher))
    return log_mean_harsher - kinder.logsumexp(0) + math.log(len(kinder))


def next_tokens(
    tokenizer: PreTrainedTokenizerBase, pair: PromptPair, outcomes: Mapping[str, Outcomes]
) -> NextTokens | None:
    """Return the continuations of a pair as single tokens, None if one of them is longer.

    Then the next token does not settle the decision gap.
    """
    lists = []
    for encoded in _encoded_lists(tokenizer, pair, outcomes):
        lists.append([])
        for _, continuation in encoded:
            if len(continuation) > 1:
                return None
            lists[-1].append(continuation[0])
    harsher, kinder = lists[:2]  # prompt b has the same
    return NextTokens(harsher, kinder)


@dataclass(frozen=True)
class DecisionBatch:
    """Prompts with the beginnings of their continuations, and where to read which token.

    Attributes
    ----------
    input_ids, attention_mask : Tensors of shape (rows, tokens)
        A prompt with all but the last token of a continuation, or a prompt alone where each
        continuation is one token; padded on the right.
    rows, positions, targets : Tensors of shape (steps,)
        Token `targets` is predicted at `positions` of `rows`.
    continuation_of : Tensor of shape (steps,)
        Which continuation this token belongs to.
    sizes : list of int
        How many continuations each list has: of each pair prompt a harsher, a kinder, b harsher, b
        kinder.
    pairs : Tensor of shape (pairs,), on the CPU
        Index of each pair in the caller's list.
    """

    input_ids: Tensor
    attention_mask: Tensor
    rows: Tensor
    positions: Tensor
    targets: Tensor
    continuation_of: Tensor
    sizes: list[int]
    pairs: Tensor


def decisions(model: PreTrainedModel, batch: DecisionBatch) -> Tensor:
    """Compute the decision gaps of a batch, in nats, shape (pairs,).

    They have gradients, if these are enabled.
    """
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    logits, places = logits_at(model, batch.positions, inputs)
    log_p = log_probabilities(logits[batch.rows, places])  # (steps, vocabulary)
    of_tokens = log_p.gather(1, batch.targets[:, None])[:, 0]  # (steps,)
    # of a continuation: the sum over its tokens
    zeros = of_tokens.new_zeros(sum(batch.sizes))
    of_continuations = zeros.index_add(0, batch.continuation_of, of_tokens)
    lists = of_continuations.split(batch.sizes)
    gaps = []
    for start in range(0, len(lists), 4):  # four lists a pair
        a_harsher, a_kinder, b_harsher, b_kinder = lists[start : start + 4]
        gaps.append(log_odds(a_harsher, a_kinder) - log_odds(b_harsher, b_kinder))
    return torch.stack(gaps)


def decision_batches(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[PromptPair],
    outcomes: Mapping[str, Outcomes] | None = None,
    *,
    batch_size: int = 32,
    slopes: bool = False,
) -> Iterator[DecisionBatch]:
    """Yield batches of at most `batch_size` rows, shortest prompts first.

    One pair at a time in half precision, or where a pair needs more rows. All input is checked
    before the first batch, and so is the memory, that of a backward pass included with `slopes`.
    """
    batch_size = check_batch_size(batch_size)
    outcomes = load_outcomes() if outcomes is None else outcomes
    check_are_outcomes(outcomes)
    encoded = [_encoded_lists(tokenizer, pair, outcomes) for pair in as_pairs(pairs)]
    rows = [_rows_of(lists) for lists in encoded]
    longest = [max(map(len, of_pair)) for of_pair in rows]  # of each pair its longest row
    whole = []  # prompts with their continuations
    for lists in encoded:
        whole += [start + continuation for start, continuation in chain.from_iterable(lists)]
    check_ready(model, longest=max(longest), prompts=whole)
    if is_half(model):
        batches = [[index] for index in range(len(encoded))]
    else:
        batches = [[]]
        size = 0  # rows of the last batch
        for index in sorted(range(len(rows)), key=longest.__getitem__):
            if batches[-1] and size + len(rows[index]) > batch_size:
                batches.append([])
                size = 0
            batches[-1].append(index)
            size += len(rows[index])
    sizes = [_size_of(indices, rows, encoded) for indices in batches]
    check_memory(model, sizes, slopes=slopes)
    for indices in progress(batches, desc="decisions", unit="batch"):
        yield _decision_batch(model, indices, encoded)


# of one list: each continuation as (tokens of the prompt, tokens of the continuation)
List = list[tuple[Tokens, Tokens]]


def _encoded_lists(
    tokenizer: PreTrainedTokenizerBase, pair: PromptPair, outcomes: Mapping[str, Outcomes]
) -> list[List]:
    """Return the four lists of a pair: prompt a harsher, a kinder, b harsher, b kinder."""
    if pair.template not in outcomes:
        raise ValueError(
            f"outcomes: expected a harsher and a kinder list for every template; "
            f"none for {pair.template!r}"
        )
    encode_pair(tokenizer, pair, aligned=False)  # refuses a pair that is not measurable
    of_template = outcomes[pair.template]
    lists = []
    for prompt in (pair.prompt_a, pair.prompt_b):
        start = tuple(prompt_ids(tokenizer, prompt))
        blank = "" if prompt[-1:].isspace() else " "  # none at the start of a line
        for continuations in (of_template.harsher, of_template.kinder):
            encoded = []
            for continuation in continuations:
                whole = tuple(prompt_ids(tokenizer, f"{prompt}{blank}{continuation}"))
                if whole[: len(start)] != start or len(whole) == len(start):
                    raise ValueError(
                        f"outcomes: the tokenizer merges {continuation!r} with {prompt!r}"
                    )
                encoded.append((start, whole[len(start) :]))
            lists.append(encoded)
    return lists


def _rows_of(lists: list[List]) -> list[Tokens]:
    """Return the different rows that a pair needs: prompts with all but the last token of a
    continuation.

    What another row begins with is no row of its own: its tokens are predicted there as well.
    """
    beginnings = {}  # in place of a set, which has no order
    for encoded in lists:
        for start, continuation in encoded:
            beginnings[start + continuation[:-1]] = None
    rows = []
    for beginning in sorted(beginnings, key=len, reverse=True):
        if not any(_begins_with(row, beginning) for row in rows):
            rows.append(beginning)
    return rows


def _begins_with(row: Tokens, beginning: Tokens) -> bool:
    """Say whether the first tokens of a row are these."""
    return row[: len(beginning)] == beginning


def _size_of(
    indices: list[int], rows: list[list[Tokens]], encoded: list[list[List]]
) -> tuple[int, int, int]:
    """Return the rows of a batch, its longest row, and where in each row there are logits."""
    different, places, steps = set(), set(), 0
    for index in indices:
        different.update(rows[index])
        for start, continuation in chain.from_iterable(encoded[index]):
            first = len(start) - 1  # the last token of the prompt predicts the first one behind it
            places.update(range(first, first + len(continuation)))
            steps += len(continuation)
    # several continuations may read the same logits, and each has log-probabilities of its own
    most = max(len(places), steps // len(different))
    return len(different), max(map(len, different)), most


def _decision_batch(
    model: PreTrainedModel, indices: list[int], encoded: list[list[List]]
) -> DecisionBatch:
    """Make one batch of the pairs with these indices."""
    row_of: dict[Tokens, int] = {}
    steps: list[tuple[int, int, int, int]] = []  # row, position, target, continuation
    sizes, count = [], 0
    for index in indices:
        of_pair = _rows_of(encoded[index])
        for continuations in encoded[index]:
            sizes.append(len(continuations))
            for start, continuation in continuations:
                beginning = start + continuation[:-1]
                whole = next(row for row in of_pair if _begins_with(row, beginning))
                row = row_of.setdefault(whole, len(row_of))
                for offset, token in enumerate(continuation):
                    steps.append((row, len(start) - 1 + offset, token, count))
                count += 1
    rows = [torch.tensor(row) for row in row_of]
    lengths = torch.tensor([len(row) for row in row_of])  # (rows,)
    input_ids = nn.utils.rnn.pad_sequence(rows, batch_first=True)  # with zeros
    mask = torch.arange(input_ids.shape[1]) < lengths[:, None]  # (rows, tokens)
    device = input_device(model)
    step_rows, positions, targets, continuation_of = torch.tensor(steps, device=device).unbind(1)
    return DecisionBatch(
        input_ids=input_ids.to(device),
        attention_mask=mask.long().to(device),
        rows=step_rows,
        positions=positions,
        targets=targets,
        continuation_of=continuation_of,
        sizes=sizes,
        pairs=torch.tensor(indices),
    )
