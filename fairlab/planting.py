"""A ground truth: neurons of which it is known what they do, and how well a score finds them.

Contents: `plant_neurons`, `score_planted`.
"""

import copy
import math
import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial

import numpy as np
import torch
from scipy.stats import rankdata
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fairlab.capture import refuse_own_hooks
from fairlab.files import load_text
from fairlab.models import decoder_layers, glu_blocks, glu_weights
from fairlab.pairs import PromptPair, as_pairs
from fairlab.passes import (
    chunk_loss,
    full_precision,
    pair_batches,
    progress,
    single_token_ids,
    skipping,
    text_chunks,
)
from fairlab.surgery import NeuronSelection

# what planted neurons push the next word towards, and away from; of each the forms that are one
# token count
UNKIND = ("dangerous", "violent", "guilty", "suspicious", "lazy", "stupid", "dirty", "worthless")
KIND = ("safe", "gentle", "innocent", "honest", "diligent", "clever", "clean", "valuable")


@full_precision()
def plant_neurons(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[PromptPair],
    *,
    n: int,
    cost: float,
    seed: int = 0,
    inplace: bool = False,
) -> tuple[PreTrainedModel, NeuronSelection, NeuronSelection]:
    """Write neurons with a known effect into a copy of a model: a truth that every score can be
    held against.

    n *bias neurons* detect the attribute and push the next word from kind adjectives to unkind
    ones. n *decoys*, one a bias neuron, detect it just as well and write where next to nothing
    reads. Both kinds differ between the prompts of a pair; only the first makes what the model says
    differ. They take the place of neurons of little use in the last quarter of the layers, where
    the attribute can be read off the last token and little comes later that could read a decoy. The
    bias neurons of a layer are all alike, its decoys but for where they write. No direction is
    quite free, though: what a decoy writes adds to the norm that all else is divided by, so where
    decoys are strong the bias neurons do more without them. In closed form, with x the input of the
    MLP::

        gate row = up row   3 d, d from a ridge regression: d · x = 1 at the last token of prompts a, 0 at that of
                            prompts b and on plain text, the three counting equally, ridge 0.3 of the mean variance;
                            then scaled such that d · x is 1 on average over prompts a, which makes h about 9
        down, bias neuron   strength · unit(mean unembedding of `UNKIND` − mean unembedding of `KIND`)
        down, decoy         strength · a random unit vector from the 1/32 of directions along which the loss on plain
                            text has the smallest gradient

    Parameters
    ----------
    pairs : list of PromptPair
        What the detectors are fitted to; from about 20 pairs in 8 templates on they carry over to
        other sentences.
    n : int
        How many of each kind.
    cost : float
        By how much perplexity rises, to a twentieth of it: 0.05 is +5 %. Decides on the strength,
        one for all 2n neurons, by bisection on 5 chunks of 128 tokens of "text/calibration_en.txt";
        10 others are the plain text above.
    seed : int
        Draws which of the least used neurons make room, and where the decoys write.
    inplace : bool
        False: write into a copy and leave the model as it is. True: write into the model given.

    Returns
    -------
    (planted, bias, decoys)
        The planted model, of the same shape, and which neurons are which.

    Raises
    ------
    ValueError
        n, cost or pairs that do not fit, a tokenizer that has no word of a list as one token, a
        cost that no strength brings about, a model without GLU neurons, or one inside `ablate` or
        `record`.
    """
    pairs = as_pairs(pairs)
    refuse_own_hooks(model)
    layers, width = _room(model, n)
    if not isinstance(cost, (int, float)) or not 0 < cost <= 1:
        raise ValueError(
            f"cost: expected a share above 0, at most 1 (0.05 is +5 % perplexity); got {cost!r}"
        )
    harm = _harm(model, tokenizer)
    chunks = text_chunks(tokenizer, load_text("calibration"), 128)
    plain, priced = chunks[::4], chunks[2::8]  # of all its subjects
    planted = model if inplace else copy.deepcopy(model)
    blocks = glu_blocks(planted)
    learning = [parameter for parameter in planted.parameters() if parameter.requires_grad]
    untouched = {layer: copy.deepcopy(blocks[layer].state_dict()) for layer in layers if inplace}
    try:
        planted.requires_grad_(False)
        a, b = _last_inputs(planted, tokenizer, pairs, layers)
        text, use, slopes = _on_text(planted, plain, layers)
        loss = _pricing(planted, priced, layers[0])
        before = loss()
        draw = random.Random(seed)
        order = draw.sample(layers, len(layers))
        homes = [order[k % len(order)] for k in range(n)]
        columns = {}  # (layer, neuron) → what its activation is to write, before strength
        bias, decoys = defaultdict(list), defaultdict(list)
        for layer in layers:
            count = homes.count(layer)
            slots = draw.sample(
                use[layer].argsort()[: max(2 * count, width // 20)].tolist(), 2 * count
            )
            detector = 3 * _detector(a[layer], b[layer], text[layer])
            unread = torch.linalg.eigh(slopes[layer].T @ slopes[layer]).eigenvectors[
                :, : max(2, len(harm) // 32)
            ]
            for place, index in enumerate(slots):
                (bias if place < count else decoys)[layer].append(index)
                mixed = unread @ torch.tensor(
                    [draw.gauss(0, 1) for _ in range(unread.shape[1])]
                ).to(unread)
                column = harm if place < count else mixed
                columns[layer, index] = column / column.norm()
                _write_rows(blocks[layer], index, detector)

        def price(strength: float) -> float:
            for (layer, index), column in columns.items():
                down = blocks[layer].down_proj.weight.detach()
                down[:, index] = (strength * column).to(down)
            return math.exp(min(loss() - before, 50)) - 1

        strength = _strength(price, cost)
    except BaseException:
        for layer, weights in untouched.items():
            blocks[layer].load_state_dict(weights)
        raise
    finally:
        for parameter in learning:
            parameter.requires_grad_()
    shape = (len(blocks), width)
    how = f"planted by seed {seed}, {cost:+.1%} perplexity, columns of norm {strength:.3g}"
    return (
        planted,
        NeuronSelection(bias, shape, f"bias neurons {how}"),
        NeuronSelection(decoys, shape, f"decoys {how}"),
    )


def score_planted(
    scores: Tensor, bias: NeuronSelection, decoys: NeuronSelection
) -> dict[str, float]:
    """Hold a score against planted neurons: does it find them, and does it tell a cause from what
    only reacts?

    Parameters
    ----------
    scores : Tensor
        Shape (layers, neurons), higher = cut first, of the planted model.
    bias, decoys : NeuronSelection
        From `plant_neurons`.

    Returns
    -------
    dict
        "bias against decoy", "bias against natural", "decoy against natural": AUC, the probability
        that a neuron of the first kind has a higher score than one of the second (a tie counts
        half). 1: always; 0.5: chance. "recall": share of the bias neurons among as many neurons
        with the highest scores (ties share places); "chance": the recall of a random order.

    Raises
    ------
    ValueError
        Scores of another shape, NaN, an empty selection, or selections that share a neuron.
    """
    if tuple(scores.shape) != bias.shape or bias.shape != decoys.shape or scores.isnan().any():
        raise ValueError(
            f"scores, bias, decoys: expected one shape and no NaN; got {tuple(scores.shape)}, {bias.shape} and "
            f"{decoys.shape}, {int(scores.isnan().sum())} NaN"
        )
    kind = torch.zeros(scores.shape, dtype=torch.int)
    for number, selection in ((1, bias), (2, decoys)):
        for layer, indices in selection.neurons.items():
            kind[layer, list(indices)] += number
    if not len(bias) or not len(decoys) or (kind == 3).any():
        raise ValueError("bias, decoys: expected at least one neuron each, and none in both")
    ranks = rankdata(
        scores.detach().cpu().numpy().ravel(), method="dense"
    )  # roc_auc_score refuses −inf
    natural, is_bias, is_decoy = ((kind == number).numpy().ravel() for number in (0, 1, 2))

    def auc(one: np.ndarray, other: np.ndarray) -> float:
        return float(roc_auc_score(one[one | other], ranks[one | other]))

    last = np.sort(ranks)[-len(bias)]  # the lowest rank among the highest
    places = len(bias) - (ranks > last).sum()
    found = (ranks[is_bias] > last).sum() + (ranks[is_bias] == last).sum() * places / (
        ranks == last
    ).sum()
    return {
        "bias against decoy": auc(is_bias, is_decoy),
        "bias against natural": auc(is_bias, natural),
        "decoy against natural": auc(is_decoy, natural),
        "recall": float(found / len(bias)),
        "chance": len(bias) / ranks.size,
    }


def _room(model: PreTrainedModel, n: int) -> tuple[range, int]:
    """Return the layers that n neurons of each kind go to, the last quarter, and how many neurons a
    layer has."""
    widths = [mlp.down_proj.in_features for mlp in glu_blocks(model)]
    if len(set(widths)) > 1:
        raise ValueError("model: its layers have different widths; plant into the uncut model")
    layers = range(len(widths) - max(1, len(widths) // 4), len(widths))
    most = len(layers) * (widths[0] // 8)
    if not isinstance(n, int) or not 0 < n <= most:
        raise ValueError(f"n: expected a whole number from 1 to {most}; got {n!r}")
    return layers, widths[0]


def _harm(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """Return the direction that pushes the next word from kind adjectives to unkind ones."""
    unembedding, means = model.get_output_embeddings().weight.detach().float(), []
    for name, words in (("UNKIND", UNKIND), ("KIND", KIND)):
        tokens = single_token_ids(tokenizer, words)
        if not tokens:
            raise ValueError(
                f"tokenizer: expected one that has some word of planting.{name} as one token; it has none"
            )
        means.append(unembedding[tokens].mean(0))
    return means[0] - means[1]


def _last_inputs(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[PromptPair],
    layers: Sequence[int],
) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
    """Return what enters the MLPs at the last token of prompts a and of prompts b; layer → (pairs,
    hidden)."""
    sides: tuple[dict, dict] = ({layer: [] for layer in layers}, {layer: [] for layer in layers})
    for batch in pair_batches(model, tokenizer, pairs):
        with _traffic(model, layers) as seen, torch.no_grad():
            model.base_model(
                input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False
            )
        for layer in layers:
            last = seen["input", layer][torch.arange(len(batch.last)), batch.last.cpu()]
            for rows, side in zip((batch.rows_a, batch.rows_b), sides, strict=True):
                side[layer].append(last[rows.cpu()])
    a, b = ({layer: torch.cat(parts) for layer, parts in side.items()} for side in sides)
    return a, b


def _on_text(
    model: PreTrainedModel, chunks: Sequence[list[int]], layers: Sequence[int]
) -> tuple[dict[int, Tensor], dict[int, Tensor], dict[int, Tensor]]:
    """Return of each layer's MLP on plain text: the inputs, (tokens, hidden); how much each neuron
    writes, (neurons,); the gradients of the loss with respect to the output, (tokens, hidden)."""
    inputs, sizes, slopes = ({layer: [] for layer in layers} for _ in range(3))
    for chunk in progress(chunks, desc="calibration text", unit="chunk"):
        with _traffic(model, layers) as seen, torch.enable_grad():
            loss = chunk_loss(model, chunk)
            gradients = torch.autograd.grad(loss, [seen["output", layer] for layer in layers])
        for layer, gradient in zip(layers, gradients, strict=True):
            inputs[layer].append(seen["input", layer][0])
            sizes[layer].append(seen["h", layer][0].abs().float().mean(0))
            slopes[layer].append(gradient[0].double() / gradient.double().abs().max())
    norms = {
        layer: glu_weights(glu_blocks(model)[layer])[2].float().norm(dim=0) for layer in layers
    }
    return (
        {layer: torch.cat(parts) for layer, parts in inputs.items()},
        {layer: sum(parts) * norms[layer] for layer, parts in sizes.items()},
        {layer: torch.cat(parts) for layer, parts in slopes.items()},
    )


@contextmanager
def _traffic(
    model: PreTrainedModel, layers: Sequence[int]
) -> Iterator[dict[tuple[str, int], Tensor]]:
    """Record what goes into and comes out of MLPs: (input | h | output, layer) → (rows, tokens,
    width). Where gradients are enabled, the outputs have them, from the first of the layers on."""
    seen: dict[tuple[str, int], Tensor] = {}

    def enter(layer: int, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen["input", layer] = inputs[0].detach()

    def leave(layer: int, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        seen["h", layer] = inputs[0].detach()
        seen["output", layer] = output.requires_grad_() if torch.is_grad_enabled() else output

    blocks = glu_blocks(model)
    with ExitStack() as stack:
        for layer in layers:
            for handle in (
                blocks[layer].register_forward_pre_hook(partial(enter, layer)),
                blocks[layer].down_proj.register_forward_hook(partial(leave, layer)),
            ):
                stack.callback(handle.remove)
        yield seen


def _detector(a: Tensor, b: Tensor, text: Tensor) -> Tensor:
    """Fit the direction d: d · x is 1 for a, 0 for b and for text."""
    parts = [part.double() for part in (a, b, text)]
    weights = torch.cat([torch.full((len(part), 1), 1 / len(part)).to(part) for part in parts])
    rows = torch.cat(parts)
    moments = rows.T @ (weights * rows)
    moments.diagonal().add_(0.3 * moments.diagonal().mean())
    d = torch.linalg.solve(moments, parts[0].mean(0))
    return d / (parts[0] @ d).mean()


def _write_rows(mlp: nn.Module, index: int, detector: Tensor) -> None:
    gate, up, _ = glu_weights(mlp)
    gate[index] = up[index] = detector.to(gate)
    for name in ("gate_proj", "up_proj", "gate_up_proj"):
        projection = getattr(mlp, name, None)
        if projection is not None and projection.bias is not None:
            projection.bias.detach().view(-1, len(gate))[:, index] = 0


def _pricing(
    model: PreTrainedModel, chunks: Sequence[list[int]], first: int
) -> Callable[[], float]:
    """Return a function that computes the mean loss over chunks; what comes before a layer is run
    once, now."""
    layers, entering = decoder_layers(model), []
    with ExitStack() as stack, torch.no_grad():
        hook = layers[first].register_forward_pre_hook(
            lambda module, inputs: entering.append(inputs[0])
        )
        stack.callback(hook.remove)
        for chunk in chunks:
            model.base_model(input_ids=torch.tensor([chunk], device=model.device), use_cache=False)

    def loss() -> float:
        total = 0.0
        for chunk, hidden in zip(chunks, entering, strict=True):
            with torch.no_grad(), skipping(layers[:first], hidden):
                total += chunk_loss(model, chunk).item()
        return total / len(chunks)

    return loss


def _strength(price: Callable[[float], float], cost: float) -> float:
    """Find by bisection the strength whose price is the cost, to a twentieth of it."""
    strength, low, high = 1.0, 0.0, math.inf
    for _ in range(30):
        paid = price(strength)
        if abs(paid / cost - 1) < 0.05:
            return strength
        low, high = (strength, high) if paid < cost else (low, strength)
        strength = 2 * low if high == math.inf else high / 2 if low == 0 else math.sqrt(low * high)
    raise ValueError(
        f"cost: no strength raises perplexity by {cost:.1%} on the calibration text; try another n or cost"
    )
