"""The result of an export: what is in the folder, and what it cost."""

from collections.abc import Mapping
from dataclasses import dataclass

from sinq.export.base import WrittenMatrix


@dataclass(frozen=True)
class RequantizedMatrix:
    """Relative errors ‖Ŵ − W‖ / ‖W‖ of a matrix that was rounded a second time, against the dense one."""

    quantized: float
    """Of the matrix as it is quantized here."""
    exported: float
    """Of the matrix in the exported file."""


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
    """Matrices that the format cannot hold, and that were rounded a second time on request."""
    seconds: float = 0.0

    @property
    def bits_per_weight(self) -> float:
        """Bits of all tensors of compressed matrices as the format stores them, divided by their weights."""
        weights = sum(matrix.shape[0] * matrix.shape[1] for matrix in self.matrices)
        return 8 * sum(matrix.nbytes for matrix in self.matrices) / weights
