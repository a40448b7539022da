"""Inputs of layers, and what methods that work from their Hessian are given and judged by."""

import torch
from torch import Tensor

from sinq.calibration.statistics import Hessian


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
