"""Statistics of layers that methods ask for, accumulated in a stream.

A `LayerMethod` names one of these classes, and `collect.py` fills its accumulators. Each class is of one kind
of site (`sites.py`):

- Statistics of the *inputs* of a layer (`InputStatistic`): one accumulator for each input of a block (query,
key and
  value share one), fed every batch. No layer's inputs are kept, so memory does not grow with the text.
- Statistics of the *gradient* of the language-model loss by a layer's weight (`Gradient`): one accumulator
for each
  layer, fed window by window.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar, Self

import torch
from torch import Tensor

from sinq.calibration.sites import SiteKind
from sinq.common.errors import NotApplicable
from sinq.model.targets import Target


class Statistic(ABC):
    """An accumulator of the facts a method needs about a layer."""

    kind: ClassVar[SiteKind]
    device: torch.device
    tokens: int = 0
    """Number of inputs seen, in tokens."""

    layer = "a layer"
    """The layers it is taken of, for messages."""

    @classmethod
    @abstractmethod
    def described(cls) -> str:
        """Return a name for messages, such as "Hessian of each layer's inputs"."""

    @classmethod
    @abstractmethod
    def refusal(cls, targets: Sequence[Target]) -> str | None:
        """Return why it cannot be taken of some of these layers, and a remedy; None where it can."""

    @classmethod
    @abstractmethod
    def for_layer(cls, shape: tuple[int, int], device: torch.device) -> Self:
        """Return an empty statistic of a layer.

        Args:
            shape: (out, in) of the layer's matrix, or of all matrices of fused experts, stacked.
        """

    @classmethod
    @abstractmethod
    def of_noise(cls, shape: tuple[int, int], device: torch.device) -> Self:
        """Return a statistic that has seen noise, the same at every call.

        It serves questions that do not depend on the text, such as how many bytes a method stores.
        """

    def of_rows(self, start: int, count: int) -> Self:
        """Return the part that concerns some rows of the stacked matrices.

        Where rows share their inputs, that is the whole statistic.
        """
        return self

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """Return all accumulated tensors, to be stored; `load` is the inverse."""

    @abstractmethod
    def load(self, tensors: Mapping[str, Tensor]) -> Self:
        """Take over the tensors of another statistic, and return this one."""


class InputStatistic(Statistic):
    """An accumulator over the inputs of linear layers.

    Inputs may have any number of leading dimensions: (windows, seqlen, in) in dense blocks, (tokens, in) in
    experts.
    """

    kind = SiteKind.inputs

    def __init__(self, in_features: int, device: torch.device) -> None:
        self.device = device

    @classmethod
    def described(cls) -> str:
        return f"{cls.__name__} of each layer's inputs"

    @classmethod
    def refusal(cls, targets: Sequence[Target]) -> str | None:
        experts = [target.name for target in targets if target.parameter is not None]
        if not experts:
            return None
        return f"which fused experts ({experts[0]}, …) do not show; add them to layers.exclude"

    @classmethod
    def for_layer(cls, shape: tuple[int, int], device: torch.device) -> Self:
        return cls(shape[1], device)

    @classmethod
    def of_noise(cls, shape: tuple[int, int], device: torch.device) -> Self:
        noisy = cls(shape[1], device)
        noisy.update(torch.randn(2 * shape[1], shape[1], generator=torch.Generator().manual_seed(0)))
        return noisy

    def update(self, inputs: Tensor) -> None:
        """Add a batch of inputs, (..., in_features).

        Raises:
            ValueError: an input is not finite.
        """
        rows = inputs.reshape(-1, inputs.shape[-1]).to(self.device)
        _refuse_not_finite(rows, f"{self.layer}: the inputs")
        self.tokens += len(rows)
        self._add(rows.float())  # half-precision activations overflow when squared

    @abstractmethod
    def _add(self, rows: Tensor) -> None: ...

    @abstractmethod
    def transformed(self, matrix: Tensor) -> Self:
        """Return the statistic of x · matrixᵀ in place of x; `matrix` is float32 (in, in)."""


class Hessian(InputStatistic):
    """Curvature of a layer's output error, H = XᵀX / tokens (GPTQ, arXiv 2210.17323, up to a factor 2)."""

    def __init__(self, in_features: int, device: torch.device) -> None:
        super().__init__(in_features, device)
        self._sum = torch.zeros(in_features, in_features, dtype=torch.float64, device=device)

    def _add(self, rows: Tensor) -> None:
        # float32 within a batch, float64 across batches: long sums lose their tail.
        self._sum += rows.T @ rows

    def matrix(self) -> Tensor:
        """Return H, float64 (in_features, in_features); zeros if no input was seen."""
        return self._sum / max(1, self.tokens)

    def transformed(self, matrix: Tensor) -> Self:
        wide = matrix.to(self.device, torch.float64)
        return type(self)(len(matrix), self.device).load(
            {"sum": wide @ self._sum @ wide.T, "tokens": torch.tensor(self.tokens)}
        )

    def tensors(self) -> dict[str, Tensor]:
        # The long sum is complete: 7 digits suffice.
        return {"sum": self._sum.float(), "tokens": torch.tensor(self.tokens)}

    def load(self, tensors: Mapping[str, Tensor]) -> Self:
        self._sum, self.tokens = tensors["sum"].to(self._sum), int(tensors["tokens"])
        return self


class MeanSquares(InputStatistic):
    """Mean square of each input channel: the diagonal of the `Hessian`, at a width-th of its cost."""

    def __init__(self, in_features: int, device: torch.device) -> None:
        super().__init__(in_features, device)
        self._sum = torch.zeros(in_features, dtype=torch.float64, device=device)

    def _add(self, rows: Tensor) -> None:
        self._sum += rows.square().sum(0, dtype=torch.float64)

    def mean(self) -> Tensor:
        """Return the mean squares, float32 (in_features,); zeros if no input was seen."""
        return (self._sum / max(1, self.tokens)).float()

    def transformed(self, matrix: Tensor) -> Self:
        raise NotApplicable("mean squares of rotated inputs would need the whole Hessian of the inputs")

    def tensors(self) -> dict[str, Tensor]:
        return {"sum": self._sum, "tokens": torch.tensor(self.tokens)}

    def load(self, tensors: Mapping[str, Tensor]) -> Self:
        self._sum, self.tokens = tensors["sum"].to(self._sum), int(tensors["tokens"])
        return self


class Inputs(InputStatistic):
    """Mean magnitude of each input channel, and a random sample of `ROWS` inputs (used by AWQ).

    The sample is uniform over all inputs seen, whatever their order: each input draws a number, and the
    largest are kept. It depends only on the inputs and their order, since the numbers come from a private
    generator.
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
        draws = torch.cat(
            [self._draws.cpu(), torch.rand(len(rows), generator=self._generator, dtype=torch.float64)]
        )
        best = draws.topk(min(self.ROWS, len(draws))).indices.sort().values
        self._draws, self._rows = draws[best], torch.cat([self._rows, rows])[best.to(rows.device)]

    def mean_magnitude(self) -> Tensor:
        """Return the mean magnitudes, float32 (in_features,); zeros if no input was seen."""
        return (self._sum / max(1, self.tokens)).float()

    def sample(self) -> Tensor:
        """Return the sample, float32 (up to ROWS, in_features)."""
        return self._rows

    def transformed(self, matrix: Tensor) -> Self:
        """Return a statistic of the transformed sample alone: other inputs are not kept."""
        rows = self._rows @ matrix.to(self._rows).T
        other = type(self)(len(matrix), self.device)
        other._add(rows)
        other.tokens = len(rows)
        return other

    def tensors(self) -> dict[str, Tensor]:
        return {
            "sum": self._sum,
            "rows": self._rows,
            "draws": self._draws,
            "tokens": torch.tensor(self.tokens),
        }

    def load(self, tensors: Mapping[str, Tensor]) -> Self:
        self._sum, self._rows = tensors["sum"].to(self._sum), tensors["rows"].to(self._rows)
        self._draws = tensors["draws"].to(self._draws)
        self.tokens = int(tensors["tokens"])
        return self


class Gradient(Statistic):
    """Sum of |∂ℓ/∂W| over windows; ℓ is a window's mean next-token cross-entropy, W the weight of one layer.

    Magnitudes are added, not gradients: in a trained model gradients cancel over many windows. Windows are
    added alternately to two sums, which show how much of a result depends on the text (`halves`). The second
    sum is empty before the second window.
    """

    kind = SiteKind.gradient

    def __init__(self, shape: tuple[int, int], device: torch.device) -> None:
        self.device = device
        self._windows = 0
        self._first = torch.zeros(shape, device=device)
        self._second = torch.zeros(0, shape[1], device=device)

    @classmethod
    def described(cls) -> str:
        return f"{cls.__name__} of the loss by each layer's weight"

    @classmethod
    def refusal(cls, targets: Sequence[Target]) -> str | None:
        narrow = any(target.tensor.dtype == torch.float16 for target in targets)
        return "which float16 is too narrow for; use model.dtype=float32 or bfloat16" if narrow else None

    @classmethod
    def for_layer(cls, shape: tuple[int, int], device: torch.device) -> Self:
        return cls(shape, device)

    @classmethod
    def of_noise(cls, shape: tuple[int, int], device: torch.device) -> Self:
        noisy = cls(shape, device)
        noisy.update(torch.randn(shape, generator=torch.Generator().manual_seed(0)), 1)
        return noisy

    def update(self, gradient: Tensor, tokens: int) -> None:
        """Add the gradient (out, in) of the loss of a window of `tokens` tokens.

        Raises:
            ValueError: it is not finite.
        """
        _refuse_not_finite(gradient, f"{self.layer}: the gradients")
        size = self._size(gradient.to(self.device, torch.float32))
        if self._windows % 2 == 0:
            self._first += size
        else:
            self._second = self._second + size if len(self._second) else size
        self._windows += 1
        self.tokens += tokens

    @staticmethod
    def _size(gradient: Tensor) -> Tensor:
        return gradient.abs()

    def total(self) -> Tensor:
        """Return the sum over all windows, float32 (out, in); zeros if no window was seen."""
        return self._first + self._second if len(self._second) else self._first

    def halves(self) -> tuple[Tensor, Tensor] | None:
        """Return two sums over different windows; None if there are fewer than two windows."""
        return (self._first, self._second) if len(self._second) else None

    def of_rows(self, start: int, count: int) -> Self:
        rows = {name: tensor[start : start + count] for name, tensor in self._sums().items()}
        return type(self)((count, self._first.shape[1]), self.device).load(
            rows | {"tokens": torch.tensor(self.tokens)}
        )

    def tensors(self) -> dict[str, Tensor]:
        return self._sums() | {"tokens": torch.tensor(self.tokens)}

    def load(self, tensors: Mapping[str, Tensor]) -> Self:
        self._first, self._second = tensors["first"].to(self._first), tensors["second"].to(self._second)
        self.tokens = int(tensors["tokens"])
        return self

    def _sums(self) -> dict[str, Tensor]:
        return {"first": self._first, "second": self._second}


class SquaredGradient(Gradient):
    """Sum of (∂ℓ/∂W)² over windows: diagonal of the empirical Fisher information, per window, not token."""

    @staticmethod
    def _size(gradient: Tensor) -> Tensor:
        return gradient.square()


def _refuse_not_finite(values: Tensor, what: str) -> None:
    if not torch.isfinite(values).all():
        raise ValueError(
            f"{what} on the calibration text have NaN or Inf: the model's activations overflow;"
            f" try model.dtype=float32 (it computes in {str(values.dtype).removeprefix('torch.')})"
        )
