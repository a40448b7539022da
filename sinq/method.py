"""Methods: frozen dataclasses whose fields are their options and whose effect is one function.

    report = SINQ(Grid(bits=4)).compress(model)            # the whole interface
    weight = SINQ(Grid(bits=4)).quantize(matrix, None)     # one matrix, pure

Nearly all methods work one matrix at a time: they are a `LayerMethod` and write only `quantize`. `block_loop.py` does the rest. Methods
compose by value: a method around another one has it in its field `inner` (`LayerWrapper`), as in `AWQ(inner=RTN(Grid(bits=3)))`.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from sinq.block_loop import compress_layers
from sinq.calibration import Calibration
from sinq.format import Format
from sinq.grid import Grid
from sinq.layers import Layers
from sinq.named import Named
from sinq.progress import Progress, silent
from sinq.report import CompressionReport
from sinq.statistics import Statistic
from sinq.tensor import CompressedWeight
from sinq.tuning import BlockTuning


class Method(Named, ABC):
    """A way to make a model smaller."""

    statistic: ClassVar[type[Statistic] | None] = None
    """What the method must know about each layer besides its weight, if anything."""

    changes_model: ClassVar[bool] = True
    """False for the dense model alone, which layers, kernels and streaming do not concern."""

    @property
    def needs_calibration(self) -> bool:
        """Whether `compress` looks at calibration text."""
        return self.statistic is not None

    @abstractmethod
    def compress(
        self,
        model: nn.Module,
        calibration: Calibration | None = None,
        *,
        layers: Layers | None = None,
        device: torch.device | str | None = None,
        progress: Progress = silent,
    ) -> CompressionReport:
        """Replace layers of `model`, in place, by compressed ones.

        Args:
            calibration: text, for methods that need it; others do not look at it.
            layers: which layers; all but the output head by default.
            device: where the work is done, one layer or block at a time; by default where the model is.
            progress: wraps an iterable to show how far it is.

        Raises:
            ValueError: before any work, if the options do not fit the model, naming the layers.
        """


class LayerMethod(Method):
    """A method that compresses one matrix at a time.

    Subclasses are dataclasses with a field `grid`, or delegate it; those of another format have `format` and `with_format` instead.
    """

    grid: Grid
    true_sequential: ClassVar[bool] = False
    """Whether layers of a block wait for those before them in the same block to be compressed (see `calibration.py`)."""

    tuning: ClassVar[BlockTuning | None] = None
    """How every block is tuned once its layers are compressed, if it is."""

    @property
    def format(self) -> Format:
        """How matrices are stored."""
        return self.grid

    @abstractmethod
    def quantize(self, weight: Tensor, statistic: Any) -> CompressedWeight:
        """Compress one matrix (out, in), float32. Pure: no device moves, no printing.

        Args:
            statistic: an instance of `self.statistic` that has seen the text; None if calibration-free.
        """

    def quantize_together(self, weights: Sequence[Tensor], statistic: Any) -> list[CompressedWeight]:
        """Compress matrices that share their inputs, and so their statistic (query, key and value; gate and up).

        A statistic of their rows (`Statistic.of_rows`) has those of the first matrix, then those of the second …
        """
        starts = accumulate((len(weight) for weight in weights), initial=0)
        pairs = zip(weights, starts, strict=False)
        return [self.quantize(weight, statistic and statistic.of_rows(start, len(weight))) for weight, start in pairs]

    def with_grid(self, grid: Grid) -> Self:
        """This method on another grid (used when a group size is shrunk to fit)."""
        return replace(self, grid=grid)  # type: ignore[type-var]

    def with_format(self, format: Any) -> Self:
        """This method in another format of the same kind."""
        return self.with_grid(format)

    def warming_up(self) -> Self:
        """This method as it is run for nothing, to have its kernels compiled; one that iterates for long does so less."""
        return self

    def compress(
        self,
        model: nn.Module,
        calibration: Calibration | None = None,
        *,
        layers: Layers | None = None,
        device: torch.device | str | None = None,
        progress: Progress = silent,
    ) -> CompressionReport:
        return compress_layers(model, self, calibration, layers=layers or Layers(), device=device, progress=progress)


class LayerWrapper(LayerMethod):
    """A layer method around another. Subclasses are dataclasses with a field `inner`, whose format, statistic and order are theirs."""

    inner: LayerMethod

    @property
    def grid(self) -> Grid:  # type: ignore[override]
        return self.inner.grid

    @property
    def format(self) -> Format:
        return self.inner.format

    @property
    def tuning(self) -> BlockTuning | None:  # type: ignore[override]
        return self.inner.tuning

    @property
    def statistic(self) -> type[Statistic] | None:  # type: ignore[override]
        return self.inner.statistic

    @property
    def true_sequential(self) -> bool:  # type: ignore[override]
        return self.inner.true_sequential

    def with_grid(self, grid: Grid) -> Self:
        return replace(self, inner=self.inner.with_grid(grid))  # type: ignore[type-var]

    def with_format(self, format: Any) -> Self:
        return replace(self, inner=self.inner.with_format(format))  # type: ignore[type-var]

    def warming_up(self) -> Self:
        return replace(self, inner=self.inner.warming_up())  # type: ignore[type-var]
