"""Choose neurons, try the cut, make it real, save it.

Contents: `NeuronSelection`, `select_neurons`, `refine_scores` (tries the neurons with the highest
scores one by one), `ablate` (reversible), `prune` (smaller matrices), `save_model`,
`removed_neurons` (what somebody else cut).

Zeroing neuron i's gate row, its up row or its down column, or its activation `h_i`, is one and the
same cut in a GLU without biases whose activation function maps 0 to 0. `ablate` acts on `h_i`, so
it equals `prune` with biases too.
"""

import copy
import json
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from numbers import Integral
from pathlib import Path
from typing import Literal

import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fairlab.capture import refuse_own_hooks
from fairlab.files import (
    check_output,
    check_output_folder,
    check_room,
    replace_folder,
    write_text,
)
from fairlab.gates import gate
from fairlab.models import (
    check_dtype,
    copy_model,
    decoder_layers,
    glu_blocks,
    glu_weights,
    neuron_counts,
    refuse_offloaded,
    source_dtype,
    weights_at_hand,
)
from fairlab.pairs import (
    PromptPair,
    as_pairs,
    check_is_tokenizer,
    check_kind,
    check_string,
)
from fairlab.passes import (
    check_fraction,
    check_option,
    check_probabilities,
    check_scale,
    check_whole,
    divergence,
    halving,
    layer_inputs,
    next_log_p,
    pair_batches,
    progress,
    skipping,
)
from fairlab.precision import full_precision
from fairlab.scores import check_tables
from fairlab.weights import is_of_a_model

# what fairlab writes about a model
BESIDE_A_MODEL = ("README.md", "report.html", "report.json", "selection.json")


@dataclass(frozen=True)
class NeuronSelection:
    """Neurons of one model: which, of what shape of model, and how they were chosen.

    Parameters
    ----------
    neurons : dict of int to tuple of int
        Layer → neuron indices, sorted; layers without a cut are left out.
    shape : (int, int)
        Layers, and neurons in each layer, of the model.
    how : str
        How they were chosen, for people.

    Raises
    ------
    ValueError
        A layer or neuron that the shape does not have, a neuron named twice, or a layer that would
        lose all its neurons.
    """

    neurons: Mapping[int, tuple[int, ...]]
    shape: tuple[int, int]
    how: str = ""

    def __post_init__(self) -> None:
        layers, width = _check_shape(self.shape)
        check_string("how", self.how)
        tidy = {}
        expected = "layer → indices, such as {0: (3, 5)}"
        check_kind("neurons", self.neurons, Mapping, expected)
        try:
            rows = {_whole_number("neurons", layer): [*row] for layer, row in self.neurons.items()}
        except TypeError as error:
            raise ValueError(f"neurons: expected {expected}; got {self.neurons!r}") from error
        for layer, row in sorted(rows.items()):
            indices = sorted(_whole_number("neurons", index) for index in row)
            if indices:
                tidy[layer] = tuple(indices)
        for layer, indices in tidy.items():
            if layer not in range(layers) or indices[0] < 0 or indices[-1] >= width:
                raise ValueError(
                    f"neurons: expected layers below {layers} and indices below {width}; "
                    f"got layer {layer}, indices from {indices[0]} to {indices[-1]}"
                )
            if len(set(indices)) < len(indices):
                raise ValueError(f"neurons: layer {layer} names a neuron twice")
            if len(indices) == width:
                raise ValueError(
                    f"neurons: layer {layer} would lose all of its {width} neurons; "
                    "leave at least one"
                )
        # the dataclass is frozen, so its fields are set through object
        object.__setattr__(self, "neurons", tidy)
        object.__setattr__(self, "shape", (layers, width))

    def __len__(self) -> int:
        """Return the number of neurons."""
        return sum(map(len, self.neurons.values()))

    def __repr__(self) -> str:
        layers, width = self.shape
        cut_layers = f"{len(self.neurons)} of {layers} layers of {width}"
        return f"NeuronSelection({len(self)} neurons in {cut_layers}; {self.how})"

    def to_json(self) -> str:
        """Return the selection as strict JSON."""
        neurons = {str(layer): list(indices) for layer, indices in self.neurons.items()}
        return json.dumps({"shape": list(self.shape), "how": self.how, "neurons": neurons})

    @classmethod
    def from_json(cls, text: str) -> "NeuronSelection":
        """Read what `to_json` wrote.

        Parameters
        ----------
        text : str
            The JSON itself, not the path of a file.

        Raises
        ------
        ValueError
            Not JSON; other keys than "shape", "how" and "neurons"; a layer named twice; layers or
            indices that are no whole numbers.
        """
        data = json_object(text, ("shape", "how", "neurons"))
        shape, neurons = data["shape"], data["neurons"]
        if not isinstance(shape, list) or len(shape) != 2 or not isinstance(neurons, dict):
            raise ValueError(
                "text: expected two numbers as shape, and a list of indices for each layer"
            )
        by_layer = {}
        for layer, indices in neurons.items():
            if not is_whole_key(layer) or not isinstance(indices, list):
                raise ValueError(
                    "text: expected layer numbers, each with a list of indices; "
                    f"got {layer!r}: {indices!r}"
                )
            by_layer[int(layer)] = tuple(indices)
        return cls(by_layer, tuple(shape), str(data["how"]))


def json_object(text: str, keys: tuple[str, ...]) -> dict:
    """Read a JSON object that has these keys and no others, each of them once."""
    check_string("text", text)
    try:
        data = json.loads(text, object_pairs_hook=_refuse_repeated_keys)
    except json.JSONDecodeError as error:
        raise ValueError(f"text: expected JSON; {error}") from error
    if not isinstance(data, dict) or set(data) != set(keys):
        got = ", ".join(data) if isinstance(data, dict) else type(data).__name__
        names = f"{', '.join(keys[:-1])} and {keys[-1]}"
        raise ValueError(f"text: expected the keys {names}; got {got}")
    return data


def _refuse_repeated_keys(items: list[tuple[str, object]]) -> dict:
    """Make the dict of a JSON object; plain `json.loads` keeps the last of equal keys."""
    keys = [key for key, _ in items]
    if len(set(keys)) < len(keys):
        raise ValueError(f"text: a key stands twice in one object: {', '.join(keys)}")
    return dict(items)


def is_whole_key(key: str) -> bool:
    """Say whether a key is a whole number as `to_json` writes it: "01" would be a second "1"."""
    return key.isdecimal() and str(int(key)) == key


def _check_shape(shape: object) -> tuple[int, int]:
    """Return the shape of a model, (layers, neurons); refuse all else."""
    sizes = tuple(shape) if isinstance(shape, Sequence) else ()
    sizes = tuple(_whole_number("shape", size) for size in sizes)
    if len(sizes) != 2 or min(sizes) < 1:
        raise ValueError(
            f"shape: expected two numbers above 0, (layers, neurons of a layer); got {shape!r}"
        )
    return sizes


def _whole_number(argument: str, value: object) -> int:
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
    check_string("how", how)
    _check_scores(scores)
    layers, width = scores.shape
    candidates = width if scope == "layer" else layers * width
    if (fraction is None) == (count is None):
        raise ValueError(
            f"fraction, count: give exactly one; got fraction={fraction!r} and count={count!r}"
        )
    if fraction is not None:
        count = count_of_fraction(fraction, candidates)
        note = f"fraction {fraction:g} of " + ("each layer" if scope == "layer" else "the model")
    else:
        count = check_whole("count", count, 1, candidates - 1)
        note = f"{count} in each layer" if scope == "layer" else f"{count} in all"
    neurons = _highest(scores, count, scope)
    return NeuronSelection(neurons, (layers, width), f"{how}: {note}" if how else note)


def _check_scores(scores: Tensor) -> None:
    check_tables({"scores": scores})
    if scores.isnan().any() or (scores == math.inf).any():
        raise ValueError(
            "scores: expected numbers (−inf for neurons that must stay); got NaN or +inf"
        )


def count_of_fraction(fraction: float, candidates: int) -> int:
    """Return how many neurons a fraction selects: at least one, and never all."""
    fraction = check_fraction(fraction)
    count = min(int(fraction * candidates), candidates - 1)
    if count == 0:
        smallest = math.ceil(1e6 / candidates) / 1e6
        raise ValueError(
            f"fraction: {fraction} of {candidates} neurons is less than one neuron; "
            f"the smallest is {smallest:g}"
        )
    return count


def _highest(scores: Tensor, count: int, scope: str) -> dict[int, list[int]]:
    """Return layer → indices of the `count` highest scores, of each layer or of all together."""
    if scope == "layer":
        top = scores.topk(count, dim=1)
        neurons = dict(enumerate(top.indices.tolist()))
    else:
        top = scores.flatten().topk(count)
        neurons = defaultdict(list)
        for number in top.indices.tolist():
            layer, index = divmod(number, scores.shape[1])
            neurons[layer].append(index)
    if (top.values == -math.inf).any():
        raise ValueError(
            "scores: too few neurons may be cut (the rest is −inf); lower fraction or count"
        )
    return neurons


@full_precision()
@halving(2)
def refine_scores(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    scores: Tensor,
    pairs: Sequence[PromptPair],
    *,
    count: int = 150,
    batch_size: int = 32,
) -> Tensor:
    """Remove each of the neurons with the highest scores on its own, and score it by that.

    ::

        gap before − gap after

    The gap is the mean of `next_token_divergence` over pairs. A first-order score ("attribution")
    is wrong where one neuron's activation is huge; this costs one forward pass a neuron and batch,
    through its own layer and those above it only.

    Parameters
    ----------
    scores : Tensor
        Shape (layers, neurons), any score; higher = cut first.
    count : int
        How many neurons of the whole model to try.

    Returns
    -------
    Tensor
        Float32, shape (layers, neurons), in nats; positive: removing the neuron alone narrows the
        gap. −inf for all that were not tried. Effects of several neurons do not add up exactly.

    Raises
    ------
    ValueError
        Scores, count or pairs that `select_neurons` or `next_token_divergence` refuses, or gaps
        that are not finite.
    """
    shortlist = select_neurons(scores, count=count, scope="model")
    matching_blocks(model, shortlist, argument="scores")
    gain = _gap_decreases(model, tokenizer, as_pairs(pairs), shortlist, batch_size)
    refined = torch.full(scores.shape, -math.inf)  # (layers, neurons)
    for (layer, index), value in zip(_places(shortlist), gain, strict=True):
        refined[layer, index] = value
    return refined


def _gap_decreases(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[PromptPair],
    selection: NeuronSelection,
    batch_size: int,
) -> Tensor:
    """Measure by how much the mean gap falls if each of the selected neurons alone is removed."""
    neurons = _places(selection)
    decreases = torch.zeros(len(neurons), dtype=torch.promote_types(model.dtype, torch.float32))
    layers = decoder_layers(model)
    for batch in pair_batches(model, tokenizer, pairs, aligned=False, batch_size=batch_size):
        with torch.no_grad():
            # what enters each layer stays the same when a neuron of a later one is removed
            with layer_inputs(layers) as inputs:
                before = divergence(next_log_p(model, batch), batch)  # (pairs,)
            for place, (layer, index) in enumerate(
                progress(neurons, desc="ablations", unit="neuron")
            ):
                alone = NeuronSelection({layer: (index,)}, selection.shape)
                with ablate(model, alone), skipping(layers[:layer], inputs[layer]):
                    after = divergence(next_log_p(model, batch), batch)
                decreases[place] += (before - after).sum().cpu()
    check_probabilities(decreases)
    return decreases / len(pairs)


def _places(selection: NeuronSelection) -> list[tuple[int, int]]:
    """List the selected neurons as (layer, index)."""
    return [(layer, index) for layer, indices in selection.neurons.items() for index in indices]


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
    scale = check_scale(scale)
    matching_blocks(model, selection)
    precise = torch.promote_types(model.dtype, torch.float32)
    gates = torch.ones(selection.shape, dtype=precise)  # (layers, neurons)
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
        memory that it has, and that of one MLP more; tensors taken from its MLPs before are
        overwritten. Where it is stopped in the middle, some layers are cut and the others whole.

    Returns
    -------
    PreTrainedModel
        The cut model. It works on the meta device too, where weights have no values.

    Raises
    ------
    ValueError
        A selection for a model of another shape, a model without GLU neurons, one with offloaded
        weights, or one inside `ablate` or `record`, whose hooks a copy would keep for ever.
    """
    blocks = matching_blocks(model, selection)
    refuse_own_hooks(model)
    refuse_offloaded(model, "cut")
    if inplace:
        try:
            _shrink_in_place(blocks, selection)
        finally:
            _update_widths(model)
    else:
        smaller = {}  # id of a projection → its smaller one, which deepcopy puts in its place
        for layer, indices in selection.neurons.items():
            for name, projection in _projections(blocks[layer]):
                smaller[id(projection)] = _leave_out(projection, name, indices)
        model = copy_model(model, smaller)
        _update_widths(model)
    return model


def _shrink_in_place(blocks: Sequence[nn.Module], selection: NeuronSelection) -> None:
    """Put smaller projections in place of those in the model. Each is written over the matrix that
    was replaced in the layer before, so no more memory is asked for than that of one MLP."""
    spare = {}  # name of a projection → a matrix that is no more in the model
    for layer, indices in selection.neurons.items():
        projections = dict(_projections(blocks[layer]))
        smaller = {}
        for name, projection in projections.items():
            smaller[name] = _leave_out(projection, name, indices, spare.get(name))
        # all at once: where the user stops it, a layer is as it was or is cut
        blocks[layer]._modules.update(smaller)
        spare = {name: projection.weight.detach() for name, projection in projections.items()}


def _projections(mlp: nn.Module) -> list[tuple[str, nn.Linear]]:
    """List the matrices of an MLP by name, gate and up before down."""
    names = ("gate_proj", "up_proj", "gate_up_proj", "down_proj")
    return [(name, getattr(mlp, name)) for name in names if hasattr(mlp, name)]


def save_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: str | Path,
    *,
    dtype: str | torch.dtype = "auto",
    force: bool = False,
    beside: Mapping[str, str | None] | None = None,
) -> None:
    """Save a model and its tokenizer such that stock transformers loads them, 4 as well as 5.

    Layers of equal width are saved as they are: the same weights to the bit. Configurations know
    one width for all layers, so where widths differ every layer is padded with zero neurons to the
    widest one: the same function, with sums in another order.

    Everything is written to a folder beside `folder`, which takes its name when it is complete.

    Parameters
    ----------
    folder : path
        A new folder, an empty one, or one that holds what fairlab writes about a model: README.md,
        report.html, report.json, selection.json.
    dtype : str or torch.dtype
        "auto": a model that was loaded from a smaller dtype than it has, such as bfloat16 weights
        that are measured in float32, is saved in that one if this changes no weight, as after
        `prune`; else in its own, as after `fold_gates` or training. Or a dtype, to which all
        weights are rounded.
    force : bool
        Whether to replace the model in a folder that holds one. All weights, tokenizer and
        configuration files in it go; other files stay.
    beside : dict of str to str or None, optional
        What fairlab writes about a model, by the names above, such as
        {"selection.json": cut.to_json()}: it takes its place in one step with the weights. With
        None and `force`, an old file goes that lay beside the model that goes.

    Raises
    ------
    ValueError
        `folder` is a file, holds something and `force` is not given, is the current folder, or
        can't be written; the dtype is none; `beside` has other names, or one that is there and
        `force` is not given; or the model has offloaded weights, or is inside `ablate` or
        `record`.
    """
    dtype = check_dtype(dtype)
    folder = check_output_folder("folder", folder, beside=BESIDE_A_MODEL, force=force)
    texts = _texts_beside(folder, beside, force)
    refuse_own_hooks(model)
    refuse_offloaded(model, "saved")
    check_is_tokenizer(tokenizer)
    model = _in_dtype(model, _dtype_to_save(model) if dtype == "auto" else dtype)
    blocks = glu_blocks(model)
    if len({mlp.down_proj.in_features for mlp in blocks}) > 1:
        model = _with_equal_widths(model)

    def write(new_folder: Path) -> None:
        check_room(new_folder, sum(tensor.nbytes for tensor in model.parameters()))
        model.save_pretrained(new_folder)
        tokenizer.save_pretrained(new_folder)
        _say_it_to_older_releases(new_folder)
        for name, text in texts.items():
            write_text(new_folder / name, text)

    def stale(name: str) -> bool:
        return is_of_a_model(name) or (name in gone and name not in texts)

    # what lies in a folder without a model is not about an old one
    has_model = folder.is_dir() and any(is_of_a_model(file.name) for file in folder.iterdir())
    gone = set(beside or ()) if has_model else set()
    replace_folder(folder, write, stale=stale)


def _say_it_to_older_releases(folder: Path) -> None:
    """Write the base of the rotary positions, and the tokenizer's class, under the names that
    transformers 4 reads, too: it would take another base without a word."""
    file = folder / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    for part in (config, *(value for value in config.values() if isinstance(value, dict))):
        rope = part.get("rope_parameters") or {}
        local = rope.get("sliding_attention") or {}
        rope = rope.get("full_attention") or rope  # one for each kind of layer, as in Gemma 3
        scaling = {key: value for key, value in rope.items() if key != "rope_theta"}
        if "rope_theta" in rope:
            part["rope_theta"] = rope["rope_theta"]
        if "rope_theta" in local:
            part["rope_local_base_freq"] = local["rope_theta"]
        if "partial_rotary_factor" in scaling:
            part["partial_rotary_factor"] = scaling.pop("partial_rotary_factor")
        if scaling.get("rope_type", "default") != "default":
            part["rope_scaling"] = scaling
    write_text(file, json.dumps(config, indent=2, sort_keys=True) + "\n")

    file = folder / "tokenizer_config.json"
    if file.is_file():
        settings = json.loads(file.read_text(encoding="utf-8"))
        if settings.get("tokenizer_class") == "TokenizersBackend":
            settings["tokenizer_class"] = "PreTrainedTokenizerFast"
        if isinstance(settings.get("extra_special_tokens"), list):
            settings["additional_special_tokens"] = settings.pop("extra_special_tokens")
        write_text(file, json.dumps(settings, indent=2, ensure_ascii=False) + "\n")


def _texts_beside(
    folder: Path, beside: Mapping[str, str | None] | None, force: bool
) -> dict[str, str]:
    """Return the texts that are to be written beside a model; refuse other names than fairlab's,
    and the place of a file that is there."""
    beside = {} if beside is None else beside
    check_kind("beside", beside, Mapping, "a dict of texts by the names of files")
    if not set(beside) <= set(BESIDE_A_MODEL):
        got = ", ".join(map(str, beside))
        raise ValueError(f"beside: expected names of {', '.join(BESIDE_A_MODEL)}; got {got}")
    texts = {name: text for name, text in beside.items() if text is not None}
    for name, text in texts.items():
        check_string("beside", text)
        check_output("beside", folder / name, force=force)
    return texts


def _dtype_to_save(model: PreTrainedModel) -> torch.dtype:
    """Return the dtype of the weights that a model was loaded from, if it is smaller than the
    model's own and holds every weight; else the model's own."""
    stored = source_dtype(model)
    if stored is None or stored.itemsize >= model.dtype.itemsize:
        return model.dtype
    for tensor in model.parameters():
        if not torch.equal(tensor.to(stored).to(tensor.dtype), tensor):
            return model.dtype
    return stored


def _in_dtype(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """Return a model with parameters of a dtype; the one given stays as it is."""
    if all(tensor.dtype == dtype for tensor in model.parameters()):
        return model
    # deepcopy takes what it finds here instead of a copy
    replacements: dict[int, object] = {id(tensor): tensor for tensor in model.buffers()}
    for tensor in model.parameters():
        # a GPU may have no room for a second copy
        rounded = tensor.detach().to("cpu", dtype)
        replacements[id(tensor)] = nn.Parameter(rounded, requires_grad=tensor.requires_grad)
    return copy.deepcopy(model, replacements)


def _with_equal_widths(model: PreTrainedModel) -> PreTrainedModel:
    """Return a model whose layers are padded with zero neurons to the widest one. It shares all
    other tensors with the model given, so only the MLPs cost memory."""
    widest = max(mlp.down_proj.in_features for mlp in glu_blocks(model))
    # deepcopy takes what it finds here instead of a copy
    replacements: dict[int, object] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        replacements[id(tensor)] = tensor
    for mlp in glu_blocks(model):
        for name, projection in _projections(mlp):
            replacements[id(projection)] = _pad(projection, widest, name)
    padded = copy.deepcopy(model, replacements)
    _update_widths(padded)
    return padded


def removed_neurons(model: PreTrainedModel, pruned: PreTrainedModel) -> NeuronSelection:
    """Find which neurons of a model are missing in a pruned copy of it, such as a published one.

    A neuron is recognised by its gate row, up row and down column together, which must be equal to
    the bit (biases are not compared); in which order the copy keeps its neurons does not matter.
    Neurons of zeros are none: they count as missing in the copy, and not at all in the model. The
    model's weights are cast to the dtype of the copy first, so a bfloat16 checkpoint can be
    compared with a float16 copy.

    Parameters
    ----------
    pruned : PreTrainedModel
        The copy, of as many layers.

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
    check_kind("pruned", pruned, PreTrainedModel, "a PreTrainedModel, such as prune returns")
    blocks, smaller = glu_blocks(model), glu_blocks(pruned)
    widths = {mlp.down_proj.in_features for mlp in blocks}
    if len(blocks) != len(smaller) or len(widths) != 1:
        raise ValueError(
            "model, pruned: expected as many layers in both, of one width in the model; "
            f"got {len(blocks)} and {len(smaller)} layers, "
            f"of {' or '.join(map(str, sorted(widths)))} neurons"
        )
    neurons = {}
    for layer, (whole, cut) in enumerate(zip(blocks, smaller, strict=True)):
        # from a neuron's weights to its index; equal neurons share an entry
        missing = defaultdict(list)
        for index, key in enumerate(_neuron_bytes(whole, cut.down_proj.weight.dtype)):
            if any(key):  # a neuron of zeros is padding
                missing[key].append(index)
        for index, key in enumerate(_neuron_bytes(cut, cut.down_proj.weight.dtype)):
            if not any(key):
                continue
            if not missing[key]:
                raise ValueError(
                    f"pruned: neuron {index} of layer {layer} is none of the model's; "
                    "were weights changed?"
                )
            missing[key].pop()
        neurons[layer] = tuple(chain.from_iterable(missing.values()))
    return NeuronSelection(neurons, (len(blocks), widths.pop()), "missing in the pruned model")


def matching_blocks(
    model: PreTrainedModel, cut: object, kind: type = NeuronSelection, argument: str = "selection"
) -> list[nn.Module]:
    """Return the MLPs of a model; refuse what is no cut of a kind, or for another shape."""
    blocks, widths = glu_blocks(model), set(neuron_counts(model))
    check_kind(argument, cut, kind, f"a {kind.__name__}")
    layers, width = cut.shape
    if (len(blocks), widths) != (layers, {width}):
        model_widths = " or ".join(map(str, sorted(widths)))
        raise ValueError(
            f"{argument}: made for {layers} layers of {width} neurons, "
            f"but the model has {len(blocks)} layers of {model_widths}"
        )
    return blocks


def _neuron_bytes(mlp: nn.Module, dtype: torch.dtype) -> list[bytes]:
    """Return all weights of each neuron as bytes, which can be keys of a dict."""
    with weights_at_hand(mlp):
        gate, up, down = glu_weights(mlp)
        rows = torch.cat([gate, up, down.T], dim=1).to("cpu", dtype).contiguous()
    rows = rows + 0  # −0 becomes 0
    return [row.numpy().tobytes() for row in rows.view(torch.uint8)]


def _linear(weight: Tensor, bias: Tensor | None, like: nn.Linear) -> nn.Linear:
    """Make a projection of given weights, with the settings of another one."""
    outputs, inputs = weight.shape
    # on the meta device no weights are initialised, only to be thrown away
    projection = nn.Linear(inputs, outputs, bias=bias is not None, device="meta")
    projection.weight = nn.Parameter(weight, requires_grad=like.weight.requires_grad)
    if bias is not None:
        projection.bias = nn.Parameter(bias, requires_grad=like.bias.requires_grad)
    if hasattr(like, "_hf_hook"):  # of a model on several devices: brings the input to the weights
        add_hook_to_module(projection, AlignDevicesHook(like._hf_hook.execution_device))
    return projection.train(like.training)


def _leave_out(
    projection: nn.Linear, name: str, neurons: Sequence[int], spare: Tensor | None = None
) -> nn.Linear:
    """Copy a projection without some neurons: columns of `down_proj`, rows of the others. The copy
    lies in the memory of `spare` where that is of the same kind and large enough."""
    weight = projection.weight.detach()
    bias = None if projection.bias is None else projection.bias.detach()
    if name == "down_proj":
        bias = None if bias is None else bias.clone()
        return _linear(_without_slices(weight, 1, neurons, spare), bias, projection)
    if name == "gate_up_proj":  # gate rows first, then as many up rows
        width = len(weight) // 2
        neurons = (*neurons, *(width + index for index in neurons))
    bias = None if bias is None else _without_slices(bias, 0, neurons)
    return _linear(_without_slices(weight, 0, neurons, spare), bias, projection)


def _without_slices(
    tensor: Tensor, dim: int, indices: Sequence[int], spare: Tensor | None = None
) -> Tensor:
    """Copy a tensor without some rows (dim 0) or columns (dim 1); `indices` are sorted."""
    # what is kept lies between one index and the next
    starts = [0, *(index + 1 for index in indices)]
    ends = [*indices, tensor.shape[dim]]
    kept = [tensor.narrow(dim, start, end - start) for start, end in zip(starts, ends, strict=True)]
    shape = list(tensor.shape)
    shape[dim] -= len(indices)
    size = math.prod(shape)
    kind = (tensor.dtype, tensor.device)
    if spare is None or spare.numel() < size or (spare.dtype, spare.device) != kind:
        return torch.cat(kept, dim)
    return torch.cat(kept, dim, out=spare.flatten()[:size].view(shape))


def _pad(projection: nn.Linear, width: int, name: str) -> nn.Linear:
    """Copy a projection with neurons of zeros after its own, up to a width."""
    weight = projection.weight.detach()
    bias = None if projection.bias is None else projection.bias.detach()
    if name == "down_proj":
        padded = nn.functional.pad(weight, (0, width - weight.shape[1]))
        return _linear(padded, bias, projection)
    halves = 2 if name == "gate_up_proj" else 1
    added = width - len(weight) // halves
    weight = torch.cat([nn.functional.pad(half, (0, 0, 0, added)) for half in weight.chunk(halves)])
    if bias is not None:
        bias = torch.cat([nn.functional.pad(half, (0, added)) for half in bias.chunk(halves)])
    return _linear(weight, bias, projection)


def _update_widths(model: PreTrainedModel) -> None:
    """Let configuration and MLPs say how many neurons there are."""
    blocks = [layer.mlp for layer in decoder_layers(model)]
    for mlp in blocks:
        if hasattr(mlp, "intermediate_size"):
            mlp.intermediate_size = mlp.down_proj.in_features
    model.config.get_text_config().intermediate_size = max(
        mlp.down_proj.in_features for mlp in blocks
    )
