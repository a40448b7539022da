"""What a method may ask to know about a layer's inputs, accumulated in a stream.

A `LayerMethod` names one of these classes; the block loop makes one accumulator per layer, feeds it every batch of inputs, and
hands it to `quantize`. No layer's inputs are kept. (The block loop does keep the hidden states between two blocks.)
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor


class Statistic(ABC):
    """An accumulator over the inputs of one linear layer."""

    _sum: Tensor

    def __init__(self, in_features: int, device: torch.device) -> None:
        self.tokens = 0
        """Number of inputs seen."""

    def update(self, inputs: Tensor) -> None:
        """Take in a batch of inputs, (..., in_features)."""
        rows = inputs.reshape(-1, inputs.shape[-1]).to(self._sum.device)
        self.tokens += len(rows)
        self._add(rows)

    @abstractmethod
    def _add(self, rows: Tensor) -> None: ...


class ChannelMean(Statistic):
    """Mean magnitude of each input channel: what AWQ (arXiv 2306.00978) scales by."""

    def __init__(self, in_features: int, device: torch.device) -> None:
        super().__init__(in_features, device)
        self._sum = torch.zeros(in_features, dtype=torch.float64, device=device)

    def _add(self, rows: Tensor) -> None:
        self._sum += rows.abs().sum(0, dtype=torch.float64)

    def mean_magnitude(self) -> Tensor:
        """float32 (in_features,)."""
        return (self._sum / self.tokens).float()


class Hessian(Statistic):
    """H = XᵀX / tokens, the curvature of a layer's output error (GPTQ, arXiv 2210.17323, up to a factor 2)."""

    def __init__(self, in_features: int, device: torch.device) -> None:
        super().__init__(in_features, device)
        self._sum = torch.zeros(in_features, in_features, dtype=torch.float64, device=device)

    def _add(self, rows: Tensor) -> None:
        # float32 within a batch, float64 across: half-precision activations overflow when squared, long sums lose their tail.
        rows = rows.float()
        self._sum += rows.T @ rows

    def matrix(self) -> Tensor:
        """float64 (in_features, in_features)."""
        return self._sum / self.tokens
