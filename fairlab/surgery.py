"""Choose neurons, try the cut, make it real, save it.

Contents: `NeuronSelection`, `select_neurons`, `refine_scores` (the best of a score tried one by one), `ablate`
(reversible), `prune` (smaller matrices), `save_model`, `removed_neurons` (what somebody else cut), `plant_neurons` (a
ground truth: neurons of which it is known what they do).

Zeroing neuron i's gate row, its up row or its down column, or its activation `h_i`, is one and the same cut in a GLU
without biases whose activation function maps 0 to 0. `ablate` acts on `h_i`, so it equals `prune` with biases too.
"""

import copy
import json
import math
import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal
from unittest.mock import patch

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fairlab.behavior import divergence, token_ids
from fairlab.capture import check_option, next_log_p, pair_batches, progress
from fairlab.models import decoder_layers, glu_blocks, glu_weights
from fairlab.pairs import PromptPair, as_pairs, data_path
from fairlab.scores import chunk_loss, text_chunks

# what planted neurons push the next word towards, and away from; of each the forms that are one token count
UNKIND = ("dangerous", "violent", "guilty", "suspicious", "lazy", "stupid", "dirty", "worthless")
KIND = ("safe", "gentle", "innocent", "honest", "diligent", "clever", "clean", "valuable")


@dataclass(frozen=True)
class NeuronSelection:
    """Neurons of one model: which, of what shape of model, and how they were chosen.

    Raises
    ------
    ValueError
        A layer or neuron that the shape does not have, a neuron named twice, or a layer that would lose all its
        neurons.
    """

    neurons: Mapping[int, tuple[int, ...]]  # layer → neuron indices, sorted; layers without a cut are left out
    shape: tuple[int, int]  # (layers, neurons in each layer) of the model
    how: str = ""  # how they were chosen, for people

    def __post_init__(self) -> None:
        layers, width = self.shape
        tidy = {
            int(layer): tuple(sorted(map(int, indices)))
            for layer, indices in sorted(self.neurons.items())
            if len(indices)
        }
        for layer, indices in tidy.items():
            if layer not in range(layers) or indices[0] < 0 or indices[-1] >= width:
                raise ValueError(
                    f"neurons: expected layers below {layers} and indices below {width}; got layer {layer}, "
                    f"indices from {indices[0]} to {indices[-1]}"
                )
            if len(set(indices)) < len(indices):
                raise ValueError(f"neurons: layer {layer} names a neuron twice")
            if len(indices) == width:
                raise ValueError(f"neurons: layer {layer} would lose all of its {width} neurons; leave at least one")
        object.__setattr__(self, "neurons", tidy)
        object.__setattr__(self, "shape", (int(layers), int(width)))

    def __len__(self) -> int:
        """Return the number of neurons."""
        return sum(map(len, self.neurons.values()))

    def __repr__(self) -> str:
        layers, width = self.shape
        return f"NeuronSelection({len(self)} neurons in {len(self.neurons)} of {layers} layers of {width}; {self.how})"

    def to_json(self) -> str:
        """Return the selection as strict JSON."""
        neurons = {str(layer): list(indices) for layer, indices in self.neurons.items()}
        return json.dumps({"shape": list(self.shape), "how": self.how, "neurons": neurons})

    @classmethod
    def from_json(cls, text: str) -> "NeuronSelection":
        """Read what `to_json` wrote."""
        data = json.loads(text)
        return cls({int(layer): tuple(i) for layer, i in data["neurons"].items()}, tuple(data["shape"]), data["how"])


def select_neurons(
    scores: Tensor,
    *,
    fraction: float | None = None,
    count: int | None = None,
    scope: Literal["layer", "model"] = "layer",
    how: str = "",
) -> NeuronSelection:
    """Select the neurons with the highest scores.

    Parameters
    ----------
    scores : Tensor
        Shape (layers, neurons); higher = cut first; −inf marks a neuron that must stay.
    fraction : float
        Share to select, between 0 and 1: `min(int(fraction · neurons), neurons − 1)` in each layer, or
        `int(fraction · layers · neurons)` in all with scope="model". The article takes 0.002.
    count : int
        Instead of a fraction: how many, in each layer or in all.
    scope : str
        "layer": the same number in every layer. "model": one ranking over all layers; it compares scores across layers,
        which hybrid scores are not made for.
    how : str
        A note for people on where the scores come from.

    Raises
    ------
    ValueError
        Not one of fraction and count; a value that selects no neuron, all of a layer, or ones that must stay; NaN
        scores.
    """
    check_option("scope", scope, ("layer", "model"))
    if scores.ndim != 2:
        raise ValueError(f"scores: expected the shape (layers, neurons); got {tuple(scores.shape)}")
    if scores.isnan().any() or (scores == math.inf).any():
        raise ValueError("scores: expected numbers (−inf for neurons that must stay); got NaN or +inf")
    if (fraction is None) == (count is None):
        raise ValueError(f"fraction, count: give exactly one; got fraction={fraction!r} and count={count!r}")
    layers, width = scores.shape
    pool = width if scope == "layer" else layers * width
    if fraction is not None:
        if not isinstance(fraction, float) or not 0 < fraction < 1:
            raise ValueError(f"fraction: expected a float between 0 and 1 (0.002 is 0.2 %); got {fraction!r}")
        count = min(int(fraction * pool), pool - 1)
        if count == 0:
            smallest = math.ceil(1e6 / pool) / 1e6
            raise ValueError(
                f"fraction: {fraction} of {pool} neurons is less than one neuron; the smallest is {smallest:g}"
            )
        note = f"fraction {fraction:g} of " + ("each layer" if scope == "layer" else "the model")
    else:
        if not isinstance(count, int) or not 0 < count < pool:
            raise ValueError(f"count: expected a whole number from 1 to {pool - 1}; got {count!r}")
        note = f"{count} in each layer" if scope == "layer" else f"{count} in all"
    if scope == "layer":
        top = scores.topk(count, dim=1)
        neurons = {layer: tuple(indices) for layer, indices in enumerate(top.indices.tolist())}
    else:
        top = scores.flatten().topk(count)
        neurons = {}
        for index in top.indices.tolist():
            neurons[index // width] = (*neurons.get(index // width, ()), index % width)
    if (top.values == -math.inf).any():
        raise ValueError("scores: too few neurons may be cut (the rest is −inf); lower fraction or count")
    return NeuronSelection(neurons, (layers, width), f"{how}: {note}" if how else note)


def refine_scores(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    scores: Tensor,
    pairs: Sequence[PromptPair],
    *,
    count: int = 150,
    neutral: Sequence[PromptPair] | None = None,
    charge: float = 1.0,
    batch_size: int = 32,
) -> Tensor:
    """Remove each of the neurons with the highest scores alone, and score it by what that does to the gap.

    ::

        gap before − gap after − charge · |neutral gap before − neutral gap after|

    The gap is the mean of `next_token_divergence` over pairs. A first-order score ("attribution") is wrong where one
    neuron's activation is huge; this costs one forward pass a neuron and batch, through the layers above it only.

    Parameters
    ----------
    scores : Tensor
        Shape (layers, neurons), any score; higher = cut first.
    count : int
        How many neurons of the whole model to try.
    neutral : list of PromptPair, optional
        Neutral pairs in the same templates; without them nothing is charged.
    charge : float
        How much a change on neutral pairs counts against one on demographic pairs, 0 or more.

    Returns
    -------
    Tensor
        Float32, shape (layers, neurons), in nats; positive: removing the neuron alone narrows the gap. −inf for all
        that were not tried. Effects of several neurons do not add up exactly.

    Raises
    ------
    ValueError
        Scores, count or pairs that `select_neurons` or `next_token_divergence` refuses, a negative charge, or gaps that
        are not finite.
    """
    if not 0 <= charge < math.inf:
        raise ValueError(f"charge: expected a number of at least 0; got {charge!r}")
    shortlist = select_neurons(scores, count=count, scope="model")
    _matching_blocks(model, shortlist)
    gain = _narrowings(model, tokenizer, as_pairs(pairs), shortlist, batch_size)
    if neutral is not None:
        gain -= charge * _narrowings(model, tokenizer, as_pairs(neutral), shortlist, batch_size).abs()
    refined = torch.full(scores.shape, -math.inf)
    for layer, indices in shortlist.neurons.items():
        refined[layer, list(indices)], gain = gain[: len(indices)].float(), gain[len(indices) :]
    return refined


def _narrowings(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[PromptPair],
    selection: NeuronSelection,
    batch_size: int,
) -> Tensor:
    """Measure by how much the mean gap falls if each of the selected neurons alone is removed."""
    neurons = [(layer, index) for layer, indices in selection.neurons.items() for index in indices]
    falls = torch.zeros(len(neurons), dtype=torch.promote_types(model.dtype, torch.float32))
    layers = decoder_layers(model)
    for batch in pair_batches(model, tokenizer, pairs, batch_size=batch_size):
        entering: list[Tensor] = []  # what enters each layer, before the cut
        with ExitStack() as stack, torch.no_grad():
            for layer in layers:
                handle = layer.register_forward_pre_hook(lambda module, inputs, kept=entering: kept.append(inputs[0]))
                stack.callback(handle.remove)
            before = divergence(next_log_p(model, batch), batch)
        for place, (layer, index) in enumerate(progress(neurons, desc="ablations", unit="neuron")):
            alone = NeuronSelection({layer: (index,)}, selection.shape)
            with torch.no_grad(), ablate(model, alone), _entering(layers[:layer], entering[layer]):
                falls[place] += (before - divergence(next_log_p(model, batch), batch)).sum().cpu()
    if not torch.isfinite(falls).all():
        raise ValueError("model: its next-token probabilities are not finite; look for NaN weights")
    return falls / len(pairs)


@contextmanager
def _entering(below: Sequence[nn.Module], hidden: Tensor) -> Iterator[None]:
    """Skip layers whose result is known: inside the block each of them returns it."""
    with ExitStack() as stack:
        for layer in below:
            stack.enter_context(patch.object(layer, "forward", lambda *_, **__: hidden))
        yield


@contextmanager
def ablate(model: PreTrainedModel, selection: NeuronSelection, *, scale: float = 0.0) -> Iterator[None]:
    """Multiply the activations `h` of the selected neurons by `scale` inside the `with` block.

    No weight is touched: the cut is a hook on the input of `down_proj`, gone when the block ends, also after an
    exception.

    Parameters
    ----------
    scale : float
        0 removes the neurons, 1 changes nothing, 0.5 halves them, 2 doubles them.

    Raises
    ------
    ValueError
        A selection for a model of another shape, or a scale that is not finite.
    """
    if not isinstance(scale, (int, float)) or not math.isfinite(scale):
        raise ValueError(f"scale: expected a finite number (0 removes); got {scale!r}")
    blocks = _matching_blocks(model, selection)
    handles = []
    try:
        for layer, indices in selection.neurons.items():
            weight = blocks[layer].down_proj.weight
            mask = torch.ones(weight.shape[1], device=weight.device, dtype=weight.dtype)
            mask[list(indices)] = scale
            handles.append(blocks[layer].down_proj.register_forward_pre_hook(partial(_masked, mask)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def prune(model: PreTrainedModel, selection: NeuronSelection, *, inplace: bool = False) -> PreTrainedModel:
    """Remove the selected neurons: smaller matrices, fewer parameters.

    Rows of `gate_proj` and `up_proj` (or of both halves of `gate_up_proj`), their biases, and columns of `down_proj`
    are left out; all else is kept to the bit. `config.intermediate_size` becomes the width of the widest layer.

    Parameters
    ----------
    inplace : bool
        False: return a new model and leave the old one as it is. True: cut the model given in the memory that
        it has; tensors taken from its MLPs before are overwritten.

    Returns
    -------
    PreTrainedModel
        The cut model. It works on the meta device too, where weights have no values.

    Raises
    ------
    ValueError
        A selection for a model of another shape, or a model without GLU neurons.
    """
    blocks = _matching_blocks(model, selection)
    cut: dict[int, nn.Linear] = {}  # id of a projection → its smaller stand-in, which deepcopy puts in its place
    spare = None
    for layer, indices in selection.neurons.items():
        mlp, width = blocks[layer], selection.shape[1]
        for name in ("gate_proj", "up_proj", "gate_up_proj", "down_proj"):
            if not hasattr(mlp, name):
                continue
            projection = getattr(mlp, name)
            rows = (*indices, *(width + i for i in indices)) if name == "gate_up_proj" else indices
            smaller = _leave_out(projection, rows, 1 if name == "down_proj" else 0, spare)
            if inplace:
                setattr(mlp, name, smaller)
                spare = projection.weight.detach()  # the next matrix goes here: no memory is asked for
            else:
                cut[id(projection)] = smaller
    if not inplace:
        model = copy.deepcopy(model, cut)
    _update_widths(model)
    return model


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: str | Path) -> None:
    """Save a model and its tokenizer such that stock `AutoModelForCausalLM.from_pretrained(folder)` loads it.

    Layers of equal width are saved as they are: the same logits to the bit. Configurations know one width for all
    layers, so where widths differ every layer is padded with zero neurons to the widest one: the same function, with
    sums in another order.

    Raises
    ------
    ValueError
        `folder` is an existing file.
    """
    if Path(folder).is_file():
        raise ValueError(f"folder: expected a folder to write to; got the file {folder}")
    blocks = glu_blocks(model)
    widest = max(mlp.down_proj.in_features for mlp in blocks)
    if any(mlp.down_proj.in_features < widest for mlp in blocks):
        # what deepcopy finds here it takes as it is: only the MLPs cost memory
        stand_ins: dict[int, object] = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
        for mlp in blocks:
            for name, projection in mlp.named_children():
                if isinstance(projection, nn.Linear):
                    stand_ins[id(projection)] = _pad(projection, widest, name)
        model = copy.deepcopy(model, stand_ins)
        _update_widths(model)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def removed_neurons(model: PreTrainedModel, pruned: PreTrainedModel) -> NeuronSelection:
    """Find which neurons of a model are missing in a pruned copy of it, such as a published one.

    A neuron is recognised by its gate row, up row and down column together, which must be equal to the bit; in which
    order the copy keeps its neurons does not matter, and neurons of zeros in it count as missing. The model's weights
    are cast to the dtype of the copy first, so a bfloat16 checkpoint can be compared with a float16 copy.

    Returns
    -------
    NeuronSelection
        For the shape of `model`; empty if none is missing.

    Raises
    ------
    ValueError
        Unequal numbers of layers; layers of unequal width in `model`; or a neuron of the copy that the model does not
        have, as after fine-tuning.
    """
    blocks, smaller = glu_blocks(model), glu_blocks(pruned)
    widths = {mlp.down_proj.in_features for mlp in blocks}
    if len(blocks) != len(smaller) or len(widths) != 1:
        raise ValueError(
            f"model, pruned: expected as many layers in both, of one width in the model; got {len(blocks)} and "
            f"{len(smaller)} layers, of {' or '.join(map(str, sorted(widths)))} neurons"
        )
    neurons = {}
    for layer, (whole, cut) in enumerate(zip(blocks, smaller, strict=True)):
        left = defaultdict(list)
        for index, key in enumerate(_neuron_bytes(whole, cut.down_proj.weight.dtype)):
            left[key].append(index)
        for index, key in enumerate(_neuron_bytes(cut, cut.down_proj.weight.dtype)):
            if not any(key):
                continue
            if not left[key]:
                raise ValueError(
                    f"pruned: neuron {index} of layer {layer} is none of the model's; were weights changed?"
                )
            left[key].pop()
        neurons[layer] = tuple(index for indices in left.values() for index in indices)
    return NeuronSelection(neurons, (len(blocks), widths.pop()), "missing in the pruned model")


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
    """Write neurons with a known effect into a copy of a model: a truth that every score can be held against.

    n *bias neurons* detect the attribute and push the next word from kind adjectives to unkind ones. n *decoys*, one a
    bias neuron, detect it just as well and write where next to nothing reads. Both kinds differ between the prompts of
    a pair; only the first makes what the model says differ. They take the place of neurons of little use in the last
    quarter of the layers, where the attribute can be read off the last token and little comes later that could read a
    decoy. The bias neurons of a layer are all alike, its decoys but for where they write. No direction is quite free,
    though: what a decoy writes adds to the norm that all else is divided by, so where decoys are strong the bias
    neurons do more without them. In closed form, with x the input of the MLP::

        gate row = up row   3 d, d from a ridge regression: d · x = 1 at the last token of prompts a, 0 at that of
                            prompts b and on plain text, the three counting equally, ridge 0.3 of the mean variance;
                            then scaled such that d · x is 1 on average over prompts a, which makes h about 9
        down, bias neuron   strength · unit(mean unembedding of `UNKIND` − mean unembedding of `KIND`)
        down, decoy         strength · a random unit vector from the 1/32 of directions along which the loss on plain
                            text has the smallest gradient

    Parameters
    ----------
    pairs : list of PromptPair
        What the detectors are fitted to; from about 20 pairs in 8 templates on they carry over to other sentences.
    n : int
        How many of each kind.
    cost : float
        By how much perplexity rises, to a twentieth of it: 0.05 is +5 %. Decides on the strength, one for all 2n
        neurons, by bisection on 5 chunks of 128 tokens of "calibration_en.txt"; 10 others are the plain text above.
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
        n, cost or pairs that do not fit, a tokenizer that has no word of a list as one token, a cost that no strength
        brings about, or a model without GLU neurons.
    """
    blocks, pairs = glu_blocks(model), as_pairs(pairs)
    width = blocks[0].down_proj.in_features
    if any(mlp.down_proj.in_features != width for mlp in blocks):
        raise ValueError("model: its layers have different widths; plant into the uncut model")
    layers = range(len(blocks) - max(1, len(blocks) // 4), len(blocks))
    most = len(layers) * (width // 8)
    if not isinstance(n, int) or not 0 < n <= most:
        raise ValueError(f"n: expected a whole number from 1 to {most}; got {n!r}")
    if not isinstance(cost, (int, float)) or not 0 < cost <= 1:
        raise ValueError(f"cost: expected a share above 0, at most 1 (0.05 is +5 % perplexity); got {cost!r}")
    words = {name: token_ids(tokenizer, list_) for name, list_ in (("UNKIND", UNKIND), ("KIND", KIND))}
    for name, tokens in words.items():
        if not tokens:
            raise ValueError(f"tokenizer: expected one that has some word of surgery.{name} as one token; it has none")
    unembedding = model.get_output_embeddings().weight.detach().float()
    harm = unembedding[words["UNKIND"]].mean(0) - unembedding[words["KIND"]].mean(0)
    chunks = text_chunks(tokenizer, data_path("calibration_en.txt").read_text(encoding="utf-8"), 128)
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
            slots = draw.sample(use[layer].argsort()[: max(2 * count, width // 20)].tolist(), 2 * count)
            detector = 3 * _detector(a[layer], b[layer], text[layer])
            unread = torch.linalg.eigh(slopes[layer].T @ slopes[layer]).eigenvectors[:, : max(2, len(harm) // 32)]
            for place, index in enumerate(slots):
                (bias if place < count else decoys)[layer].append(index)
                mixed = unread @ torch.tensor([draw.gauss(0, 1) for _ in range(unread.shape[1])]).to(unread)
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
    how = f"planted by seed {seed}, {cost:+.1%} perplexity, columns of norm {strength:.3g}"
    named = (
        NeuronSelection(x, (len(blocks), width), f"{kind} {how}")
        for kind, x in (("bias neurons", bias), ("decoys", decoys))
    )
    return planted, *named


def _last_inputs(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, pairs: Sequence[PromptPair], layers: Sequence[int]
) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
    """Return what enters the MLPs at the last token of prompts a and of prompts b; layer → (pairs, hidden)."""
    sides: tuple[dict, dict] = ({layer: [] for layer in layers}, {layer: [] for layer in layers})
    for batch in pair_batches(model, tokenizer, pairs):
        with _traffic(model, layers) as seen, torch.no_grad():
            model.base_model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False)
        for layer in layers:
            last = seen["input", layer][torch.arange(len(batch.last)), batch.last.cpu()]
            for rows, side in zip((batch.rows_a, batch.rows_b), sides, strict=True):
                side[layer].append(last[rows.cpu()])
    a, b = ({layer: torch.cat(parts) for layer, parts in side.items()} for side in sides)
    return a, b


def _on_text(
    model: PreTrainedModel, chunks: Sequence[list[int]], layers: Sequence[int]
) -> tuple[dict[int, Tensor], dict[int, Tensor], dict[int, Tensor]]:
    """Return of each layer's MLP on plain text: the inputs, (tokens, hidden); how much each neuron writes, (neurons,);
    the gradients of the loss with respect to the output, (tokens, hidden)."""
    inputs, sizes, slopes = ({layer: [] for layer in layers} for _ in range(3))
    for chunk in progress(chunks, desc="calibration text", unit="chunk"):
        with _traffic(model, layers) as seen, torch.enable_grad():
            loss = chunk_loss(model, chunk)
            gradients = torch.autograd.grad(loss, [seen["output", layer] for layer in layers])
        for layer, gradient in zip(layers, gradients, strict=True):
            inputs[layer].append(seen["input", layer][0])
            sizes[layer].append(seen["h", layer][0].abs().float().mean(0))
            slopes[layer].append(gradient[0].double() / gradient.double().abs().max())
    norms = {layer: glu_weights(glu_blocks(model)[layer])[2].float().norm(dim=0) for layer in layers}
    return (
        {layer: torch.cat(parts) for layer, parts in inputs.items()},
        {layer: sum(parts) * norms[layer] for layer, parts in sizes.items()},
        {layer: torch.cat(parts) for layer, parts in slopes.items()},
    )


@contextmanager
def _traffic(model: PreTrainedModel, layers: Sequence[int]) -> Iterator[dict[tuple[str, int], Tensor]]:
    """Record what goes into and comes out of MLPs: (input | h | output, layer) → (rows, tokens, width). Where gradients
    are enabled, the outputs have them, from the first of the layers on."""
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


def _pricing(model: PreTrainedModel, chunks: Sequence[list[int]], first: int) -> Callable[[], float]:
    """Return a function that computes the mean loss over chunks; what comes before a layer is run once, now."""
    layers, entering = decoder_layers(model), []
    with ExitStack() as stack, torch.no_grad():
        hook = layers[first].register_forward_pre_hook(lambda module, inputs: entering.append(inputs[0]))
        stack.callback(hook.remove)
        for chunk in chunks:
            model.base_model(input_ids=torch.tensor([chunk], device=model.device), use_cache=False)

    def loss() -> float:
        total = 0.0
        for chunk, hidden in zip(chunks, entering, strict=True):
            with torch.no_grad(), _entering(layers[:first], hidden):
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


def _matching_blocks(model: PreTrainedModel, selection: NeuronSelection) -> list[nn.Module]:
    blocks = glu_blocks(model)
    widths = {mlp.down_proj.in_features for mlp in blocks}
    if (len(blocks), widths) != (selection.shape[0], {selection.shape[1]}):
        found = " or ".join(map(str, sorted(widths)))
        raise ValueError(
            f"selection: made for {selection.shape[0]} layers of {selection.shape[1]} neurons, "
            f"but the model has {len(blocks)} layers of {found}"
        )
    return blocks


def _neuron_bytes(mlp: nn.Module, dtype: torch.dtype) -> list[bytes]:
    gate, up, down = glu_weights(mlp)
    rows = torch.cat([gate, up, down.T], dim=1).to("cpu", dtype).contiguous()
    return [row.numpy().tobytes() for row in rows.view(torch.uint8)]


def _masked(mask: Tensor, module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (inputs[0] * mask, *inputs[1:])


def _linear(weight: Tensor, bias: Tensor | None, like: nn.Linear) -> nn.Linear:
    new = nn.Linear(
        weight.shape[1], weight.shape[0], bias=bias is not None, device="meta"
    )  # meta: nothing is initialised
    new.weight = nn.Parameter(weight, requires_grad=like.weight.requires_grad)
    if bias is not None:
        new.bias = nn.Parameter(bias, requires_grad=like.bias.requires_grad)
    return new.train(like.training)


def _leave_out(projection: nn.Linear, indices: Sequence[int], dim: int, spare: Tensor | None) -> nn.Linear:
    """Copy a projection without some rows (dim 0) or columns (dim 1), in one go between one of them and the next."""

    def left(tensor: Tensor, dim: int, out: Tensor | None = None) -> Tensor:
        starts, ends = [0, *(i + 1 for i in indices)], [*indices, tensor.shape[dim]]
        parts = [tensor.narrow(dim, start, end - start) for start, end in zip(starts, ends, strict=True)]
        return torch.cat(parts, dim) if out is None else torch.cat(parts, dim, out=out)

    weight, bias = projection.weight.detach(), projection.bias
    if bias is not None:
        bias = left(bias.detach(), 0) if dim == 0 else bias.detach().clone()
    shape = [size - len(indices) * (axis == dim) for axis, size in enumerate(weight.shape)]
    if (
        spare is None
        or spare.numel() < math.prod(shape)
        or (spare.dtype, spare.device) != (weight.dtype, weight.device)
    ):
        return _linear(left(weight, dim), bias, projection)
    return _linear(left(weight, dim, spare.flatten()[: math.prod(shape)].view(shape)), bias, projection)


def _pad(projection: nn.Linear, width: int, name: str) -> nn.Linear:
    weight, bias = projection.weight.detach(), projection.bias
    bias = None if bias is None else bias.detach()
    if name == "down_proj":
        return _linear(nn.functional.pad(weight, (0, width - weight.shape[1])), bias, projection)
    parts = 2 if name == "gate_up_proj" else 1
    missing = width - weight.shape[0] // parts
    weight = torch.cat([nn.functional.pad(part, (0, 0, 0, missing)) for part in weight.chunk(parts)])
    if bias is not None:
        bias = torch.cat([nn.functional.pad(part, (0, missing)) for part in bias.chunk(parts)])
    return _linear(weight, bias, projection)


def _update_widths(model: PreTrainedModel) -> None:
    blocks = glu_blocks(model)
    for mlp in blocks:
        if hasattr(mlp, "intermediate_size"):
            mlp.intermediate_size = mlp.down_proj.in_features
    model.config.get_text_config().intermediate_size = max(mlp.down_proj.in_features for mlp in blocks)
