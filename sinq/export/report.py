"""The result of an export: what is in the folder, and what it cost."""

from collections.abc import Mapping
from dataclasses import dataclass

from sinq.export.base import WrittenMatrix


@dataclass(frozen=True)
class RequantizedMatrix:
    """Relative errors, Frobenius, of a matrix W that is quantized as Ŵ, and rounded a second time to W′."""

    second: float
    """Of the second rounding alone, ‖W′ − Ŵ‖ / ‖Ŵ‖."""
    quantized: float | None
    """Of the matrix as it is quantized here, ‖Ŵ − W‖ / ‖W‖; None where the dense model is not known."""
    exported: float | None
    """Of the matrix in the exported file, ‖W′ − W‖ / ‖W‖."""


@dataclass(frozen=True)
class ExportReport:
    """An exported model."""

    format: str
    matrices: tuple[WrittenMatrix, ...]
    nbytes: int
    """Bytes of all files of the folder."""
    folded: tuple[str, ...]
    """Layers whose column scales are in the layer before."""
    requantized: Mapping[str, RequantizedMatrix]
    """Matrices that were rounded a second time: on request, or by a format that does so with all."""
    seconds: float = 0.0

    @property
    def bits_per_weight(self) -> float:
        """Bits of all tensors of compressed matrices as the format stores them, divided by their weights."""
        weights = sum(matrix.shape[0] * matrix.shape[1] for matrix in self.matrices)
        return 8 * sum(matrix.nbytes for matrix in self.matrices) / weights
