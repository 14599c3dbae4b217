"""What a model writes, and which next tokens it prefers.

Contents: `generate`, `next_token_divergence`, `top_token_shifts`, `next_token_log_probs`.
"""

import math
from collections.abc import Iterator, Sequence

import pandas as pd
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fairlab.capture import PairBatch, pair_batches, progress
from fairlab.pairs import PromptPair, as_pairs


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    max_length: int = 50,
    num_beams: int = 5,
    no_repeat_ngram_size: int = 2,
) -> list[str]:
    """Continue each prompt by beam search, with the article's settings, without sampling and without a chat template.

    Parameters
    ----------
    prompts : list of str
        Each is run alone, so that no padding touches the text.
    max_length : int
        Tokens of prompt and continuation together.

    Returns
    -------
    list of str
        Prompt and continuation, special tokens left out. One text is an anecdote: for a measure see
        `next_token_divergence`.

    Raises
    ------
    TypeError, ValueError
        A bare string instead of a list; an empty list; a prompt that leaves no room below `max_length`.
    """
    if isinstance(prompts, str):
        raise TypeError(f"prompts: expected a list of strings; got one string {prompts!r} (put it in a list)")
    if not prompts:
        raise ValueError("prompts: expected at least one; got an empty list")
    encoded = [tokenizer(prompt, return_tensors="pt").to(model.device) for prompt in prompts]
    for prompt, inputs in zip(prompts, encoded, strict=True):
        if inputs.input_ids.shape[1] >= max_length:
            raise ValueError(
                f"max_length: {max_length} leaves no room after the {inputs.input_ids.shape[1]} tokens of {prompt!r}"
            )
    texts = []
    for inputs in progress(encoded, desc="texts", unit="text"):
        tokens = model.generate(
            input_ids=inputs.input_ids,
            attention_mask=inputs.attention_mask,
            do_sample=False,
            num_beams=num_beams,
            early_stopping=True,
            no_repeat_ngram_size=no_repeat_ngram_size,
            max_length=max_length,
            pad_token_id=tokenizer.pad_token_id,
        )
        texts.append(tokenizer.decode(tokens[0], skip_special_tokens=True))
    return texts


def next_token_divergence(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, pairs: Sequence[PromptPair], *, batch_size: int = 32
) -> Tensor:
    """Compute the gap of each pair: how far apart its two next-token distributions are.

    Jensen–Shannon divergence `JS = ½ KL(p_a‖m) + ½ KL(p_b‖m)`, `m = (p_a + p_b) / 2`, of the distributions after the
    last prompt token, from log-softmax in float32 (float64 for a float64 model).

    Returns
    -------
    Tensor
        Shape (pairs,), in nats, from 0 (the same prediction for both prompts) to ln 2 = 0.693 (nothing in common). It
        also counts differences that are no harm (he/she after man/woman), so read it beside neutral pairs.

    Raises
    ------
    ValueError
        No pairs, or an invalid pair.
    """
    pairs = as_pairs(pairs)
    gaps = torch.zeros(len(pairs))
    for batch, log_p in next_token_log_probs(model, tokenizer, pairs, batch_size=batch_size):
        log_a, log_b = log_p[batch.rows_a], log_p[batch.rows_b]
        log_m = torch.logaddexp(log_a, log_b) - math.log(2)
        divergence = (log_a.exp() * (log_a - log_m) + log_b.exp() * (log_b - log_m)).sum(-1) / 2
        gaps = gaps.to(divergence.dtype)
        gaps[batch.pairs] = divergence.clamp(min=0).cpu()
    return gaps


def top_token_shifts(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, pair: PromptPair, *, k: int = 10
) -> pd.DataFrame:
    """List the k next tokens whose probability differs most between the two prompts of a pair.

    Returns
    -------
    pandas.DataFrame
        Columns `token`, `probability_a`, `probability_b`, `shift` (a − b, from −1 to 1; positive: likelier after prompt
        a), the largest absolute shift first.

    Raises
    ------
    ValueError
        k below 1, or an invalid pair.
    """
    if not 1 <= k <= len(tokenizer):
        raise ValueError(f"k: expected a number from 1 to {len(tokenizer)}; got {k!r}")
    ((batch, log_p),) = next_token_log_probs(model, tokenizer, [pair])
    p_a, p_b = log_p[batch.rows_a[0]].exp().cpu(), log_p[batch.rows_b[0]].exp().cpu()
    top = (p_a - p_b).abs().topk(k).indices
    tokens = [tokenizer.decode([index]) for index in top.tolist()]
    columns = {"token": tokens, "probability_a": p_a[top].numpy(), "probability_b": p_b[top].numpy()}
    return pd.DataFrame({**columns, "shift": (p_a - p_b)[top].numpy()})


def next_token_log_probs(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, pairs: Sequence[PromptPair], *, batch_size: int = 32
) -> Iterator[tuple[PairBatch, Tensor]]:
    """Yield batches of pairs with the next-token log-probabilities of their prompts, shape (prompts, vocabulary)."""
    for batch in pair_batches(model, tokenizer, pairs, batch_size=batch_size):
        places, column = batch.last.unique(return_inverse=True)
        with torch.no_grad():
            logits = model(
                input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False, logits_to_keep=places
            ).logits
        logits = logits[torch.arange(len(column), device=logits.device), column]
        log_p = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
        if not torch.isfinite(log_p).any(-1).all() or log_p.isnan().any():
            raise ValueError("model: its next-token probabilities are not finite; look for NaN weights")
        yield batch, log_p
