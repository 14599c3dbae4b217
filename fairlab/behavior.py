"""What a model writes, and which next tokens it prefers.

Contents: `generate`, `next_token_divergence`, `top_token_shifts`, `PRONOUNS`;
`batches_of_one_length`, which needs no padding.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence

import pandas as pd
import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from fairlab.capture import run_pairs
from fairlab.models import input_device, refuse_wrapped
from fairlab.pairs import (
    PromptPair,
    as_pairs,
    check_pair,
    check_tokenizer,
    listed,
    prompt_ids,
)
from fairlab.passes import (
    PairBatch,
    check_memory,
    check_probabilities,
    check_ready,
    check_whole,
    divergence,
    halving,
    is_half,
    leave_out_tokens,
    precise_dtype,
    progress,
    tokens_to_leave_out,
)
from fairlab.precision import attribute_set_to, full_precision

PRONOUNS = ("he", "she", "him", "her", "his", "hers", "himself", "herself")


@full_precision()
@halving(1, "texts")
def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Iterable[str],
    *,
    max_length: int = 50,
    max_new_tokens: int | None = None,
    num_beams: int = 5,
    batch_size: int = 16,
) -> list[str]:
    """Continue each prompt by beam search, with the article's settings.

    No two tokens stand side by side twice in a text. There is no sampling (see
    `sample_continuations`) and no chat template (see `chat_pairs`).

    Parameters
    ----------
    prompts : list of str
        Those of the same length run together (in half precision each runs alone); none is padded.
    max_length : int
        Tokens of prompt and continuation together.
    max_new_tokens : int, optional
        Where given, `max_length` does not count: so many tokens are written after each prompt, and
        they are returned without it. For prompts from `chat_pairs`, which are long.
    num_beams : int
        How many continuations are kept in mind at each step; 1 takes the likeliest token.

    Returns
    -------
    list of str
        Prompt and continuation, or with `max_new_tokens` the continuation alone; special tokens are
        left out. One text is an anecdote: for a measure see `next_token_divergence`.

    Raises
    ------
    TypeError, ValueError
        A bare string instead of a list; an empty list; a prompt that is empty or no string, or
        leaves no room below `max_length`; a number that is no whole one of at least 1.
    """
    num_beams = check_whole("num_beams", num_beams, 1)
    batch_size = check_whole("batch_size", batch_size, 1)
    prompts, encoded = _encode_prompts(tokenizer, prompts)
    if max_new_tokens is None:
        max_length = check_whole("max_length", max_length, 2)
        _check_room(prompts, encoded, max_length)
        longest = max_length
    else:
        max_new_tokens = check_whole("max_new_tokens", max_new_tokens, 1)
        longest = max(map(len, encoded)) + max_new_tokens
    check_ready(model, longest=longest, prompts=encoded)
    if is_half(model):
        # there, rounding depends on the other prompts of a batch and would change the story
        batch_size = 1
    settings = GenerationConfig(
        do_sample=False,
        num_beams=num_beams,
        early_stopping=num_beams > 1,  # transformers warns if a single beam has this setting
        no_repeat_ngram_size=2,
        pad_token_id=_padding_for(model, tokenizer),
        bos_token_id=model.generation_config.bos_token_id,
        eos_token_id=model.generation_config.eos_token_id,
    )
    texts = [""] * len(prompts)  # batches come in another order than the prompts
    batches = batches_of_one_length(encoded, batch_size)
    # each beam is a row of its own
    sizes = [(len(indices) * num_beams, len(encoded[indices[0]]), 1) for indices in batches]
    check_memory(model, sizes)
    for indices in progress(batches, desc="texts", unit="batch"):
        ids = torch.tensor([encoded[index] for index in indices], device=input_device(model))
        begin, settings.max_length = 0, max_length  # begin: the first token that is returned
        if max_new_tokens is not None:
            begin, settings.max_length = ids.shape[1], ids.shape[1] + max_new_tokens
        # the model's own settings must not interfere: repetition penalty, suppressed tokens, …
        with attribute_set_to(model, "generation_config", settings):
            tokens = model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), logits_processor=[_refuse_nan]
            )
        for index, row in zip(indices, tokens, strict=True):
            texts[index] = tokenizer.decode(row[begin:], skip_special_tokens=True)
    return texts


def _padding_for(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return what stands behind a text that has ended: the padding, if the model knows it."""
    known, padding = len(model.get_input_embeddings().weight), tokenizer.pad_token_id
    is_known = padding is not None and padding < known
    return padding if is_known else tokenizer.eos_token_id


def _refuse_nan(ids: Tensor, scores: Tensor) -> Tensor:
    """Hand on the scores of the next tokens, and refuse NaN: a search takes any token then."""
    check_probabilities(scores)
    return scores


def _encode_prompts(
    tokenizer: PreTrainedTokenizerBase, prompts: Iterable[str]
) -> tuple[list[str], list[list[int]]]:
    """Return the prompts and the token ids of each, after refusing what is no list of prompts."""
    check_tokenizer(tokenizer)
    prompts = listed("prompts", prompts, "strings")
    for prompt in prompts:
        if not isinstance(prompt, str):
            got = f"{type(prompt).__name__} {prompt!r}"
            raise TypeError(f"prompts: expected strings; got {got}")
        if not prompt.strip():
            raise ValueError(f"prompts: expected prompts that are not empty; got {prompt!r}")
    return prompts, [prompt_ids(tokenizer, prompt) for prompt in prompts]


def _check_room(prompts: Sequence[str], encoded: list[list[int]], max_length: int) -> None:
    """Raise a ValueError if a prompt is so long that nothing can be written after it."""
    for prompt, ids in zip(prompts, encoded, strict=True):
        if len(ids) >= max_length:
            raise ValueError(
                f"max_length: {max_length} leaves no room after the {len(ids)} tokens of {prompt!r}"
            )


def batches_of_one_length(encoded: list[list[int]], batch_size: int) -> list[list[int]]:
    """Split the indices of prompts into batches in which all have the same number of tokens."""
    groups = defaultdict(list)
    for index, ids in enumerate(encoded):
        groups[len(ids)].append(index)
    batches = []
    for group in groups.values():
        for start in range(0, len(group), batch_size):
            batches.append(group[start : start + batch_size])
    return batches


@full_precision()
@halving(2)
def next_token_divergence(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[PromptPair],
    *,
    leave_out: Sequence[str] = (),
    batch_size: int = 32,
) -> Tensor:
    """Compute the gap of each pair: how far apart its two next-token distributions are.

    Jensen–Shannon divergence `JS = ½ KL(p_a‖m) + ½ KL(p_b‖m)`, `m = (p_a + p_b) / 2`, of the
    distributions after the last prompt token, from log-softmax in float32 (float64 for a float64
    model).

    Parameters
    ----------
    leave_out : list of str
        Words whose tokens are left out of both distributions, such as `PRONOUNS` for pairs of
        gender: he/she after man/woman is grammar. What is left is scaled to sum to 1.

    Returns
    -------
    Tensor
        Shape (pairs,), in nats, from 0 (the same prediction for both prompts) to ln 2 = 0.693
        (nothing in common). It also counts differences that are no harm, so read it beside neutral
        pairs.

    Raises
    ------
    TypeError, ValueError
        No pairs, a pair that is not measurable (`check_pairs`), one string in place of a list of
        words, or a word that is no single token.

    Notes
    -----
    The two prompts of a pair may differ in their number of tokens. Then part of the gap may come
    from the length alone: read it beside neutral pairs whose prompts differ in length by as much.

    In half precision the model's own rounding adds to the gap. Measured on the default model, 126
    pairs with a mean gap of 0.0099 nats: float16 errs by 0.0001 a pair (root mean square; at most
    0.0005) and by -0.3 % on average, bfloat16 by 0.001 (at most 0.004) and by +3.5 %. The batch
    size changes nothing in half precision, where each pair runs alone; in float32 it moves the last
    digits only (`experiments/precision.py`).
    """
    pairs = as_pairs(pairs)
    # (pairs,), filled batch by batch
    gaps = torch.zeros(len(pairs), dtype=precise_dtype(model))
    tokens = tokens_to_leave_out(tokenizer, leave_out)

    def note(batch: PairBatch, log_p: Tensor) -> None:
        gaps[batch.pairs] = divergence(leave_out_tokens(log_p, tokens), batch).cpu()

    run_pairs(model, tokenizer, pairs, see_next=note, aligned=False, batch_size=batch_size)
    return gaps


def top_token_shifts(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, pair: PromptPair, *, k: int = 10
) -> pd.DataFrame:
    """List the k next tokens whose probability differs most between the two prompts of a pair.

    Parameters
    ----------
    k : int
        From 1 to the size of the vocabulary.

    Returns
    -------
    pandas.DataFrame
        Columns `token`, `probability_a`, `probability_b`, `shift` (a − b, from −1 to 1; positive:
        likelier after prompt a), the largest absolute shift first.

    Raises
    ------
    ValueError
        k below 1, or a pair that is not measurable (`check_pairs`).
    """
    check_pair(pair)
    check_tokenizer(tokenizer)
    refuse_wrapped(model)
    # a model may know more tokens than its tokenizer makes, or fewer
    known = len(model.get_output_embeddings().weight)
    k = check_whole("k", k, 1, min(len(tokenizer), known))
    probabilities: list[Tensor] = []  # of prompt a, then of prompt b: (vocabulary,)

    def note(batch: PairBatch, log_p: Tensor) -> None:
        probabilities.append(log_p[batch.rows_a.item()].exp().cpu())
        probabilities.append(log_p[batch.rows_b.item()].exp().cpu())

    run_pairs(model, tokenizer, [pair], see_next=note, aligned=False)
    p_a, p_b = probabilities
    shifts = p_a - p_b
    top = shifts.abs().topk(k).indices  # (k,), the largest first
    return pd.DataFrame(
        {
            "token": [tokenizer.decode([token]) for token in top.tolist()],
            "probability_a": p_a[top].numpy(),
            "probability_b": p_b[top].numpy(),
            "shift": shifts[top].numpy(),
        }
    )
