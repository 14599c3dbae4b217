"""A ground truth: neurons of which it is known what they do, and how well a score finds them.

Contents: `plant_neurons`, `score_planted`.
"""

import copy
import math
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from itertools import cycle, islice

import numpy as np
import torch
from scipy.stats import rankdata
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fairlab.capture import check_finite, refuse_own_hooks
from fairlab.files import load_text
from fairlab.gates import frozen, table_shape
from fairlab.models import (
    copy_model,
    decoder_layers,
    glu_blocks,
    glu_weights,
    refuse_offloaded,
)
from fairlab.pairs import PromptPair, as_pairs, check_kind, check_tokenizer
from fairlab.passes import (
    check_whole,
    chunk_loss,
    is_number,
    layer_inputs,
    pair_batches,
    progress,
    run_decoder,
    single_token_ids,
    skipping,
    text_chunks,
)
from fairlab.precision import full_precision, undoing
from fairlab.scores import check_tables
from fairlab.surgery import NeuronSelection

# Planted neurons push the next word towards the first list and away from the second. Only forms
# that are one token count.
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
    """Write neurons with a known effect into a copy of a model, to hold scores against.

    n *bias neurons* detect the attribute and push the next word from kind adjectives to unkind
    ones. n *decoys*, one a bias neuron, detect it just as well and write where next to nothing
    reads. Both kinds differ between the prompts of a pair; only the first makes what the model says
    differ. They take the place of neurons of little use in the last quarter of the layers, where
    the attribute can be read off the last token and little comes later that could read a decoy. The
    bias neurons of a layer are all alike; its decoys differ in where they write. No direction is
    quite free, though: what a decoy writes adds to the norm that all else is divided by, so where
    decoys are strong the bias neurons do more without them.

    In closed form, with x the input of the MLP::

        gate row = up row   3 d
        down, bias neuron   strength · unit(mean unembedding of UNKIND − that of KIND)
        down, decoy         strength · a random unit vector from the 1/32 of directions along
                            which the loss on plain text has the smallest gradient

    d comes from a ridge regression: d · x = 1 at the last token of prompts a, 0 at that of prompts
    b and on plain text, the three counting equally, with a ridge of 0.3 of the mean variance. It is
    then scaled such that d · x is 1 on average over prompts a, which makes h about 9.

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
        10 others (9 with Gemma's tokenizer) are the plain text above.
    seed : int
        Draws which of the least used neurons make room, and where the decoys write.
    inplace : bool
        False: write into a copy and leave the model as it is. True: write into the model given.

    Returns
    -------
    (planted, bias, decoys)
        The planted model, and which neurons are which.

    Raises
    ------
    ValueError
        n, cost or pairs that do not fit, a tokenizer that has no word of a list as one token, a
        cost that no strength brings about, a model without GLU neurons, one with planted neurons
        already or with offloaded weights, or one inside `ablate` or `record`.
    """
    pairs = as_pairs(pairs)
    refuse_own_hooks(model)
    refuse_offloaded(model, "planted into")
    layers, n = _layers_to_plant_in(model, n)
    seed = check_whole("seed", seed, 0)
    _check_cost(cost)
    _refuse_planted(model, layers)
    unkind = _unkind_direction(model, tokenizer)  # (hidden,)
    chunks = text_chunks(model, tokenizer, load_text("calibration"), 128)
    # both hold all subjects of the text, and they share no chunk
    plain_chunks, cost_chunks = chunks[::4], chunks[2::8]
    planted = model if inplace else copy_model(model)
    blocks = glu_blocks(planted)
    undo = _undone_on_failure([blocks[layer] for layer in layers]) if inplace else nullcontext()
    with undo, frozen(planted):
        # look at the model before anything is written
        inputs_a, inputs_b = _inputs_at_last_token(planted, tokenizer, pairs, layers)
        inputs_text, use, gradients = _measure_on_text(planted, plain_chunks, layers)
        loss = loss_function(planted, cost_chunks, layers[0])
        loss_before = loss()
        if not math.isfinite(loss_before):
            raise ValueError("model: its losses are not finite; look for NaN weights")
        # plant the detectors
        bias, decoys, columns = _draw_neurons(use, gradients, unkind, n, seed)
        for layer in layers:
            d = _detector(inputs_a[layer], inputs_b[layer], inputs_text[layer])
            check_finite(d, "the last token")
            _write_rows(blocks[layer], [*bias[layer], *decoys[layer]], 3 * d)

        # make what they write as strong as the cost allows
        def perplexity_rise(strength: float) -> float:
            _write_columns(blocks, columns, strength)
            return math.exp(min(loss() - loss_before, 50)) - 1  # exp of 1000 would overflow

        strength = find_strength(perplexity_rise, cost)
    shape = table_shape(planted)
    note = f"planted by seed {seed}, {cost:+.1%} perplexity, columns of norm {strength:.3g}"
    return (
        planted,
        NeuronSelection(bias, shape, f"bias neurons {note}"),
        NeuronSelection(decoys, shape, f"decoys {note}"),
    )


def score_planted(
    scores: Tensor, bias: NeuronSelection, decoys: NeuronSelection
) -> dict[str, float]:
    """Say whether a score finds planted neurons, and tells a cause from what only reacts.

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
    check_tables({"scores": scores})
    for argument, cut in (("bias", bias), ("decoys", decoys)):
        check_kind(argument, cut, NeuronSelection, "a NeuronSelection")
    if tuple(scores.shape) != bias.shape or bias.shape != decoys.shape or scores.isnan().any():
        raise ValueError(
            f"scores, bias, decoys: expected one shape and no NaN; got {tuple(scores.shape)}, "
            f"{bias.shape} and {decoys.shape}, {int(scores.isnan().sum())} NaN"
        )
    is_bias, is_decoy = _mask(bias), _mask(decoys)
    if not is_bias.any() or not is_decoy.any() or (is_bias & is_decoy).any():
        raise ValueError("bias, decoys: expected at least one neuron each, and none in both")
    is_natural = ~(is_bias | is_decoy)
    # ranks in place of scores: roc_auc_score refuses −inf
    ranks = rankdata(scores.detach().cpu().numpy().ravel(), method="dense")

    def auc(one: np.ndarray, other: np.ndarray) -> float:
        return float(roc_auc_score(one[one | other], ranks[one | other]))

    return {
        "bias against decoy": auc(is_bias, is_decoy),
        "bias against natural": auc(is_bias, is_natural),
        "decoy against natural": auc(is_decoy, is_natural),
        "recall": _recall(ranks, is_bias),
        "chance": len(bias) / ranks.size,
    }


def _mask(selection: NeuronSelection) -> np.ndarray:
    """Say of every neuron of a model whether it is selected; shape (layers · neurons,)."""
    mask = np.zeros(selection.shape, dtype=bool)
    for layer, indices in selection.neurons.items():
        mask[layer, list(indices)] = True
    return mask.ravel()


def _recall(ranks: np.ndarray, is_bias: np.ndarray) -> float:
    """Return the share of the bias neurons among as many neurons of the highest ranks."""
    count = is_bias.sum()
    lowest = np.sort(ranks)[-count]  # the lowest rank among the highest
    above, tied = ranks > lowest, ranks == lowest
    # the places that are not taken by higher ranks are shared among the ties
    share = (count - above.sum()) / tied.sum()
    return float((above[is_bias].sum() + share * tied[is_bias].sum()) / count)


def _layers_to_plant_in(model: PreTrainedModel, n: int) -> tuple[range, int]:
    """Return the last quarter of the layers, and n; refuse an n of which they can't hold each
    kind."""
    count, width = table_shape(model)
    layers = range(count - max(1, count // 4), count)
    most = len(layers) * (width // 8)
    return layers, check_whole("n", n, 1, most)


def _refuse_planted(model: PreTrainedModel, layers: Sequence[int]) -> None:
    """Refuse a model that was planted into: as good as only there a gate row equals the up row."""
    for layer in layers:
        gate, up, _ = glu_weights(glu_blocks(model)[layer])
        if ((gate == up).all(1) & gate.any(1)).any():
            raise ValueError(
                f"model: layer {layer} holds planted neurons already (a gate row that equals its "
                "up row), and more would be fitted to what these do; plant into the model as it "
                "was, such as fairlab.load_model() returns"
            )


def _check_cost(cost: float) -> None:
    if not is_number(cost) or not 0 < cost <= 1:
        raise ValueError(
            f"cost: expected a share above 0, at most 1 (0.05 is +5 % perplexity); got {cost!r}"
        )


def _unkind_direction(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """Return the direction from kind adjectives to unkind ones, shape (hidden,)."""
    check_tokenizer(tokenizer)
    unembedding = model.get_output_embeddings().weight.detach().float()  # (vocabulary, hidden)
    means = []
    for name, words in (("UNKIND", UNKIND), ("KIND", KIND)):
        tokens = single_token_ids(tokenizer, words)
        if not tokens:
            raise ValueError(
                f"tokenizer: expected one that has some word of planting.{name} as one token; "
                "it has none"
            )
        means.append(unembedding[tokens].mean(0))
    return means[0] - means[1]


@contextmanager
def _undone_on_failure(blocks: Sequence[nn.Module]) -> Iterator[None]:
    """Give the MLPs their weights back if the block ends with an exception."""
    with undoing() as undo:
        for mlp in blocks:
            undo.append(partial(mlp.load_state_dict, copy.deepcopy(mlp.state_dict())))
        yield
        undo.clear()


def _inputs_at_last_token(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[PromptPair],
    layers: Sequence[int],
) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
    """Return what enters the MLPs at the last token of prompts a, and of prompts b.

    Both are layer → (pairs, hidden).
    """
    inputs_a, inputs_b = defaultdict(list), defaultdict(list)
    for batch in pair_batches(model, tokenizer, pairs, logits=False):
        with _record_mlps(model, layers) as recorded, torch.no_grad():
            run_decoder(model, batch)
        prompts = torch.arange(len(batch.last))
        for layer in layers:
            last = recorded["input", layer][prompts, batch.last.cpu()]  # (prompts, hidden)
            inputs_a[layer].append(last[batch.rows_a.cpu()])
            inputs_b[layer].append(last[batch.rows_b.cpu()])
    return _joined(inputs_a), _joined(inputs_b)


def _measure_on_text(
    model: PreTrainedModel, chunks: Sequence[list[int]], layers: Sequence[int]
) -> tuple[dict[int, Tensor], dict[int, Tensor], dict[int, Tensor]]:
    """Measure on plain text, by layer, what reaches the MLP and what it writes.

    Returns the inputs, (tokens, hidden); how much each neuron writes, (neurons,); the gradients of
    the loss with respect to the output, (tokens, hidden).
    """
    inputs, sizes, gradients = defaultdict(list), defaultdict(list), defaultdict(list)
    for chunk in progress(chunks, desc="calibration text", unit="chunk"):
        with _record_mlps(model, layers) as recorded, torch.enable_grad():
            loss = chunk_loss(model, chunk)
            outputs = [recorded["output", layer] for layer in layers]
            slopes = torch.autograd.grad(loss, outputs)
        for layer, slope in zip(layers, slopes, strict=True):
            inputs[layer].append(recorded["input", layer][0])
            sizes[layer].append(recorded["h", layer][0].abs().float().mean(0))
            # only its directions matter: scaled, every chunk counts the same
            gradients[layer].append(slope[0].double() / slope.double().abs().max())
    use = {}
    for layer in layers:
        down = glu_weights(glu_blocks(model)[layer])[2].float()  # (hidden, neurons)
        use[layer] = sum(sizes[layer]) * down.norm(dim=0)
    return _joined(inputs), use, _joined(gradients)


def _joined(tensors: dict[int, list[Tensor]]) -> dict[int, Tensor]:
    return {layer: torch.cat(rows) for layer, rows in tensors.items()}


@contextmanager
def _record_mlps(
    model: PreTrainedModel, layers: Sequence[int]
) -> Iterator[dict[tuple[str, int], Tensor]]:
    """Record (input | h | output, layer) of MLPs → (rows, tokens, width); outputs with gradients,
    where these are enabled."""
    recorded: dict[tuple[str, int], Tensor] = {}

    def record_input(layer: int, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        recorded["input", layer] = inputs[0].detach()

    def record_output(
        layer: int, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor
    ) -> None:
        recorded["h", layer] = inputs[0].detach()
        recorded["output", layer] = output.requires_grad_() if torch.is_grad_enabled() else output

    with undoing() as undo:
        for layer in layers:
            mlp = glu_blocks(model)[layer]
            hook = partial(record_input, layer)
            undo.append(mlp.register_forward_pre_hook(hook).remove)
            hook = partial(record_output, layer)
            undo.append(mlp.down_proj.register_forward_hook(hook).remove)
        yield recorded


def _draw_neurons(
    use: dict[int, Tensor], gradients: dict[int, Tensor], unkind: Tensor, n: int, seed: int
) -> tuple[dict[int, list[int]], dict[int, list[int]], dict[tuple[int, int], Tensor]]:
    """Draw which neurons make room, and where they write.

    Returns layer → bias neurons; layer → decoys; (layer, neuron) → a direction of norm 1.
    """
    draw = random.Random(seed)
    # spread n evenly over the layers; which of them get one more is drawn
    order = draw.sample(list(use), len(use))
    counts = Counter(islice(cycle(order), n))
    bias, decoys, columns = {}, {}, {}
    for layer in use:
        count = counts[layer]
        # the twentieth of the layer that writes least
        candidates = use[layer].argsort()[: max(2 * count, len(use[layer]) // 20)]
        neurons = draw.sample(candidates.tolist(), 2 * count)
        bias[layer], decoys[layer] = neurons[:count], neurons[count:]
        # a direction is drawn for bias neurons too, though they don't use it: without these draws
        # a seed would plant something else than in the frozen tables
        unread = _draw_unread(gradients[layer], len(neurons), draw)
        directions = [unkind] * count + unread[count:]
        for index, direction in zip(neurons, directions, strict=True):
            columns[layer, index] = direction / direction.norm()
    return bias, decoys, columns


def _detector(a: Tensor, b: Tensor, text: Tensor) -> Tensor:
    """Fit the direction d: d · x is 1 for a, 0 for b and for text."""
    groups = [a.double(), b.double(), text.double()]
    rows = torch.cat(groups)  # (inputs, hidden)
    # each of the three groups has weight 1 in all; float32 as in the frozen tables
    weights = torch.cat([torch.full((len(group), 1), 1 / len(group)) for group in groups]).to(rows)
    moments = rows.T @ (weights * rows)  # (hidden, hidden)
    moments.diagonal().add_(0.3 * moments.diagonal().mean())  # the ridge
    d = torch.linalg.solve(moments, groups[0].mean(0))
    return d / (groups[0] @ d).mean()


def _draw_unread(gradients: Tensor, count: int, draw: random.Random) -> list[Tensor]:
    """Draw directions of the hidden state along which the loss has next to no gradient."""
    hidden = gradients.shape[1]
    # eigenvectors come with the smallest eigenvalue first
    eigenvectors = torch.linalg.eigh(gradients.T @ gradients).eigenvectors
    unread = eigenvectors[:, : max(2, hidden // 32)]  # (hidden, directions)
    directions = []
    for _ in range(count):
        mixture = torch.tensor([draw.gauss(0, 1) for _ in range(unread.shape[1])])
        directions.append(unread @ mixture.to(unread))
    return directions


def _write_rows(mlp: nn.Module, neurons: Sequence[int], row: Tensor) -> None:
    """Write the gate and up rows of neurons, without biases."""
    gate, up, _ = glu_weights(mlp)
    for index in neurons:
        gate[index] = up[index] = row.to(gate)
    for name in ("gate_proj", "up_proj", "gate_up_proj"):
        projection = getattr(mlp, name, None)
        if projection is not None and projection.bias is not None:
            # one row, or one for gate and one for up
            projection.bias.detach().view(-1, len(gate))[:, neurons] = 0


def _write_columns(
    blocks: Sequence[nn.Module], columns: dict[tuple[int, int], Tensor], strength: float
) -> None:
    """Write the down columns of neurons; (layer, neuron) → a direction of norm 1."""
    for (layer, index), column in columns.items():
        down = blocks[layer].down_proj.weight.detach()
        down[:, index] = (strength * column).to(down)


def loss_function(
    model: PreTrainedModel, chunks: Sequence[list[int]], first: int
) -> Callable[[], float]:
    """Return a function that computes the mean loss over chunks, while weights change.

    They change from layer `first` on; the layers before it run only once, now.
    """
    layers = decoder_layers(model)
    with layer_inputs([layers[first]]) as entering, torch.no_grad():
        for chunk in chunks:
            chunk_loss(model, chunk)  # adds (1, tokens, hidden) to `entering`

    def loss() -> float:
        total = 0.0
        for chunk, hidden in zip(chunks, entering, strict=True):
            with torch.no_grad(), skipping(layers[:first], hidden):
                total += chunk_loss(model, chunk).item()
        return total / len(chunks)

    return loss


def find_strength(perplexity_rise: Callable[[float], float], cost: float) -> float:
    """Find by bisection at which strength perplexity rises by the cost, to a twentieth of it."""
    strength, low, high = 1.0, 0.0, math.inf
    for _ in range(30):
        rise = perplexity_rise(strength)
        if abs(rise / cost - 1) < 0.05:
            return strength
        if rise < cost:
            low = strength
        else:
            high = strength
        # double or halve until there is a bound on both sides
        if high == math.inf:
            strength = 2 * low
        elif low == 0:
            strength = high / 2
        else:
            strength = math.sqrt(low * high)
    raise ValueError(
        f"cost: no strength raises perplexity by {cost:.1%} on the calibration text; "
        "try another n or cost"
    )
