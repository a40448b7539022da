"""Methods: frozen dataclasses whose fields are their options and whose effect is one function.

    report = SINQ(Grid(bits=4)).compress(model)            # the whole interface
    weight = SINQ(Grid(bits=4)).quantize(matrix, None)     # one matrix, pure

Nearly all methods work one matrix at a time: they are a `LayerMethod` and write only `quantize`. A method that needs a whole decoder block
is a `BlockMethod` and writes `compress_block`. `block_loop.py` does the rest. Methods compose by value: a method around another one has it
in its field `inner` (`LayerWrapper`, `Tuned`), as in `AWQ(inner=RTN(Grid(bits=3)))`.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any, ClassVar, Self

from torch import Tensor, nn

from sinq.calibration.data import Calibration
from sinq.calibration.statistics import Statistic
from sinq.common.errors import NotApplicable
from sinq.common.named import Named
from sinq.formats.base import CompressedWeight, Format
from sinq.formats.grid import Grid
from sinq.methods.block_loop import compress_blocks, compress_group, compress_layers
from sinq.methods.layer_statistics import collect_in_block, groups_in_block, seen_in_blocks
from sinq.methods.plan import Plan, plan_layers
from sinq.methods.report import CompressionReport, PartReport
from sinq.model.context import Context
from sinq.model.walk import BlockView


class Method(Named, ABC):
    """A way to make a model smaller."""

    @property
    def statistic(self) -> type[Statistic] | None:
        """Class of what the method must know about each layer besides its weight; None if nothing."""
        return None

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
        context: Context = Context(),
    ) -> CompressionReport:
        """Replace layers of `model`, in place, by compressed ones.

        Args:
            calibration: text, for methods that need it; others do not look at it.
            context: which layers, where the work is done, and who is told how far it is.

        Raises:
            ValueError: before any work, if the options do not fit the model, naming the layers.
        """


class BlockMethod(Method):
    """A method that compresses one decoder block at a time, behind the compressed blocks before it."""

    @property
    def needs_calibration(self) -> bool:
        return True

    @abstractmethod
    def compress_block(self, block: BlockView) -> list[PartReport]:
        """Change `block.module` in place, and say what became of its matrices."""

    def plan(self, model: nn.Module, calibration: Calibration | None, context: Context) -> Plan:
        """Decide what is done to each layer, and refuse what cannot be done. By default nothing is decided."""
        return Plan()

    def compress(
        self,
        model: nn.Module,
        calibration: Calibration | None = None,
        context: Context = Context(),
    ) -> CompressionReport:
        return self.carry_out(self.plan(model, calibration, context), model, calibration, context)

    def carry_out(
        self,
        plan: Plan,
        model: nn.Module,
        calibration: Calibration | None,
        context: Context,
    ) -> CompressionReport:
        """Compress a model as a plan of this method says.

        Raises:
            NotApplicable: there is no text to run the blocks on, or only the dense model may be run.
        """
        name = type(self).__name__
        if calibration is None:
            why = "it works from what each block computes"
            raise NotApplicable(f"{name} needs calibration text: {why}. Try calibration=wikitext2 or sotu")
        if not calibration.sequential:
            raise NotApplicable(
                f"{name} works on each block behind the compressed blocks before it, which calibration.sequential=false"
                " never runs; use calibration.sequential=true, or a method of single layers"
            )
        return compress_blocks(model, self, plan, calibration, context)


class LayerMethod(BlockMethod):
    """A method that compresses one matrix at a time.

    Subclasses are dataclasses with a field `grid`, or delegate it; those of another format have `format` and `with_format` instead.
    """

    grid: Grid

    @property
    def format(self) -> Format:
        """Storage of a matrix: the grid, unless a subclass says otherwise."""
        return self.grid

    @property
    def true_sequential(self) -> bool:
        """Whether layers of a block wait for those before them in the same block to be compressed (see `calibration.py`)."""
        return False

    @property
    def needs_calibration(self) -> bool:
        return self.statistic is not None

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
        return [
            self.quantize(weight, statistic and statistic.of_rows(start, len(weight)))
            for weight, start in pairs
        ]

    def with_grid(self, grid: Grid) -> Self:
        """This method on another grid (used when a group size is shrunk to fit)."""
        return replace(self, grid=grid)  # type: ignore[type-var]

    def with_format(self, format: Any) -> Self:
        """This method in another format of the same kind."""
        return self.with_grid(format)

    def warming_up(self) -> Self:
        """Cheaper copy, run once so that the compilation of kernels is not timed as the first layer."""
        return self

    def plan(self, model: nn.Module, calibration: Calibration | None, context: Context) -> Plan:
        return plan_layers(model, self, calibration, context.layers)

    def carry_out(
        self,
        plan: Plan,
        model: nn.Module,
        calibration: Calibration | None,
        context: Context,
    ) -> CompressionReport:
        """Compress block by block if statistics are to be seen behind compressed blocks, else layer by layer."""
        if calibration is not None and calibration.sequential and seen_in_blocks(self.statistic):
            return compress_blocks(model, self, plan, calibration, context)
        return compress_layers(model, plan, calibration, context)

    def compress_block(self, block: BlockView) -> list[PartReport]:
        """Collect the statistics of the block's layers, quantize each group of layers that share one, and replace them."""
        groups = groups_in_block(block)
        at_once = [[group] for group in groups] if self.true_sequential else [groups]
        reports: list[PartReport] = []
        for some in at_once:
            for group, statistic in zip(some, collect_in_block(block, some), strict=True):
                reports += compress_group(block.model, group, statistic, block.device)
        return reports


class LayerWrapper(LayerMethod):
    """A layer method around another. Subclasses are dataclasses with a field `inner`, whose format, statistic and order are theirs."""

    inner: LayerMethod

    @property
    def grid(self) -> Grid:  # type: ignore[override]  # a field of most methods, which only a property can hand on
        return self.inner.grid

    @property
    def format(self) -> Format:
        return self.inner.format

    @property
    def statistic(self) -> type[Statistic] | None:
        return self.inner.statistic

    @property
    def true_sequential(self) -> bool:
        return self.inner.true_sequential

    def with_grid(self, grid: Grid) -> Self:
        return replace(self, inner=self.inner.with_grid(grid))  # type: ignore[type-var]

    def with_format(self, format: Any) -> Self:
        return replace(self, inner=self.inner.with_format(format))  # type: ignore[type-var]

    def warming_up(self) -> Self:
        return replace(self, inner=self.inner.warming_up())  # type: ignore[type-var]
