"""Decoders without trivial parameters and a method that rounds nothing, for tests of rewriting models."""

import copy
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen2MoeConfig,
)

from sinq import CompressedWeight, Grid, LayerMethod
from sinq.calibration.statistics import Hessian
from tests.conftest import BODY, CONFIGS, SMALL

GROUPED = {**SMALL, **BODY, "intermediate_size": 128, "num_key_value_heads": 2}
EXPERTS = {
    "moe_intermediate_size": 32,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "shared_expert_intermediate_size": 64,
}
DECODERS: dict[str, PretrainedConfig] = {
    **{name: CONFIGS[name] for name in ("llama", "qwen3-tied", "qwen3-untied", "moe")},
    "llama-biases": LlamaConfig(**GROUPED, attention_bias=True, mlp_bias=True, tie_word_embeddings=True),
    "mistral": MistralConfig(**GROUPED),
    "qwen2": Qwen2Config(**GROUPED),
    "qwen2-moe": Qwen2MoeConfig(**GROUPED, **EXPERTS, mlp_only_layers=[1]),
}


def random_decoder(name: str) -> PreTrainedModel:
    """Model of random weights, gains and biases that all matter; gains differ by factors, as real ones."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(copy.deepcopy(DECODERS[name])).eval().requires_grad_(False)
    for key, parameter in model.named_parameters():
        if "norm" in key:
            parameter.copy_(torch.randn_like(parameter).mul(0.5).exp())
        elif parameter.ndim == 1:
            parameter.copy_(0.3 * torch.randn_like(parameter))
        else:
            columns = torch.randn(parameter.shape[-1]).mul(0.5).exp()
            parameter.copy_(torch.randn_like(parameter) * columns / parameter.shape[-1] ** 0.5)
    return model


def sharing_clone(model: PreTrainedModel) -> PreTrainedModel:
    """A copy of the modules of a model, whose parameters and buffers are the model's own."""
    return copy.deepcopy(model, {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())})


@dataclass(frozen=True, eq=False)
class Kept(CompressedWeight):
    """A matrix as it is."""

    name: ClassVar[str] = "toy_kept"

    matrix: Tensor

    @property
    def shape(self) -> tuple[int, int]:  # type: ignore[override]
        return self.matrix.shape[0], self.matrix.shape[1]

    @property
    def notes(self) -> dict[str, float]:  # type: ignore[override]
        return {}

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        return self.matrix.to(dtype)

    def state_dict(self) -> dict[str, Tensor]:
        return {"matrix": self.matrix}

    def config(self) -> dict[str, Any]:
        return {}

    @classmethod
    def from_state(cls, config: dict[str, Any], tensors: dict[str, Tensor]) -> Self:
        return cls(tensors["matrix"])


@dataclass(frozen=True)
class Keep(LayerMethod):
    """Stores float32."""

    grid: Grid = Grid(group_size=16)

    def quantize(self, weight: Tensor, statistic: Any = None) -> Kept:
        return Kept(weight.clone())


@dataclass(frozen=True)
class Recording(Keep):
    """Keeps everything, and what it was given."""

    seen: Any = None

    statistic = Hessian

    def quantize(self, weight: Tensor, statistic: Any = None) -> Any:
        self.seen.append((weight, statistic.matrix()))
        return super().quantize(weight)

    def quantize_together(self, weights: Any, statistic: Any) -> list[CompressedWeight]:
        self.seen.append(len(weights))
        return super().quantize_together(weights, statistic)
