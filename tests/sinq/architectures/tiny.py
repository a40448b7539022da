"""A tiny random model of every decoder architecture of transformers, made from the configuration's defaults.

Sizes are found by the names of their fields (`SIZES`); lists with an entry for each layer are cut to one
layer of every kind, at least two. `SPECIAL` has what some architectures need besides.
"""

import re
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

ARCHITECTURES: tuple[str, ...] = tuple(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
VOCABULARY, CONTEXT, WIDTH = 96, 64, 64

SIZES: tuple[tuple[str, int], ...] = (
    (
        r"vocab_size(_per_layer_input)?|encoder_hash_byte_group_vocab|(pronunciation|shape)_vocab_size",
        VOCABULARY,
    ),
    (r"unpadded_vocab_size", VOCABULARY),
    (
        r"(attention_|decoder_)?hidden_size(_global)?|d_model|n_embd|emb_dim|embedding_(dim|size)|lru_width",
        WIDTH,
    ),
    (r"word_embed_proj_dim|out_hidden_size|projection_dim|(pronunciation|shape)_embed_dim", WIDTH),
    (r"hidden_size_per_layer_input", 16),
    (
        r"(shared_|expert_|dense_|moe_shared_expert_)?intermediate_size\w*|shared_experts?_intermediate_size",
        128,
    ),
    (r"\w*ffn_dim|\w*ffn_hidden_size|n_inner|d_inner|dim_ff|dff|intermediate_dim|feed_forward_size", 128),
    (r"moe_intermediate_size", 64),
    (r"n_heads?|\w*attention_heads|num_heads|\w*num_key_value_heads", 4),
    (r"(global_|attention_|v_|index_|indexer_|swa_|swa_v_)?head_dim|d_head|qk_(rope|nope)_head_dim", 16),
    (r"kv_channels|attention_head_size|linear_(key_|value_)?head_dim", 16),
    (r"linear_num(_key|_value)?_heads|index_n_heads", 4),
    (r"(kv|q|o|index)_lora_rank|adapter_rank|laurel_rank", 32),
    (r"mamba_(n|num)_heads", 8),
    (r"mamba_d_ssm", 128),
    (r"mamba_(d_head|head_dim|d_state)|ssm_state_size|state_size", 16),
    (r"(mamba_)?n(_?)groups", 1),
    (r"(mamba_)?chunk_size", 8),
    (r"(mamba_dt|time_step)_rank", 16),
    (r"num_experts|n_routed_experts|num_local_experts|moe_num_experts|n_experts|ffn_num_experts", 4),
    (r"num_experts_per_tok(en)?|moe_topk|moe_top_k|moe_k|experts_top_k", 2),
    (r"n_group|topk_group|num_expert_group", 1),
    (r"n_shared_experts|num_shared_experts|moe_num_shared_experts", 1),
    (r"max_position_embeddings|n_positions|n_ctx|max_seq_len|context_length|model_max_length", CONTEXT),
    (r"max_target_positions|seq_length|original_max_position_embeddings", CONTEXT),
    (r"(local_)?sliding_window(_size)?|attention_window_size|window_size|local_attention", 8),
    (r"image_size|crop_size", 32),
    (r"patch_size", 16),
    (r"pad_token_id", 0),
    (r"bos_token_id", 1),
    (r"eos_token_id", 2),
    (r"\w*_token_(id|index)", 3),
)
LAYERS = r"(num_hidden|num|n|decoder|encoder|num_decoder)_layers?|num_blocks|depth"
KINDS = ("layer_types", "layers_block_type", "mlp_layer_types", "block_types")
"""Lists with the kind of each layer."""
ROPE = {"rope_type": "default", "rope_theta": 1e4}
HYBRID = ["linear_attention", "hybrid"] * 2
SHARED_BLOCK = {
    "num_hidden_layers": 4, "layers_block_type": HYBRID,
    "attention_hidden_size": 128, "attention_head_dim": 32,
}  # fmt: skip
SHARING = ["sliding_attention", "full_attention"] * 2
DOTS3 = {
    "swa_num_attention_heads": 4, "swa_num_key_value_heads": 4, "swa_q_lora_rank": 32, "swa_kv_lora_rank": 32,
    "swa_head_dim": 32, "swa_qk_nope_head_dim": 16, "swa_v_head_dim": 16, "head_dim": 32,
}  # fmt: skip
QSA = {
    "indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 16, "indexer_budget": 8,
    "indexer_compress_ratio": 2, "hc_lowrank": 16,
}  # fmt: skip
SPECIAL: dict[str, dict[str, Any]] = {
    "big_bird": {"attention_type": "original_full"},
    "codegen": {"rotary_dim": 8},
    "gptj": {"rotary_dim": 8},
    "cohere_compass_text": {"rope_parameters": {"full_attention": ROPE}},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "dory": {
        "num_hidden_layers": 6, "n_input_layers": 2, "n_recurrent_layers": 2, "n_output_layers": 2,
        "layer_types": ["sliding_attention", "full_attention"] * 3,
    },
    "dots1": {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1},
    "dots3_note_text": DOTS3,
    "rwkv": {"rescale_every": 0},
    "gemma3n_text": {
        "num_hidden_layers": 4, "num_kv_shared_layers": 2, "layer_types": SHARING, "altup_num_inputs": 2,
        "intermediate_size": [128] * 4, "activation_sparsity_pattern": [0.95, 0.0, 0.0, 0.0],
    },
    "gemma4_text": {"num_hidden_layers": 4, "num_kv_shared_layers": 2, "layer_types": SHARING},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "hunyuan_v1_dense": {"head_dim": 16},
    "hunyuan_v1_moe": {"head_dim": 16},
    "ministral": {"head_dim": 16},
    "nemotron": {"num_key_value_heads": 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "mamba2": {"head_dim": 16, "num_heads": 8},
    "mamba": {"time_step_rank": 16},
    "falcon_mamba": {"time_step_rank": 16},
    "qwen4_exp_text": QSA,
    "reformer": {
        "is_decoder": True, "axial_pos_shape": [8, 8], "axial_pos_embds_dim": [32, 32], "num_buckets": 4,
        "attn_layers": ["local", "lsh"], "local_attn_chunk_length": 8, "lsh_attn_chunk_length": 8,
        "hash_seed": 0,
    },
    "xmod": {"default_language": "en_XX"},
    "zamba": {**SHARED_BLOCK, "n_mamba_heads": 2},
    "zamba2": SHARED_BLOCK,
    "zaya": {"num_experts_per_tok": 1},
}  # fmt: skip
"""Fields that names do not tell."""
UNBUILT = {
    "dbrx": "its configuration lacks `rope_theta`, which its code reads",
    "dots3_note": "its parts' sizes must agree in ways that defaults do not; its text part is tried",
    "gemma3n": "its vision tower needs timm; its text part is tried",
    "gemma4_assistant": "it reads the keys and values of another model",
    "gemma4_unified_assistant": "it reads the keys and values of another model",
    "musicgen": "its configuration is not of its decoder",
    "musicgen_melody": "its configuration is not of its decoder",
}
"""Architectures that cannot be built small, or run alone, and why."""


def tiny_config(name: str) -> PretrainedConfig:
    """Return a configuration of an architecture with two layers or so, 64 wide."""
    kind = CONFIG_MAPPING[name]
    return kind(**_shrunk(kind))


def _shrunk(kind: type[PretrainedConfig]) -> dict[str, Any]:
    """Return the fields to change of a configuration's defaults."""
    defaults = kind().to_dict()
    special = SPECIAL.get(kind.model_type, {})
    layers = special.get("num_hidden_layers", _layers(defaults))
    changes: dict[str, Any] = {}
    for key, value in defaults.items():
        if key in kind.sub_configs:
            changes[key] = _sub_config(kind.sub_configs[key], value)
        elif key in KINDS and value:
            kinds = list(dict.fromkeys(value))
            changes[key] = [kinds[k % len(kinds)] for k in range(layers)]
        elif isinstance(value, int) and not isinstance(value, bool):
            found = [layers] if re.fullmatch(LAYERS, key) else []
            found += [size for pattern, size in SIZES if re.fullmatch(pattern, key)]
            if found:
                changes[key] = found[0]
    heads = defaults.get("num_key_value_heads")
    if heads and heads != defaults.get("num_attention_heads"):
        changes["num_key_value_heads"] = min(heads, 2)
    if defaults.get("is_decoder") is False and not kind.sub_configs:
        changes["is_decoder"] = True
    return {key: value for key, value in {**changes, **special}.items() if value is not None}


def _sub_config(kind: Any, value: Any) -> dict[str, Any] | None:
    if not isinstance(value, dict):
        return None
    if not value.get("model_type") and kind is AutoConfig:
        return value
    sub = CONFIG_MAPPING[value["model_type"]] if kind is AutoConfig else kind
    return {**_shrunk(sub), "model_type": sub.model_type}


def _layers(defaults: dict[str, Any]) -> int:
    """Return the number of layers: one of each kind, at least two."""
    return max([2, *(len(set(defaults[key])) for key in KINDS if defaults.get(key))])


def tiny(name: str) -> PreTrainedModel:
    """Return the random model of an architecture, the same at every call."""
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(tiny_config(name)).eval().requires_grad_(False)


def tokens(windows: int = 2, seqlen: int = 32) -> torch.Tensor:
    """Return token ids (windows, seqlen), the same at every call."""
    return torch.randint(4, VOCABULARY, (windows, seqlen), generator=torch.Generator().manual_seed(0))
