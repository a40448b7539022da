"""Inputs of layers, and what methods that work from their Hessian are given and judged by."""

from typing import Any

import torch
from torch import Tensor

from sinq.calibration.statistics import Hessian
from tests.conftest import tiny_model


def seen(inputs: Tensor) -> Hessian:
    hessian = Hessian(inputs.shape[1], inputs.device)
    hessian.update(inputs)
    return hessian


def correlated(tokens: int = 200, width: int = 64, seed: int = 0) -> Tensor:
    """Inputs (tokens, width) whose channels depend on each other."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(tokens, width // 4, generator=generator) @ torch.randn(
        width // 4, width, generator=generator
    ) + 0.3 * torch.randn(tokens, width, generator=generator)


def weighted_error(weight: Tensor, result: Tensor, hessian: Hessian) -> float:
    error = (weight - result).double()
    return torch.trace(error @ hessian.matrix() @ error.T).item()


def with_outliers(architecture: str) -> Any:
    """A model of which a few channels behind each norm are a hundred times as large."""
    model: Any = tiny_model(architecture)
    for layer in model.model.layers:
        for norm in (layer.input_layernorm, layer.post_attention_layernorm):
            norm.weight.data[[3, 17]] = 100
    return model
