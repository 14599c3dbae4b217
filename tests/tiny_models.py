"""Small random models of real config classes."""

from copy import deepcopy
from functools import lru_cache

import torch
import transformers

# family -> (config class, options)
FAMILIES = {
    "Llama": ("LlamaConfig", {}),
    "Llama, biases, tied": (
        "LlamaConfig",
        {"mlp_bias": True, "attention_bias": True, "tie_word_embeddings": True},
    ),
    "Mistral": ("MistralConfig", {"sliding_window": 8}),
    "Qwen2": ("Qwen2Config", {}),
    "Qwen3": ("Qwen3Config", {"head_dim": 8}),
    "Gemma 2": ("Gemma2Config", {"head_dim": 8, "sliding_window": 8}),
    "Gemma 3": (
        "Gemma3TextConfig",
        {"head_dim": 8, "sliding_window": 8, "tie_word_embeddings": True},
    ),
    "Gemma 3, multimodal": ("Gemma3Config", {}),
    "SmolLM3": ("SmolLM3Config", {"pad_token_id": 0}),
    "Granite": ("GraniteConfig", {"mlp_bias": True, "logits_scaling": 2.0}),
    "OLMo 2": ("Olmo2Config", {"pad_token_id": 0}),
    "Phi-3": ("Phi3Config", {"pad_token_id": 0}),
}
UNGATED = {
    "GPT-2": ("GPT2Config", {"n_layer": 3, "n_embd": 32, "n_head": 4, "vocab_size": 49152}),
    "GPT-NeoX": (
        "GPTNeoXConfig",
        {
            "vocab_size": 49152,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
        },
    ),
    "OPT": (
        "OPTConfig",
        {
            "vocab_size": 49152,
            "hidden_size": 32,
            "ffn_dim": 48,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "word_embed_proj_dim": 32,
            "max_position_embeddings": 128,
        },
    ),
}
# what every family of FAMILIES has, unless its own options say otherwise
SIZES = {
    "vocab_size": 49152,
    "hidden_size": 32,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
}


def tiny_model(
    family: str = "Llama", dtype: torch.dtype = torch.float32, **sizes: int
) -> transformers.PreTrainedModel:
    """Return a small random model of a real config class, with weights large enough that layers
    matter."""
    model, state = _built(family, dtype, **sizes)
    torch.set_rng_state(state)  # as if it had been built now
    return deepcopy(model)


# drawing three million weights, twice, takes longer than most tests; 12 MB each in float32
@lru_cache(maxsize=16)
def _built(
    family: str, dtype: torch.dtype, **sizes: int
) -> tuple[transformers.PreTrainedModel, torch.Tensor]:
    """Build such a model; return it with the state of the random numbers after it."""
    if family in UNGATED:
        name, options = UNGATED[family]
        config = getattr(transformers, name)(**options)
    else:
        name, options = FAMILIES[family]
        options = {**SIZES, **options, **sizes}
        if name == "Gemma3Config":
            text = {**options, "head_dim": 8, "sliding_window": 8}
            options = {
                "text_config": text,
                "vision_config": VISION,
                "mm_tokens_per_image": 4,
                "image_token_index": 9,
            }
        config = getattr(transformers, name)(**options)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.to(dtype), torch.get_rng_state()


def note_rows(model: transformers.PreTrainedModel) -> list[int]:
    """Return a list to which each forward pass from now on adds how many rows it has."""
    rows = []

    def note(module, positional, named):
        rows.append(len(named["input_ids"]))

    model.register_forward_pre_hook(note, with_kwargs=True)
    return rows


def bytes_of(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same_bytes(model, before):
    after = model.state_dict()
    return before.keys() == after.keys() and all(
        torch.equal(before[name], after[name]) for name in before
    )
