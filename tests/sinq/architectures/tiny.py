"""A tiny random model of every decoder architecture of transformers, made from the configuration's defaults.

Sizes are found by the names of their fields (`SIZES`); lists with an entry for each layer are cut to one layer
of every kind, at least two. `SPECIAL` has what some architectures need besides.
"""

import re
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

ARCHITECTURES: tuple[str, ...] = tuple(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
VOCABULARY, CONTEXT, WIDTH = 96, 64, 64

SIZES: tuple[tuple[str, Any], ...] = (
    (r"vocab_size(_per_layer_input)?|encoder_hash_byte_group_vocab", VOCABULARY),
    (r"hidden_size|d_model|n_embd|emb_dim|embedding_dim|embedding_size|lru_width|word_embed_proj_dim|out_hidden_size"
     r"|attention_hidden_size|decoder_hidden_size|cross_attention_hidden_size", WIDTH),
    (r".*intermediate_size.*|.*ffn_dim|ffn_hidden_size|n_inner|d_inner|dim_ff|dff|intermediate_dim"
     r"|shared_expert_intermediate_size|ffn_hidden_size", 128),
    (r"moe_intermediate_size|expert_ffn_hidden_size", 64),
    (r"num_attention_heads|n_heads?|.*attention_heads|num_heads|num_key_value_heads", 4),
    (r"head_dim|global_head_dim|attention_head_dim|d_head|v_head_dim|qk_.*head_dim|index_head_dim|kv_channels"
     r"|linear_(key|value)_head_dim|swa_(v_)?head_dim", 16),
    (r"(kv|q|o|index)_lora_rank|adapter_rank|laurel_rank", 32),
    (r"num_experts|n_routed_experts|num_local_experts|moe_num_experts|n_experts|ffn_num_experts", 4),
    (r"num_experts_per_tok(en)?|moe_topk|moe_top_k|moe_k|experts_top_k", 2),
    (r"n_group|topk_group|num_expert_group", 1),
    (r"n_shared_experts|num_shared_experts|moe_num_shared_experts", 1),
    (r"max_position_embeddings|n_positions|n_ctx|max_seq_len|context_length|model_max_length"
     r"|max_target_positions|seq_length", CONTEXT),
    (r"sliding_window(_size)?|attention_window_size|window_size|local_attention", 8),
    (r"pad_token_id", 0),
    (r"bos_token_id", 1),
    (r"eos_token_id", 2),
    (r".*_token_(id|index)", 3),
)
LAYERS = r"num_hidden_layers|n_layers?|num_layers|decoder_layers|encoder_layers|num_decoder_layers"
HEADS = "num_key_value_heads"
SPECIAL: dict[str, dict[str, Any]] = {}


def tiny_config(name: str) -> PretrainedConfig:
    """Return a configuration of an architecture with two layers or so, 64 wide."""
    kind = CONFIG_MAPPING[name]
    return kind(**_shrunk(kind, name))


def _shrunk(kind: type[PretrainedConfig], name: str) -> dict[str, Any]:
    """Return the fields to change of a configuration's defaults."""
    defaults = kind().to_dict()
    special = SPECIAL.get(name, {})
    layers = _layers(defaults, special)
    changes: dict[str, Any] = {}
    for key, value in defaults.items():
        if key in kind.sub_configs:
            if isinstance(value, dict) and value.get("model_type") in CONFIG_MAPPING:
                sub = CONFIG_MAPPING[value["model_type"]]
                changes[key] = _shrunk(sub, value["model_type"])
        elif isinstance(value, int) and not isinstance(value, bool) and re.fullmatch(LAYERS, key):
            changes[key] = layers
        elif key in ("layer_types", "layers_block_type", "mlp_layer_types", "block_types") and value:
            changes[key] = [_kinds(value)[k % len(_kinds(value))] for k in range(layers)]
        elif isinstance(value, int) and not isinstance(value, bool):
            size = next((size for pattern, size in SIZES if re.fullmatch(pattern, key)), None)
            if size is not None:
                changes[key] = size
    if defaults.get(HEADS) and defaults.get(HEADS) != defaults.get("num_attention_heads"):
        changes[HEADS] = 2 if defaults[HEADS] > 1 else 1
    return {**changes, **special}


def _layers(defaults: dict[str, Any], special: dict[str, Any]) -> int:
    """Return the number of layers: one of each kind, at least two."""
    lists = (defaults.get(key) for key in ("layer_types", "layers_block_type", "mlp_layer_types", "block_types"))
    return max([2, *(len(_kinds(kinds)) for kinds in lists if kinds)])


def _kinds(kinds: list[str]) -> list[str]:
    return list(dict.fromkeys(kinds))


def tiny(name: str) -> PreTrainedModel:
    """Return the random model of an architecture, the same at every call."""
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(tiny_config(name)).eval().requires_grad_(False)


def tokens(windows: int = 2, seqlen: int = 32) -> torch.Tensor:
    """Return token ids (windows, seqlen), the same at every call."""
    return torch.randint(4, VOCABULARY, (windows, seqlen), generator=torch.Generator().manual_seed(0))
