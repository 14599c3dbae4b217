"""Choose neurons, try the cut, make it real, save it.

Contents: `NeuronSelection`, `select_neurons`, `refine_scores` (the best of a score tried one by
one), `ablate` (reversible), `prune` (smaller matrices), `save_model`, `removed_neurons` (what
somebody else cut); `skipping` runs a model from one of its layers on.

Zeroing neuron i's gate row, its up row or its down column, or its activation `h_i`, is one and the
same cut in a GLU without biases whose activation function maps 0 to 0. `ablate` acts on `h_i`, so
it equals `prune` with biases too.
"""

import copy
import json
import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fairlab.capture import refuse_own_hooks
from fairlab.files import check_output_folder, replace_folder
from fairlab.gates import gate
from fairlab.models import decoder_layers, glu_blocks, glu_weights
from fairlab.pairs import PromptPair, as_pairs
from fairlab.passes import (
    check_option,
    divergence,
    full_precision,
    next_log_p,
    pair_batches,
    progress,
    skipping,
)

FILES_OF_A_MODEL = frozenset(
    {
        "added_tokens.json",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "merges.txt",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer_config.json",
        "vocab.json",
        "vocab.txt",
    }
)
BESIDE_A_MODEL = (
    "README.md",
    "report.html",
    "report.json",
    "selection.json",
)  # what fairlab writes about a model


@dataclass(frozen=True)
class NeuronSelection:
    """Neurons of one model: which, of what shape of model, and how they were chosen.

    Raises
    ------
    ValueError
        A layer or neuron that the shape does not have, a neuron named twice, or a layer that would
        lose all its neurons.
    """

    neurons: Mapping[
        int, tuple[int, ...]
    ]  # layer → neuron indices, sorted; layers without a cut are left out
    shape: tuple[int, int]  # (layers, neurons in each layer) of the model
    how: str = ""  # how they were chosen, for people

    def __post_init__(self) -> None:
        layers, width = (_whole("shape", size) for size in self.shape)
        tidy = {}
        for layer in sorted(self.neurons):
            indices = sorted(_whole("neurons", index) for index in self.neurons[layer])
            if indices:
                tidy[_whole("neurons", layer)] = tuple(indices)
        for layer, indices in tidy.items():
            if layer not in range(layers) or indices[0] < 0 or indices[-1] >= width:
                raise ValueError(
                    f"neurons: expected layers below {layers} and indices below {width}; got layer {layer}, "
                    f"indices from {indices[0]} to {indices[-1]}"
                )
            if len(set(indices)) < len(indices):
                raise ValueError(f"neurons: layer {layer} names a neuron twice")
            if len(indices) == width:
                raise ValueError(
                    f"neurons: layer {layer} would lose all of its {width} neurons; leave at least one"
                )
        object.__setattr__(self, "neurons", tidy)
        object.__setattr__(self, "shape", (layers, width))

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
        """Read what `to_json` wrote.

        Raises
        ------
        ValueError
            Not JSON; other keys than "shape", "how" and "neurons"; a layer named twice; layers or
            indices that are no whole numbers.
        """

        def each_key_once(items: list[tuple[str, object]]) -> dict:
            keys = [key for key, _ in items]
            if len(set(keys)) < len(keys):
                raise ValueError(f"text: a key stands twice in one object: {', '.join(keys)}")
            return dict(items)

        data = json.loads(text, object_pairs_hook=each_key_once)
        if not isinstance(data, dict) or set(data) != {"shape", "how", "neurons"}:
            found = ", ".join(data) if isinstance(data, dict) else type(data).__name__
            raise ValueError(f"text: expected the keys shape, how and neurons; got {found}")
        shape, neurons = data["shape"], data["neurons"]
        if not isinstance(shape, list) or len(shape) != 2 or not isinstance(neurons, dict):
            raise ValueError(
                "text: expected two numbers as shape, and a list of indices for each layer"
            )
        for layer, indices in neurons.items():
            if not layer.isdecimal() or not isinstance(indices, list):
                raise ValueError(
                    f"text: expected layer numbers, each with a list of indices; got {layer!r}: {indices!r}"
                )
        return cls(
            {int(layer): tuple(indices) for layer, indices in neurons.items()},
            tuple(shape),
            str(data["how"]),
        )


def _whole(argument: str, value: object) -> int:
    """Return a whole number as int; refuse everything else, such as 1.9 or True."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise ValueError(f"{argument}: expected whole numbers; got {value!r}")
    return int(value)


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
        Share to select, between 0 and 1: `min(int(fraction · neurons), neurons − 1)` in each layer,
        or `int(fraction · layers · neurons)` in all with scope="model". The article takes 0.002.
    count : int
        Instead of a fraction: how many, in each layer or in all.
    scope : str
        "layer": the same number in every layer. "model": one ranking over all layers; it compares
        scores across layers, which hybrid scores are not made for.
    how : str
        A note for people on where the scores come from.

    Raises
    ------
    ValueError
        Not one of fraction and count; a value that selects no neuron, all of a layer, or ones that
        must stay; NaN scores.
    """
    check_option("scope", scope, ("layer", "model"))
    if scores.ndim != 2:
        raise ValueError(f"scores: expected the shape (layers, neurons); got {tuple(scores.shape)}")
    if scores.isnan().any() or (scores == math.inf).any():
        raise ValueError(
            "scores: expected numbers (−inf for neurons that must stay); got NaN or +inf"
        )
    if (fraction is None) == (count is None):
        raise ValueError(
            f"fraction, count: give exactly one; got fraction={fraction!r} and count={count!r}"
        )
    layers, width = scores.shape
    pool = width if scope == "layer" else layers * width
    if fraction is not None:
        if not isinstance(fraction, float) or not 0 < fraction < 1:
            raise ValueError(
                f"fraction: expected a float between 0 and 1 (0.002 is 0.2 %); got {fraction!r}"
            )
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
        raise ValueError(
            "scores: too few neurons may be cut (the rest is −inf); lower fraction or count"
        )
    return NeuronSelection(neurons, (layers, width), f"{how}: {note}" if how else note)


@full_precision()
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
    """Remove each of the neurons with the highest scores alone, and score it by what that does to
    the gap.

    ::

        gap before − gap after − charge · |neutral gap before − neutral gap after|

    The gap is the mean of `next_token_divergence` over pairs. A first-order score ("attribution")
    is wrong where one neuron's activation is huge; this costs one forward pass a neuron and batch,
    through the layers above it only.

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
        Float32, shape (layers, neurons), in nats; positive: removing the neuron alone narrows the
        gap. −inf for all that were not tried. Effects of several neurons do not add up exactly.

    Raises
    ------
    ValueError
        Scores, count or pairs that `select_neurons` or `next_token_divergence` refuses, a negative
        charge, or gaps that are not finite.
    """
    if not 0 <= charge < math.inf:
        raise ValueError(f"charge: expected a number of at least 0; got {charge!r}")
    shortlist = select_neurons(scores, count=count, scope="model")
    _matching_blocks(model, shortlist)
    gain = _narrowings(model, tokenizer, as_pairs(pairs), shortlist, batch_size)
    if neutral is not None:
        gain -= (
            charge * _narrowings(model, tokenizer, as_pairs(neutral), shortlist, batch_size).abs()
        )
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
                handle = layer.register_forward_pre_hook(
                    lambda module, inputs, kept=entering: kept.append(inputs[0])
                )
                stack.callback(handle.remove)
            before = divergence(next_log_p(model, batch), batch)
        for place, (layer, index) in enumerate(progress(neurons, desc="ablations", unit="neuron")):
            alone = NeuronSelection({layer: (index,)}, selection.shape)
            with torch.no_grad(), ablate(model, alone), skipping(layers[:layer], entering[layer]):
                falls[place] += (before - divergence(next_log_p(model, batch), batch)).sum().cpu()
    if not torch.isfinite(falls).all():
        raise ValueError("model: its next-token probabilities are not finite; look for NaN weights")
    return falls / len(pairs)


@contextmanager
def ablate(
    model: PreTrainedModel, selection: NeuronSelection, *, scale: float = 0.0
) -> Iterator[None]:
    """Multiply the activations `h` of the selected neurons by `scale` inside the `with` block.

    This is `gate` with `scale` as the gate of these neurons and 1 as that of all others.

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
    _matching_blocks(model, selection)
    gates = torch.ones(
        selection.shape, dtype=torch.promote_types(model.dtype, torch.float32)
    )  # (layers, neurons)
    for layer, indices in selection.neurons.items():
        gates[layer, list(indices)] = scale
    with gate(model, gates):
        yield


def prune(
    model: PreTrainedModel, selection: NeuronSelection, *, inplace: bool = False
) -> PreTrainedModel:
    """Remove the selected neurons: smaller matrices, fewer parameters.

    Rows of `gate_proj` and `up_proj` (or of both halves of `gate_up_proj`), their biases, and
    columns of `down_proj` are left out; all else is kept to the bit. `config.intermediate_size`
    becomes the width of the widest layer.

    Parameters
    ----------
    inplace : bool
        False: return a new model and leave the old one as it is. True: cut the model given in the
        memory that it has; tensors taken from its MLPs before are overwritten.

    Returns
    -------
    PreTrainedModel
        The cut model. It works on the meta device too, where weights have no values.

    Raises
    ------
    ValueError
        A selection for a model of another shape, a model without GLU neurons, or one inside
        `ablate` or `record`, whose hooks a copy would keep for ever.
    """
    blocks = _matching_blocks(model, selection)
    refuse_own_hooks(model)
    cut: dict[
        int, nn.Linear
    ] = {}  # id of a projection → its smaller stand-in, which deepcopy puts in its place
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
                spare = (
                    projection.weight.detach()
                )  # the next matrix goes here: no memory is asked for
            else:
                cut[id(projection)] = smaller
    if not inplace:
        model = copy.deepcopy(model, cut)
    _update_widths(model)
    return model


def save_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: str | Path,
    *,
    force: bool = False,
) -> None:
    """Save a model and its tokenizer such that stock `AutoModelForCausalLM.from_pretrained(folder)`
    loads it.

    Layers of equal width are saved as they are: the same logits to the bit. Configurations know one
    width for all layers, so where widths differ every layer is padded with zero neurons to the
    widest one: the same function, with sums in another order.

    Everything is written to a folder beside `folder`, which takes its name when it is complete.

    Parameters
    ----------
    folder : path
        A new folder, an empty one, or one that holds what fairlab writes about a model: README.md,
        report.html, report.json, selection.json.
    force : bool
        Whether to replace the model in a folder that holds one. All weights, tokenizer and
        configuration files in it go; other files stay.

    Raises
    ------
    ValueError
        `folder` is a file, holds something and `force` is not given, is the current folder, or
        can't be written; or the model is inside `ablate` or `record`.
    """
    folder = check_output_folder("folder", folder, beside=BESIDE_A_MODEL, force=force)
    refuse_own_hooks(model)
    blocks = glu_blocks(model)
    widest = max(mlp.down_proj.in_features for mlp in blocks)
    if any(mlp.down_proj.in_features < widest for mlp in blocks):
        # what deepcopy finds here it takes as it is: only the MLPs cost memory
        stand_ins: dict[int, object] = {
            id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())
        }
        for mlp in blocks:
            for name, projection in mlp.named_children():
                if isinstance(projection, nn.Linear):
                    stand_ins[id(projection)] = _pad(projection, widest, name)
        model = copy.deepcopy(model, stand_ins)
        _update_widths(model)

    def fill(fresh: Path) -> None:
        model.save_pretrained(fresh)
        tokenizer.save_pretrained(fresh)

    replace_folder(folder, fill, stale=_is_of_a_model)


def _is_of_a_model(name: str) -> bool:
    """Say whether a file name is one of weights, tokenizer or configuration, as transformers writes
    them."""
    weights = re.fullmatch(
        r"(model|pytorch_model)(-\d+-of-\d+)?\.(safetensors|bin)(\.index\.json)?", name
    )
    return bool(weights) or name in FILES_OF_A_MODEL


def removed_neurons(model: PreTrainedModel, pruned: PreTrainedModel) -> NeuronSelection:
    """Find which neurons of a model are missing in a pruned copy of it, such as a published one.

    A neuron is recognised by its gate row, up row and down column together, which must be equal to
    the bit; in which order the copy keeps its neurons does not matter, and neurons of zeros in it
    count as missing. The model's weights are cast to the dtype of the copy first, so a bfloat16
    checkpoint can be compared with a float16 copy.

    Returns
    -------
    NeuronSelection
        For the shape of `model`; empty if none is missing.

    Raises
    ------
    ValueError
        Unequal numbers of layers; layers of unequal width in `model`; or a neuron of the copy that
        the model does not have, as after fine-tuning.
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


def _linear(weight: Tensor, bias: Tensor | None, like: nn.Linear) -> nn.Linear:
    new = nn.Linear(
        weight.shape[1], weight.shape[0], bias=bias is not None, device="meta"
    )  # meta: nothing is initialised
    new.weight = nn.Parameter(weight, requires_grad=like.weight.requires_grad)
    if bias is not None:
        new.bias = nn.Parameter(bias, requires_grad=like.bias.requires_grad)
    return new.train(like.training)


def _leave_out(
    projection: nn.Linear, indices: Sequence[int], dim: int, spare: Tensor | None
) -> nn.Linear:
    """Copy a projection without some rows (dim 0) or columns (dim 1), in one go between one of them
    and the next."""

    def left(tensor: Tensor, dim: int, out: Tensor | None = None) -> Tensor:
        starts, ends = [0, *(i + 1 for i in indices)], [*indices, tensor.shape[dim]]
        parts = [
            tensor.narrow(dim, start, end - start) for start, end in zip(starts, ends, strict=True)
        ]
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
    return _linear(
        left(weight, dim, spare.flatten()[: math.prod(shape)].view(shape)), bias, projection
    )


def _pad(projection: nn.Linear, width: int, name: str) -> nn.Linear:
    weight, bias = projection.weight.detach(), projection.bias
    bias = None if bias is None else bias.detach()
    if name == "down_proj":
        return _linear(nn.functional.pad(weight, (0, width - weight.shape[1])), bias, projection)
    parts = 2 if name == "gate_up_proj" else 1
    missing = width - weight.shape[0] // parts
    weight = torch.cat(
        [nn.functional.pad(part, (0, 0, 0, missing)) for part in weight.chunk(parts)]
    )
    if bias is not None:
        bias = torch.cat([nn.functional.pad(part, (0, missing)) for part in bias.chunk(parts)])
    return _linear(weight, bias, projection)


def _update_widths(model: PreTrainedModel) -> None:
    blocks = glu_blocks(model)
    for mlp in blocks:
        if hasattr(mlp, "intermediate_size"):
            mlp.intermediate_size = mlp.down_proj.in_features
    model.config.get_text_config().intermediate_size = max(
        mlp.down_proj.in_features for mlp in blocks
    )
