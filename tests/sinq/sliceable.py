"""Models whose heads and neurons are known, of random weights and biases that all matter."""

import copy
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    OPTConfig,
    PretrainedConfig,
    Qwen2Config,
)

from tests.conftest import BODY, CONFIGS, SMALL
from tests.sinq.decoders import DECODERS, GROUPED

SLICEABLE: dict[str, PretrainedConfig] = {
    "llama": LlamaConfig(**GROUPED, attention_bias=True, mlp_bias=True),
    "mistral": DECODERS["mistral"],
    "qwen2": Qwen2Config(**GROUPED),
    "qwen3": CONFIGS["qwen3-tied"],
    "opt": OPTConfig(**SMALL, **BODY, ffn_dim=128, word_embed_proj_dim=64),
    "opt-post-norm": OPTConfig(
        **SMALL, **BODY, ffn_dim=128, word_embed_proj_dim=32, do_layer_norm_before=False
    ),
    "gpt2": GPT2Config(**SMALL, n_embd=64, n_layer=2, n_head=4, n_positions=64),
}


def random_model(name: str) -> Any:
    """A model of random weights and biases that all matter."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(copy.deepcopy(SLICEABLE[name]))
    for parameter in model.eval().requires_grad_(False).parameters():
        parameter.copy_(0.2 * torch.randn_like(parameter))
    return model
