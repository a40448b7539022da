"""Models that llama.cpp knows: names of tensors, keys, and the order of rows, by the kind of their
configuration.

A file has the numbers that llama.cpp's graph needs; what that graph cannot say is refused: another
activation, windows of attention, scaled rotary embeddings except Llama 3's, weights of experts that are (not)
normalized.

The graph `llama` turns neighbouring channels c and c + 1 of a head, transformers turns c and c + width / 2.
So the rows of q and k are put in another order there, whole rows of packed blocks; a wrong order is an error
that nothing reports.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sinq.common.errors import NotApplicable
from sinq.export.gguf.container import Value

GRAPHS = {
    "llama": "llama",
    "mistral": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "qwen2_moe": "qwen2moe",
    "qwen3_moe": "qwen3moe",
}
"""Kind of model → llama.cpp's graph."""
NORMALIZED = {"qwen3moe": True, "qwen2moe": False}
"""Graphs with experts → whether the weights of a token's experts are divided by their sum."""
PARTS = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.gate": "ffn_gate_inp",
    "mlp.experts.gate_proj": "ffn_gate_exps",
    "mlp.experts.up_proj": "ffn_up_exps",
    "mlp.experts.down_proj": "ffn_down_exps",
    "mlp.shared_expert.gate_proj": "ffn_gate_shexp",
    "mlp.shared_expert.up_proj": "ffn_up_shexp",
    "mlp.shared_expert.down_proj": "ffn_down_shexp",
    "mlp.shared_expert_gate": "ffn_gate_inp_shexp",
}
"""Part of a block → its name in a file; experts without their numbers are one tensor."""
ENDS = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
EXPERTS = "_exps"
"""End of the names of tensors that hold all experts."""
ROUTERS = ("ffn_gate_inp", "ffn_gate_inp_shexp")
"""Parts that llama.cpp keeps in float32."""
LLAMA3 = "llama3"


@dataclass(frozen=True)
class Architecture:
    """A model as a graph of llama.cpp."""

    config: Any
    graph: str

    @classmethod
    def of(cls, config: Any) -> "Architecture":
        """Return the architecture of a model with this configuration.

        Raises:
            NotApplicable: no graph of llama.cpp that is known here is this model.
        """
        kind = config.model_type
        if kind not in GRAPHS:
            raise NotApplicable(f"gguf: {kind} is not written here; {', '.join(GRAPHS)} are")
        found = cls(config, GRAPHS[kind])
        for reason in found._misfits():
            raise NotApplicable(
                f"gguf: {kind} with {reason} is not what llama.cpp's graph {found.graph} computes"
            )
        return found

    def _misfits(self) -> list[str]:
        """Return what the graph does not compute."""
        config, options = self.config, vars(self.config)
        windowed = getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True)
        sparse = getattr(config, "mlp_only_layers", None) or getattr(config, "decoder_sparse_step", 1) != 1
        normalized = options.get("norm_topk_prob")
        tests = {
            f"hidden_act={config.hidden_act}": config.hidden_act != "silu",
            f"rope_type={self.rope_type}": self.rope_type not in ("default", LLAMA3),
            f"rope_type={LLAMA3}": self.rope_type == LLAMA3 and self.graph != "llama",
            f"sliding_window={getattr(config, 'sliding_window', None)}": windowed,
            "attention_bias=True": options.get("attention_bias") and self.graph.startswith("qwen3"),
            "experts in some layers only": self.graph in NORMALIZED and sparse,
            f"norm_topk_prob={normalized}": NORMALIZED.get(self.graph, normalized) != normalized,
        }
        return [reason for reason, fails in tests.items() if fails]

    @property
    def rope_type(self) -> str:
        return self.config.rope_parameters.get("rope_type", "default")

    @property
    def head_width(self) -> int:
        config = self.config
        return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads

    def keys(self) -> dict[str, Value]:
        """Return the keys that describe the model."""
        config = self.config
        numbers: dict[str, Value] = {
            "block_count": config.num_hidden_layers,
            "context_length": config.max_position_embeddings,
            "embedding_length": config.hidden_size,
            "feed_forward_length": config.intermediate_size,
            "attention.head_count": config.num_attention_heads,
            "attention.head_count_kv": config.num_key_value_heads,
            "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
            "attention.key_length": self.head_width,
            "attention.value_length": self.head_width,
            "rope.freq_base": float(config.rope_parameters["rope_theta"]),
            "rope.dimension_count": self.head_width,
            "vocab_size": config.vocab_size,
        }
        if self.graph in NORMALIZED:
            numbers |= self._expert_keys()
        return {"general.architecture": self.graph} | {
            f"{self.graph}.{name}": v for name, v in numbers.items()
        }

    def _expert_keys(self) -> Mapping[str, Value]:
        config = self.config
        keys: dict[str, Value] = {
            "expert_count": config.num_experts,
            "expert_used_count": config.num_experts_per_tok,
            "expert_feed_forward_length": config.moe_intermediate_size,
        }
        if (shared := getattr(config, "shared_expert_intermediate_size", None)) is not None:
            keys["expert_shared_feed_forward_length"] = shared
        return keys

    def name(self, layer: str) -> str:
        """Return the name of a layer in a file, without its ending; all experts of a kind have one name.

        Raises:
            NotApplicable: the graph has no such layer.
        """
        if layer in ENDS:
            return ENDS[layer]
        number, part = _split(layer)
        if part not in PARTS:
            raise NotApplicable(f"gguf: {layer} has no place in llama.cpp's graph {self.graph}")
        return f"blk.{number}.{PARTS[part]}"

    def order(self, layer: str) -> Callable[[Tensor], Tensor]:
        """Return a function that puts rows (out, …) of a layer's matrix or bias in the graph's order."""
        part = layer.rpartition(".")[2]
        heads = {"q_proj": self.config.num_attention_heads, "k_proj": self.config.num_key_value_heads}
        if self.graph != "llama" or part not in heads:
            return lambda rows: rows
        return lambda rows: rows.unflatten(0, (heads[part], 2, -1)).transpose(1, 2).flatten(0, 2).contiguous()

    def rope_factors(self) -> Tensor | None:
        """Return the divisors of Llama 3's scaled frequencies, float32 (width / 2), or None."""
        if self.rope_type != LLAMA3:
            return None
        from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

        scaled, _ = ROPE_INIT_FUNCTIONS[LLAMA3](self.config, torch.device("cpu"))
        steps = torch.arange(0, self.head_width, 2, dtype=torch.float32) / self.head_width
        return (self.config.rope_parameters["rope_theta"] ** -steps / scaled).contiguous()


def _split(layer: str) -> tuple[str, str]:
    """Return the number of a layer's block and the name within it, without the number of an expert."""
    found = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", layer)
    return (found[1], re.sub(r"experts\.\d+", "experts", found[2])) if found else ("", layer)
