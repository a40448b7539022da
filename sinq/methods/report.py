"""Report of a compression: one entry for each part of the model it changed, and totals.

Most parts are weight matrices, but a part may be anything with a size: heads, neurons, a cache. A part counts
the parameters that are present now and those the dense model had there, so pruned parameters are not counted
as stored in 0 bits. A report without parts is legal: the dense model has one.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Self

import torch
from torch import Tensor

from sinq.algorithms.sinkhorn import imbalance, to_tiles
from sinq.formats.base import CompressedWeight
from sinq.formats.grid import Grid
from sinq.formats.scalar import QuantizedTensor
from sinq.training.log import TrainingLog


@dataclass(frozen=True)
class Decision:
    """A decision taken for one part, not by the user: its bits, a smaller group, a raised damping."""

    name: str
    value: float
    chosen: bool = False
    """True if the value *is* the decision (bits=3); False if it measures one (9 rows were rounded)."""

    @property
    def label(self) -> str:
        """Name under which parts are counted. Different chosen values count as different decisions."""
        return f"{self.name}={self.value:g}" if self.chosen else self.name


def measured(values: Mapping[str, float]) -> tuple[Decision, ...]:
    """Return the notes of a compressed weight as decisions."""
    return tuple(Decision(name, value) for name, value in values.items())


@dataclass(frozen=True)
class PartReport:
    """Part of a model, before and after compression."""

    kind: str
    """Kind of the part: "weight", or another word of the method that changed it."""
    name: str
    dense_parameters: int
    """Number of parameters the dense model has there."""
    parameters: int
    """Number of parameters that are present now, in any number of bits."""
    nbytes: int
    """Bytes of everything stored for the part."""
    relative_error: float | None
    """‖W − Ŵ‖ / ‖W‖, Frobenius; None where the part is no approximation of a matrix.

    It is finite: a layer whose compressed matrix has NaN or Inf is an error."""
    seconds: float
    """Time spent on the part, plus its share (by parameters) of the time its block was tuned."""
    decisions: tuple[Decision, ...] = ()
    shape: tuple[int, int] | None = None
    """(out_features, in_features) of a weight."""
    group_size: int | None = None
    imbalance_before: float | None = None
    """Mean over tiles of largest/smallest row or column std of W. None for weights without scales."""
    imbalance_after: float | None = None
    """Same measure of W / (scale · col_scale), the matrix that is rounded."""

    def __post_init__(self) -> None:
        if self.relative_error is not None and not math.isfinite(self.relative_error):
            raise ValueError(
                f"layer {self.name}: the compressed matrix is {self.relative_error} away from the dense one:"
                " its weights are too far apart for the format's stored scales;"
                " try grid.auxiliary_bits=32, or add the layer to layers.exclude"
            )

    @property
    def bits_per_weight(self) -> float:
        """Bits stored per present parameter; 0 where there is none."""
        return 8 * self.nbytes / self.parameters if self.parameters else 0.0

    @property
    def decided(self) -> dict[str, float]:
        """Value of each decision by name."""
        return {decision.name: decision.value for decision in self.decisions}

    def as_row(self) -> dict[str, Any]:
        """Return the part as a row of a table; all cells are plain values."""
        decisions = "; ".join(f"{name}={value:g}" for name, value in self.decided.items())
        row = asdict(self) | {"decisions": decisions}
        out_features, in_features = row.pop("shape") or (None, None)
        return row | {
            "out_features": out_features,
            "in_features": in_features,
            "bits_per_weight": self.bits_per_weight,
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """Return the part whose `dataclasses.asdict` was written as JSON."""
        decisions = tuple(Decision(**each) for each in content["decisions"])
        shape = content["shape"] and (content["shape"][0], content["shape"][1])
        return cls(**{**content, "decisions": decisions, "shape": shape})


@dataclass(frozen=True, repr=False)
class CompressionReport:
    """All changed parts of a model. Times, in seconds, exclude loading and the report's measurements.

    Printed, it is a table of a few lines; `[part.as_row() for part in report.parts]` is the whole one.
    """

    parts: tuple[PartReport, ...] = ()
    skipped: tuple[str, ...] = ()
    """Layers left dense because the format does not fit them."""
    left_dense: Mapping[str, str] = field(default_factory=dict)
    """Reasons why other linear layers stay dense, by name; layers that were excluded are not in it."""
    seconds_statistics: float = 0.0
    seconds_quantize: float = 0.0
    seconds_compile: float = 0.0
    """Time before the first layer: compiling kernels, or loading them from disk."""
    training: TrainingLog | None = None
    """Steps of a method that trains; None for others."""
    samples: Mapping[str, Any] = field(default_factory=dict)
    """Raw values that a row keeps besides, as plain JSON, by name; small, and bounded in size."""
    method: str = field(default="", compare=False)
    """Name of the method and its format, for people."""

    @property
    def nbytes(self) -> int:
        """Bytes stored for all parts."""
        return sum(part.nbytes for part in self.parts)

    @property
    def bits_per_weight(self) -> float:
        """Bits stored per present parameter of the parts; 0 where there is none."""
        parameters = sum(part.parameters for part in self.parts)
        return 8 * self.nbytes / parameters if parameters else 0.0

    def __repr__(self) -> str:
        return "\n".join(f"{name:<16}{value}" for name, value in self._lines())

    def _lines(self) -> Iterator[tuple[str, str]]:
        yield "method", self.method or "unknown"
        yield "parts", f"{len(self.parts)} compressed" if self.parts else "none is compressed"
        if self.parts:
            yield "bits per weight", f"{self.bits_per_weight:.3f}"
            yield "MB", f"{self.nbytes / 1e6:.3f}"
        if self.relative_error_mean is not None:
            yield "mean error", f"{self.relative_error_mean:.4f}, relative to the norm of each matrix"
        times = {
            "quantizing": self.seconds_quantize,
            "statistics": self.seconds_statistics,
            "loading kernels": self.seconds_compile,
        }
        yield "seconds", ", ".join(f"{seconds:.1f} {what}" for what, seconds in times.items())
        if self.training is not None:
            yield "training", self.training.summary
        if self.decisions:
            yield "decisions", ", ".join(f"{count} × {label}" for label, count in self.decisions.items())

    @property
    def decisions(self) -> dict[str, int]:
        """Number of parts by label of decision, and of layers that stay dense."""
        counts = Counter(decision.label for part in self.parts for decision in part.decisions)
        dense = {"skipped": len(self.skipped), "left_dense": len(self.left_dense)}
        return dict(counts) | {label: count for label, count in dense.items() if count}

    @property
    def relative_error_mean(self) -> float | None:
        """Mean of `relative_error` over the parts that have one; None where none has."""
        errors = [part.relative_error for part in self.parts if part.relative_error is not None]
        return sum(errors) / len(errors) if errors else None


def describe(
    name: str, weight: Tensor, compressed: CompressedWeight, seconds: float, decisions: Sequence[Decision]
) -> PartReport:
    """Report on a compressed matrix (out, in).

    Args:
        seconds: time spent on the matrix.
        decisions: decisions besides those that `compressed` has noted.
    """
    weight = weight.float()
    balance = _imbalances(weight, compressed) if isinstance(compressed, QuantizedTensor) else (None, None)
    return PartReport(
        kind="weight",
        name=name,
        dense_parameters=weight.numel(),
        parameters=compressed.shape[0] * compressed.shape[1],
        nbytes=compressed.nbytes,
        relative_error=relative_error(weight, compressed.dequantize()),
        seconds=seconds,
        decisions=(*measured(compressed.notes), *decisions),
        shape=compressed.shape,
        group_size=compressed.group_size,
        imbalance_before=balance[0],
        imbalance_after=balance[1],
    )


def relative_error(weight: Tensor, result: Tensor) -> float:
    """Return ‖W − Ŵ‖ / ‖W‖, Frobenius, or ‖W − Ŵ‖ where W is 0; float32 matrices (out, in).

    Both are divided by a power of 2 first, so that no square overflows or vanishes.
    """
    unit = 2.0 ** math.frexp(weight.abs().amax().item())[1]
    norm = torch.linalg.vector_norm(weight / unit).item()
    error = torch.linalg.vector_norm((weight - result) / unit).item()
    return error / norm if norm > 0 else error


def _imbalances(weight: Tensor, compressed: QuantizedTensor) -> tuple[float, float]:
    """Return the imbalance of W and of W / (scale · col_scale)."""
    grid = compressed.grid
    scale = compressed.scale().abs().repeat_interleave(grid.group_size, dim=1)
    col_scale = compressed.col_scale()
    if col_scale is not None:
        scale = scale * col_scale.repeat_interleave(weight.shape[0] // len(col_scale), dim=0)
    return _mean_imbalance(weight, grid), _mean_imbalance(weight / scale, grid)


def _mean_imbalance(matrix: Tensor, grid: Grid) -> float:
    height, width = grid.tile((matrix.shape[0], matrix.shape[1]))
    return imbalance(to_tiles(matrix, (height, width))).mean().item()
