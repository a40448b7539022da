"""What a method may ask to know about a layer's inputs, accumulated in a stream.

A `LayerMethod` names one of these classes; the block loop makes one accumulator for each input of a block (query, key and value share
one), feeds it every batch, and hands it to `quantize`. No layer's inputs are kept, so memory does not grow with the text.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Self

import torch
from torch import Tensor


class Statistic(ABC):
    """An accumulator over the inputs of linear layers.

    Inputs may have any number of leading dimensions: (windows, seqlen, in) in dense blocks, (tokens, in) in experts.
    """

    tokens: int = 0
    """Number of inputs seen."""

    def __init__(self, in_features: int, device: torch.device) -> None:
        self.device = device

    def update(self, inputs: Tensor) -> None:
        """Take in a batch of inputs, (..., in_features)."""
        rows = inputs.reshape(-1, inputs.shape[-1]).to(self.device)
        self.tokens += len(rows)
        self._add(rows.float())  # half-precision activations overflow when squared

    @abstractmethod
    def _add(self, rows: Tensor) -> None: ...

    @abstractmethod
    def transformed(self, matrix: Tensor) -> Self:
        """The statistic of x · matrixᵀ in place of x; `matrix` float32 (in, in)."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """All it knows, to be kept; `restore` is the inverse."""

    def restore(self, tensors: Mapping[str, Tensor]) -> Self:
        """Take on what another one knew."""
        for name, tensor in tensors.items():
            if name != "tokens":
                setattr(self, f"_{name}", tensor.to(self.device, getattr(self, f"_{name}").dtype))
        self.tokens = int(tensors["tokens"])
        return self


class Hessian(Statistic):
    """H = XᵀX / tokens, the curvature of a layer's output error (GPTQ, arXiv 2210.17323, up to a factor 2)."""

    def __init__(self, in_features: int, device: torch.device) -> None:
        super().__init__(in_features, device)
        self._sum = torch.zeros(in_features, in_features, dtype=torch.float64, device=device)

    def _add(self, rows: Tensor) -> None:
        self._sum += rows.T @ rows  # float32 within a batch, float64 across: long sums lose their tail

    def matrix(self) -> Tensor:
        """float64 (in_features, in_features); zeros if no input was seen."""
        return self._sum / max(1, self.tokens)

    def transformed(self, matrix: Tensor) -> Self:
        wide = matrix.to(self.device, torch.float64)
        return type(self)(len(matrix), self.device).restore({"sum": wide @ self._sum @ wide.T, "tokens": torch.tensor(self.tokens)})

    def tensors(self) -> dict[str, Tensor]:
        return {"sum": self._sum.float(), "tokens": torch.tensor(self.tokens)}  # the long sum is over; 7 digits will do


class Inputs(Statistic):
    """Mean magnitude of each input channel, over all inputs, and a random sample of `ROWS` of them (what AWQ works from).

    The sample is uniform over everything seen, whatever the order (each input draws a number, the largest stay), and depends only on
    the inputs and their order: the numbers come from a generator of its own.
    """

    ROWS = 512

    def __init__(self, in_features: int, device: torch.device) -> None:
        super().__init__(in_features, device)
        self._sum = torch.zeros(in_features, dtype=torch.float64, device=device)
        self._rows = torch.zeros(0, in_features, device=device)
        self._draws = torch.zeros(0, dtype=torch.float64)
        self._generator = torch.Generator().manual_seed(0)

    def _add(self, rows: Tensor) -> None:
        self._sum += rows.abs().sum(0, dtype=torch.float64)
        draws = torch.cat([self._draws.cpu(), torch.rand(len(rows), generator=self._generator, dtype=torch.float64)])
        best = draws.topk(min(self.ROWS, len(draws))).indices.sort().values
        self._draws, self._rows = draws[best], torch.cat([self._rows, rows])[best.to(rows.device)]

    def mean_magnitude(self) -> Tensor:
        """float32 (in_features,); zeros if no input was seen."""
        return (self._sum / max(1, self.tokens)).float()

    def sample(self) -> Tensor:
        """float32 (up to ROWS, in_features)."""
        return self._rows

    def transformed(self, matrix: Tensor) -> Self:
        """Mean magnitudes are then those of the sample: the others are gone."""
        rows = self._rows @ matrix.to(self._rows).T
        other = type(self)(len(matrix), self.device)
        other._add(rows)
        other.tokens = len(rows)
        return other

    def tensors(self) -> dict[str, Tensor]:
        return {"sum": self._sum, "rows": self._rows, "draws": self._draws, "tokens": torch.tensor(self.tokens)}
