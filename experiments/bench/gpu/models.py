"""Models of the steps: random weights in the shapes of published ones, made on the device."""

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, Qwen3Config

from experiments.bench.gpu.check import Setting

QWEN3_0_6B = {
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
}
QWEN3_8B = {
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
}
TINY = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2}


def qwen3(
    setting: Setting, sizes: dict[str, int], layers: int, vocab_size: int, dtype: torch.dtype = torch.bfloat16
) -> PreTrainedModel:
    """Return a Qwen3 of random weights with an untied head; in a dry run, two tiny layers of it."""
    sizes, layers, vocab_size = (TINY, 2, 512) if setting.dry else (sizes, layers, vocab_size)
    head_dim = 16 if setting.dry else 128
    config = Qwen3Config(
        **sizes,  # type: ignore[arg-type]
        head_dim=head_dim,
        num_hidden_layers=layers,
        vocab_size=vocab_size,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    with setting.device:
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    return model.eval().requires_grad_(False)
