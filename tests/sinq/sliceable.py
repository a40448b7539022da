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

from sinq.model.conv1d import is_conv1d
from sinq.model.language_model import auto_class
from sinq.model.slicing import Kept, kept_groups, spread
from sinq.model.units import Units
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


def silence(units: Units, kept: Kept) -> None:
    """Zero the columns of o and down that belong to what is not kept: those units then say nothing."""
    columns = {
        units.names.output: spread(kept.heads, units.head_width),
        units.names.down: kept.neurons,
    }
    for name, index in columns.items():
        layer = units.layer(name)
        weight = layer.weight.T if is_conv1d(layer) else layer.weight
        gone = torch.ones(weight.shape[1], dtype=torch.bool)
        gone[index] = False
        weight[:, gone] = 0


def some(units: Units, seed: int) -> Kept:
    """A random choice, of another size for each seed; query heads of a group in any order."""
    generator = torch.Generator().manual_seed(seed)
    counts = units.counts
    groups = torch.randperm(counts.kv_heads, generator=generator)[: 1 + seed % counts.kv_heads]
    neurons = torch.randperm(counts.neurons, generator=generator)[: 40 + 8 * seed]
    return kept_groups(units, groups, neurons)
