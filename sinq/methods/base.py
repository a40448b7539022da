"""Methods: frozen dataclasses whose fields are their options and whose effect is one function.

    report = SINQ(Grid(bits=4)).compress(model)            # the whole interface
    weight = SINQ(Grid(bits=4)).quantize(matrix, None)     # one matrix, pure

Nearly all methods work on one matrix at a time: they are a `LayerMethod` and write only `quantize`. A method
that needs a whole decoder block is a `BlockMethod` and writes `compress_block`. `block_loop.py` does the
rest. Methods compose by value: a method around another one holds it in its field `inner` (`LayerWrapper`,
`Tuned`), as in `AWQ(inner=RTN(Grid(bits=3)))`.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import is_dataclass, replace
from itertools import accumulate
from typing import Any, ClassVar, Self

from torch import Tensor, nn

from sinq.calibration.data import Calibration, check_calibration
from sinq.calibration.statistics import Statistic
from sinq.common.errors import PASS_CALIBRATION, NotApplicable
from sinq.common.named import Named
from sinq.common.options import check
from sinq.formats.base import CompressedWeight, Format, Incompatibility
from sinq.formats.grid import Grid
from sinq.methods.block_loop import CompressesBlocks, compress_blocks, compress_group, compress_layers
from sinq.methods.construction import check_arguments
from sinq.methods.layer_statistics import collect_in_block, groups_in_block, seen_in_blocks
from sinq.methods.plan import Plan, plan_layers
from sinq.methods.report import CompressionReport, PartReport
from sinq.model.blocks import require_running
from sinq.model.context import Context
from sinq.model.preconditions import require_in_memory
from sinq.model.walk import BlockView


class Method(Named, ABC):
    """A way to make a model smaller.

    Subclasses are frozen dataclasses. One whose numbers have bounds states them in its `__post_init__`.

    Raises:
        TypeError: there is no such option, or an option that is a dataclass or a method is given as a number.
        ValueError: an option is not finite, or not of its type.
    """

    def __new__(cls, *values: Any, **options: Any) -> Self:
        check_arguments(cls, values, options)
        return super().__new__(cls)

    def __post_init__(self) -> None:
        if is_dataclass(self):
            check(self, "method")

    @property
    def statistic(self) -> type[Statistic] | None:
        """Class of the statistic the method needs of each layer besides its weight; None if it needs none."""
        return None

    @property
    def label(self) -> str:
        """Class of the method, and its format where it has one: `SINQ 4-bit g64`."""
        stored = getattr(self, "format", None)
        return type(self).__name__ if stored is None else f"{type(self).__name__} {stored.label}"

    changes_model: ClassVar[bool] = True
    """False for the dense model alone: layers, kernels and streaming do not apply to it."""

    @property
    def changes_shapes(self) -> bool:
        """True if matrices and attention are smaller afterwards."""
        return False

    @property
    def compresses_layers(self) -> bool:
        """True if layers hold compressed weights afterwards, whose inputs can be rounded."""
        return self.changes_model

    sets_options: ClassVar[frozenset[str]] = frozenset()
    """Options of the grid that the method sets itself, in place of its inner method's."""

    @property
    def needs_calibration(self) -> bool:
        """True if `compress` reads calibration text."""
        return self.statistic is not None

    @abstractmethod
    def compress(
        self,
        model: nn.Module,
        calibration: Calibration | None = None,
        context: Context = Context(),
    ) -> CompressionReport:
        """Replace layers of `model`, in place, by compressed ones.

        `check_given` comes first, and `check_running` last before the work.

        Args:
            calibration: text, for methods that need it; others ignore it.
            context: the layers to compress, the device to work on, and the progress display.

        Raises:
            TypeError: `calibration` is no `Calibration`.
            ValueError: before any work, if the options do not fit the model, naming the layers.
        """

    def check_given(self, model: nn.Module, calibration: Calibration | None) -> None:
        """Check what `compress` is given, whatever the options: the model as it is, and the text.

        Raises:
            TypeError: `calibration` is no `Calibration`.
            ValueError: the model is a wrapper, quantized already, or not in memory.
        """
        check_calibration(calibration)
        require_in_memory(model)

    def check_running(self, model: nn.Module, calibration: Calibration | None) -> None:
        """Raise `ValueError` if the method needs text, and the model cannot be run on it.

        It comes last before the work: other checks name the layer that is at fault.
        """
        if calibration is not None and self.needs_calibration:
            require_running(model, calibration.tokens)


class BlockMethod(Method):
    """A method that compresses one decoder block at a time, behind the compressed blocks before it."""

    trains: ClassVar[bool] = False
    """True if it trains whole blocks by itself: a method that goes layer by layer, or tunes blocks, cannot be
    around it."""

    @property
    def needs_calibration(self) -> bool:
        return True

    @abstractmethod
    def compress_block(self, block: BlockView) -> list[PartReport]:
        """Change `block.module` in place, and return a report of each of its matrices."""

    def plan(self, model: nn.Module, calibration: Calibration | None, context: Context) -> Plan:
        """Decide how each layer is compressed, and refuse what cannot be done. The default is an empty plan.

        Raises:
            NotApplicable: the method cannot compress the model, or lacks calibration text.
            ValueError: the options do not fit the model.
        """
        return Plan()

    def compress(
        self,
        model: nn.Module,
        calibration: Calibration | None = None,
        context: Context = Context(),
    ) -> CompressionReport:
        self.check_given(model, calibration)
        plan = self.plan(model, calibration, context)
        self.check_running(model, calibration)
        report = self.carry_out(plan, model, calibration, context)
        return replace(report, method=self.label)

    def carry_out(
        self,
        plan: Plan,
        model: nn.Module,
        calibration: Calibration | None,
        context: Context,
    ) -> CompressionReport:
        """Compress a model by a plan of this method.

        Raises:
            NotApplicable: there is no text to run the blocks on, or only the dense model may be run.
        """
        name = type(self).__name__
        if calibration is None:
            raise NotApplicable(
                f"{name} needs calibration text: it works from what each block computes; {PASS_CALIBRATION}"
            )
        if not calibration.sequential:
            raise NotApplicable(
                f"{name} works on each block behind the compressed blocks before it,"
                " which calibration.sequential=false never runs;"
                " use calibration.sequential=true, or a method of single layers"
            )
        return compress_blocks(model, self.of_run(context), plan, calibration, context)

    def of_run(self, context: Context) -> CompressesBlocks:
        """Return what compresses the blocks of one run: the method, unless something is kept between them."""
        return self


class LayerMethod(BlockMethod):
    """A method that compresses one matrix at a time.

    Subclasses are dataclasses with a field `grid`, or delegate it. Subclasses of another format have `format`
    and `with_format` instead.
    """

    grid: Grid

    @property
    def format(self) -> Format:
        """Storage of a matrix: the grid, unless a subclass overrides it."""
        return self.grid

    @property
    def true_sequential(self) -> bool:
        """True if each layer of a block waits until the layers before it in the block are compressed.

        `calibration/data.py` describes this order.
        """
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
        """Compress matrices (out, in) that share inputs and a statistic (query, key and value; gate and up).

        A statistic of rows (`Statistic.of_rows`) holds the rows of the first matrix, then of the second, and
        so on.
        """
        starts = accumulate((len(weight) for weight in weights), initial=0)
        pairs = zip(weights, starts, strict=False)
        return [
            self.quantize(weight, statistic and statistic.of_rows(start, len(weight)))
            for weight, start in pairs
        ]

    def with_grid(self, grid: Grid) -> Self:
        """Return this method on another grid (used when a group size is shrunk to fit)."""
        return replace(self, grid=grid)  # type: ignore[type-var]

    def with_format(self, format: Any) -> Self:
        """Return this method in another format of the same kind."""
        return self.with_grid(format)

    def incompatibility(self, shape: tuple[int, int]) -> Incompatibility | None:
        """Return the reason why the method cannot compress a matrix (out, in), or None if it can."""
        return self.format.incompatibility(shape)

    def shrunk(self, shape: tuple[int, int]) -> Self | None:
        """Return this method in the nearest smaller format that fits a matrix, or None if none does."""
        smaller = self.format.shrunk(shape)
        return None if smaller is None else self.with_format(smaller)

    def warming_up(self) -> Self:
        """Return a cheaper copy, run once so that compiling kernels is not timed as the first layer."""
        return self

    def for_layer(self, name: str) -> "LayerMethod":
        """Return the method that compresses a layer: this one, unless it treats some layers differently."""
        return self

    def plan(self, model: nn.Module, calibration: Calibration | None, context: Context) -> Plan:
        if self.true_sequential and calibration is not None and not calibration.sequential:
            raise NotApplicable(
                "method.true_sequential=true is not possible with calibration.sequential=false,"
                " which takes all statistics of the dense model"
            )
        return plan_layers(model, self, calibration, context.layers)

    def carry_out(
        self,
        plan: Plan,
        model: nn.Module,
        calibration: Calibration | None,
        context: Context,
    ) -> CompressionReport:
        """Compress block by block if statistics are taken behind compressed blocks, else layer by layer."""
        if calibration is not None and calibration.sequential and seen_in_blocks(self.statistic):
            return compress_blocks(model, self, plan, calibration, context)
        return compress_layers(model, plan, calibration, context)

    def compress_block(self, block: BlockView) -> list[PartReport]:
        """Collect statistics of the block's layers, quantize the layers group by group, and replace them."""
        groups = groups_in_block(block)
        stages = [[group] for group in groups] if self.true_sequential else [groups]
        reports: list[PartReport] = []
        for stage in stages:
            for group, statistic in zip(stage, collect_in_block(block, stage), strict=True):
                reports += compress_group(block.model, group, statistic, block.device)
        return reports


class LayerWrapper(LayerMethod):
    """A layer method around another.

    Subclasses are dataclasses with a field `inner`, and take format, statistic and order from it.
    """

    inner: LayerMethod

    # The override: `grid` is a field of most methods, and only a property can delegate it.
    @property
    def grid(self) -> Grid:  # type: ignore[override]
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

    def incompatibility(self, shape: tuple[int, int]) -> Incompatibility | None:
        return self.inner.incompatibility(shape)

    def shrunk(self, shape: tuple[int, int]) -> Self | None:
        inner = self.inner.shrunk(shape)
        return None if inner is None else replace(self, inner=inner)  # type: ignore[type-var]

    def with_grid(self, grid: Grid) -> Self:
        return replace(self, inner=self.inner.with_grid(grid))  # type: ignore[type-var]

    def with_format(self, format: Any) -> Self:
        return replace(self, inner=self.inner.with_format(format))  # type: ignore[type-var]

    def warming_up(self) -> Self:
        return replace(self, inner=self.inner.warming_up())  # type: ignore[type-var]

    def for_layer(self, name: str) -> LayerMethod:
        inner = self.inner.for_layer(name)
        return self if inner is self.inner else replace(self, inner=inner)  # type: ignore[type-var]
