"""Models whose heads and neurons are known, of random weights and biases that all matter."""

import copy
from typing import Any

import torch
from transformers import (
    BertConfig,
    DistilBertConfig,
    GPT2Config,
    LlamaConfig,
    OPTConfig,
    PretrainedConfig,
    Qwen2Config,
)

from sinq.model.language_model import auto_class
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
    "bert": BertConfig(**SMALL, **BODY, intermediate_size=128),
    "distilbert": DistilBertConfig(
        vocab_size=96, dim=64, n_layers=2, n_heads=4, hidden_dim=128, max_position_embeddings=64
    ),
}
ENCODERS = ("bert", "distilbert")


def random_model(name: str) -> Any:
    """A model of random weights and biases that all matter."""
    torch.manual_seed(0)
    config = copy.deepcopy(SLICEABLE[name])
    model = auto_class(config).from_config(config)
    for parameter in model.eval().requires_grad_(False).parameters():
        parameter.copy_(0.2 * torch.randn_like(parameter))
    return model
