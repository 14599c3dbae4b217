"""Small random models of real config classes."""

import torch
import transformers

# family -> (config class, options): real config classes, random weights, sizes that a test can afford
FAMILIES = {
    "llama": ("LlamaConfig", {}),
    "llama-biases": ("LlamaConfig", {"mlp_bias": True, "attention_bias": True, "tie_word_embeddings": True}),
    "mistral": ("MistralConfig", {"sliding_window": None}),
    "qwen2": ("Qwen2Config", {}),
    "gemma3": ("Gemma3TextConfig", {"head_dim": 8, "sliding_window": 8}),
    "phi3": ("Phi3Config", {"pad_token_id": 0}),
}
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


def tiny_model(family: str = "llama", dtype: torch.dtype = torch.float32, **sizes: int) -> transformers.PreTrainedModel:
    """Build a small random model of a real config class, with weights large enough that layers matter."""
    name, options = FAMILIES[family]
    config = getattr(transformers, name)(**{**SIZES, **options, **sizes})
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.to(dtype)
