"""Column scales that several matrices share, so that the layer before can take them (`export/folding.py`).

    q k v          one t, found on the three stacked        folds into the input norm's gain
    gate up        one t (all experts, and a router)        folds into the post-attention norm's gain
    o              one t for query heads of one kv head     folds into the rows of v
    down           a t of its own                           folds into the rows of up

Nothing is folded here: each matrix is stored with its column scales, and the model's other layers stay as
they are. Row scales of the iteration are left out; the scale of a row and group, chosen when the balanced
matrix is rounded, takes their part. t has geometric mean 1 in each group of columns.

PreSINQ finds the same t, but divides the dense weights by it before any quantizer sees them.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor, nn

from sinq.calibration.data import Calibration
from sinq.calibration.statistics import Statistic
from sinq.common.errors import NotApplicable
from sinq.formats.base import CompressedWeight, Format, Incompatibility
from sinq.formats.grid import Grid
from sinq.methods.plan import LayerPlan, Plan
from sinq.methods.scalar import Normalized, ScalarMethod
from sinq.model.context import Context
from sinq.model.decoder import Block, Norm, ParameterRef, decoder


class SharesColumns(ScalarMethod):
    """A method with column scales, which it may share between matrices.

    Subclasses are dataclasses with fields `grid` and `shared_columns`.
    """

    shared_columns: bool

    @abstractmethod
    def columns(self, weight: Tensor, tile: tuple[int, int]) -> Tensor:
        """Return positive column scales of a matrix (out, in), (out / tile rows, in)."""

    def plan(self, model: nn.Module, calibration: Calibration | None, context: Context) -> Plan:
        plan = super().plan(model, calibration, context)
        return sharing(model, plan) if self.shared_columns else plan

    def alone(self) -> Self:
        """Return the method without shared columns."""
        return replace(self, shared_columns=False)  # type: ignore[type-var]

    def require_shareable(self) -> None:
        """Raise `NotApplicable` if columns are to be shared, and they differ between tiles of rows."""
        if self.shared_columns and self.grid.tiling != 1:
            raise NotApplicable(
                "shared_columns=true is not possible with tiling=2: no layer before takes its t"
            )

    def refuse_alone(self) -> None:
        """Raise `NotApplicable` if columns are to be shared, and one matrix is given."""
        if self.shared_columns:
            raise NotApplicable(
                "shared_columns=true needs a whole model; use it without a method around it, and without"
                " stream"
            )


@dataclass(frozen=True)
class SharedColumns:
    """A quantizer of matrices that share column scales; it stands in plans, in place of `inner`."""

    inner: SharesColumns
    matrices: int = 1
    """Number of matrices that are quantized together."""
    repeats: int = 1
    """Query heads of a kv head, whose columns follow each other and share their scales."""
    head_width: int = 1

    @property
    def format(self) -> Format:
        return self.inner.grid

    @property
    def statistic(self) -> type[Statistic] | None:
        return None

    def quantize_together(self, weights: Sequence[Tensor], statistic: Any) -> list[CompressedWeight]:
        """Compress matrices that share their column scales.

        Raises:
            NotApplicable: they are not all here: another method goes through the layers one by one.
        """
        if len(weights) != self.matrices:
            raise NotApplicable(
                f"shared_columns needs the {self.matrices} matrices of a norm at once, and {len(weights)} are"
                " here; use it without a method around it, and without stream"
            )
        scale = self.col_scale(torch.cat(list(weights)))
        return [self.inner.round(Normalized(weight, col_scale=scale)) for weight in weights]

    def col_scale(self, stacked: Tensor) -> Tensor:
        """Return the column scales of matrices stacked to (out, in), (1, in)."""
        rows, columns = stacked.shape
        heads = columns // (self.repeats * self.head_width)
        by_head = stacked.reshape(rows, heads, self.repeats, self.head_width).transpose(1, 2)
        folded = by_head.reshape(rows * self.repeats, -1)  # columns that share their scale below each other
        grid = Grid(group_size=self.inner.grid.group_size).shrunk((len(folded), folded.shape[1]))
        width = grid.group_size if grid else folded.shape[1]
        scale = self.inner.columns(folded, (len(folded), width)).reshape(-1, width)
        level = (scale / scale.log().mean(1, keepdim=True).exp()).reshape(heads, 1, self.head_width)
        return level.expand(heads, self.repeats, self.head_width).reshape(1, columns).contiguous()

    def with_format(self, format: Any) -> Self:
        return replace(self, inner=self.inner.with_format(format))

    def incompatibility(self, shape: tuple[int, int]) -> Incompatibility | None:
        return self.inner.incompatibility(shape)

    def shrunk(self, shape: tuple[int, int]) -> Self | None:
        smaller = self.inner.shrunk(shape)
        return None if smaller is None else replace(self, inner=smaller)

    def warming_up(self) -> Any:
        return self.inner.alone()

    def for_layer(self, name: str) -> Any:
        return self


def sharing(model: nn.Module, plan: Plan) -> Plan:
    """Return a plan in which matrices that can share their column scales do; others have their own.

    Raises:
        NotApplicable: the architecture is not known.
    """
    sharer = _Sharer(plan)
    for block in decoder(model).blocks:
        for norm in block.norms:
            sharer.share(norm)
        sharer.share_heads(block)
    return sharer.plan()


class _Sharer:
    """Plans of a model's layers, by the parameters that they compress."""

    def __init__(self, plan: Plan) -> None:
        self.given = plan
        self.steps = {step.target.name: step for step in plan.steps}
        self.names = {
            (module, step.target.parameter or "weight"): step.target.name
            for step in plan.steps
            for module in step.target.modules
        }
        self.together: list[tuple[str, ...]] = []

    def of(self, reference: ParameterRef) -> LayerPlan | None:
        """Return the plan of a parameter, or None if it stays dense."""
        name = self.names.get((reference.module, reference.name))
        return None if name is None else self.steps[name]

    def share(self, norm: Norm) -> None:
        steps = [step for reader in norm.readers if (step := self.of(reader)) is not None]
        if not steps:
            return
        if len({step.method for step in steps}) > 1:
            names = ", ".join(step.target.name for step in steps)
            raise NotApplicable(f"shared_columns is not possible for {names}, whose formats differ")
        count = sum(len(step.target.matrices()) for step in steps)
        for step in steps:
            self._put(step, SharedColumns(step.method, count))  # type: ignore[arg-type]
        self.together.append(tuple(step.target.name for step in steps))

    def share_heads(self, block: Block) -> None:
        step = self.of(block.output)
        if step is None:
            return
        columns, rows = step.target.shape[1], len(block.value.module.weight)  # type: ignore[arg-type]
        method = SharedColumns(step.method, 1, columns // rows, block.head_width)  # type: ignore[arg-type]
        self._put(step, method)

    def _put(self, step: LayerPlan, method: SharedColumns) -> None:
        self.steps[step.target.name] = replace(step, method=method)

    def plan(self) -> Plan:
        """Return the plan; layers that share nothing are quantized by the method alone."""
        steps = [
            step if isinstance(step.method, SharedColumns) else replace(step, method=step.method.alone())  # type: ignore[attr-defined]
            for step in self.steps.values()
        ]
        return replace(self.given, steps=tuple(steps), together=tuple(self.together))
