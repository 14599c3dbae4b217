"""What a cut costs, and what a cut of the same size that means nothing does.

Contents: `perplexity`, `token_losses`, `random_selections`.
"""

import random

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fairlab.capture import progress
from fairlab.surgery import NeuronSelection


def perplexity(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str, *, window: int = 512) -> float:
    """Compute the perplexity of a text: `exp` of the mean of `token_losses`.

    Returns
    -------
    float
        From 1 (every token foreseen) upwards; the size of the vocabulary for a model that guesses evenly. Comparable
        only between models with one tokenizer, on one text and window.

    Raises
    ------
    ValueError
        As `token_losses`.
    """
    return token_losses(model, tokenizer, text, window=window).mean().exp().item()


def token_losses(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str, *, window: int = 512) -> Tensor:
    """Compute `−ln p(token | those before it in its window)` of the tokens of a text.

    The text is tokenised as a whole and cut into windows of `window` tokens without overlap (BOS stands before each,
    where the tokenizer adds one). The first token of a window has nothing before it and is left out, unless BOS is
    there.

    Returns
    -------
    Tensor
        One value a scored token, in nats, 0 or more, float32 (float64 for a float64 model) on the CPU.

    Raises
    ------
    ValueError
        A text of fewer than two tokens, a window below 2, or losses that are not finite.
    """
    if not isinstance(window, int) or window < 2:
        raise ValueError(f"window: expected a whole number of at least 2; got {window!r}")
    ids = tokenizer(text, add_special_tokens=False, verbose=False).input_ids
    if len(ids) < 2:
        raise ValueError(f"text: expected at least two tokens; got {len(ids)}")
    first = tokenizer("a").input_ids[0]
    bos = [first] if first == tokenizer.bos_token_id else []
    pieces = [bos + ids[start : start + window] for start in range(0, len(ids), window)]
    losses = []
    for piece in progress([piece for piece in pieces if len(piece) > 1], desc="perplexity", unit="window"):
        tokens = torch.tensor([piece], device=model.device)
        with torch.no_grad():
            logits = model(input_ids=tokens, use_cache=False).logits[0, :-1]
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        losses.append(torch.nn.functional.cross_entropy(logits, tokens[0, 1:], reduction="none").cpu())
    result = torch.cat(losses)
    if not torch.isfinite(result).all():
        raise ValueError("model: its losses are not finite; look for NaN weights")
    return result


def random_selections(selection: NeuronSelection, n: int, *, seed: int = 0) -> list[NeuronSelection]:
    """Draw n random cuts with as many neurons in each layer as a selection has: what a cut of this size does by itself.

    Raises
    ------
    ValueError
        n below 1.
    """
    if not isinstance(n, int) or n < 1:
        raise ValueError(f"n: expected a whole number of at least 1; got {n!r}")
    draw = random.Random(seed)
    width = selection.shape[1]
    return [
        NeuronSelection(
            {layer: tuple(draw.sample(range(width), len(indices))) for layer, indices in selection.neurons.items()},
            selection.shape,
            f"random cut {number} of seed {seed}",
        )
        for number in range(n)
    ]
