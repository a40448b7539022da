"""GPTQ (arXiv 2210.17323): round column by column; later columns compensate for each rounding error.

The output error of a layer, over the inputs X seen in calibration, is tr(E H Eᵀ) with E = W − Ŵ and H = XᵀX.
When column j is rounded with error e, the best change of the later columns is −e · U[j, j:] / U[j, j], where
U is the upper Cholesky factor of H⁻¹. Changes inside a block of columns are made at once. What all columns
before a block change in it is added when the block begins ("lazy"), from E and the root V of H = V Vᵀ: with
E = e U and U = V⁻¹, −e U[:, block] = E V[:, block] V[block, block]⁻¹ over those columns. So H is factored and
never inverted, which leaves the same codes but where float32 decides between two that are equally near.

*Around another method.* `inner` decides scales, zeros and column scales, and feedback decides the codes:
`GPTQ(RTN())` is the published algorithm; `GPTQ(SINQ())`, `GPTQ(SINQRefined())` and `GPTQ(AWQ(…))` store what
their inner method stores. With column scales t the matrix that is rounded is V = W / t, for which H is t H t
(`curvature.py`); SINQ's row scales become part of the groups' scales. Each tile of rows has t of its own, so
with `tiling=2` a factorization too.

What helps, on SmolLM2 at 3 bits in groups of 64 (docs/results.md; perplexity, dense 20.7): column scales
alone 54.9 (SINQ) and 41.6 (refined), feedback alone 46.4, both 33.9 and 29.3, with scales weighted by mean
squared inputs too 26.7. With own tokens of the model in place of text: 29.5, weights alone 31.7. What does
not help is in docs/negative_results.md.

*Scales and zeros* of a group are chosen when its first column is reached, from the weights as changed until
then, or before anything is rounded (`static_groups`). Only static ones know of the weights that AWQ cuts.
`act_order` rounds columns that matter (large diagonal of H) first. Groups are always those of the original
order, so that the stored format is that of every other method: `groups` reorders groups and columns within a
group (GPTQModel's default, "group-aware"); `full` reorders all columns, with static groups. The order can
decide everything: on SmolLM2 at 3 bits, with the dense model's statistics, version 1 without `act_order` was
worse than round to nearest, though its layers' errors were smaller.

What differs from the published algorithm and its code (IST-DASLab/gptq), or is open there:
- With `full`, scales are those of static groups (`--static-groups` of the later packages); the code chooses
  them on the way, for groups of reordered columns, which would need an index of groups to be stored.
- A group's range is that of its weights. The code widens it to contain 0.
- A channel never active in calibration (a zero on the diagonal of H) is rounded to nearest, not set to 0:
  calibration text is not all text. The damping is a share of the mean over the other channels. The code puts
  1 on the diagonal first, so that its results depend on the unit of the inputs.
- H is factored in float64; the code inverts it in float32, and factors the inverse. Where H is singular all
  the same, the damping is raised tenfold until it is not, and the report says so (`damping_raised`). The
  default damping is the paper's 0.01; GPTQModel 7.6 has 0.05.
- `keep_better_rows`, off by default, is this project's: each row keeps whichever of GPTQ and the inner method
  has the smaller tr(E H Eᵀ). So GPTQ is never worse by this measure; the report counts the rows left to the
  inner method (`rows_rounded`).
"""

import enum
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from baselines.gptq.curvature import Curvature, Toward, estimated_damping
from baselines.gptq.rounded import Rounded, round_block
from baselines.gptq.solved_groups import solved
from sinq import CompressedWeight, LayerWrapper, Normalized, NormalizingMethod, NotApplicable
from sinq.calibration.pairs import Pair, pair
from sinq.calibration.statistics import Hessian, InputStatistic, Statistic
from sinq.common.options import check, number, whole
from sinq.formats.mixed_columns import ColumnLevels, MixedColumns
from sinq.formats.rounding import divide, multiply, zero_limits


class ActOrder(enum.Enum):
    """Order in which columns are rounded."""

    none = "none"
    groups = "groups"
    full = "full"


@dataclass(frozen=True)
class GPTQ(LayerWrapper):
    """Rounding with error feedback through the Hessian of the layer's inputs.

    Raises:
        ValueError: an option is out of its range.
        NotApplicable: `inner` does not round in groups to a grid.
    """

    name: ClassVar[str] = "gptq"
    version: ClassVar[int] = 2
    """1 kept the better of GPTQ and round to nearest in each row, and damped by a mean with dead channels."""

    inner: NormalizingMethod
    """The method that chooses scales, zeros and column scales."""
    damping: float | None = 0.01
    """λ, in units of what `toward` adds to H. null: estimated from H and the number of tokens."""
    toward: Toward = Toward.identity
    """What damping pulls H to: the mean of its diagonal over channels that are alive, or its diagonal."""
    block: int = 128
    """Columns between two lazy updates; results differ by float rounding only."""
    act_order: ActOrder = ActOrder.none
    static_groups: bool = False
    """Choose all scales before anything is rounded; always so with act_order=full."""
    solve_groups: int = 0
    """Times that scales and zeros are solved for again after the last codes (`solved_groups.py`); not in the
    paper."""
    true_sequential: bool = False
    """Within a block, let each layer see the compressed layers before it.

    This takes one more pass over the text for each input (about four).
    """
    keep_better_rows: bool = False
    """Leave a row as `inner` rounds it where that has the smaller tr(E H Eᵀ); not in the paper."""

    def __post_init__(self) -> None:
        check(
            self,
            "method",
            damping=number(least=0, most=1e6),
            block=whole(1),
            solve_groups=whole(0, 100),
        )
        if not isinstance(self.inner, NormalizingMethod):
            raise NotApplicable(
                f"method.inner={type(self.inner).__name__} is not possible; GPTQ chooses codes for RTN, SINQ,"
                " SINQRefined, HQQ, or AWQ or Weighted around one of them"
            )
        if self.solve_groups and (self.grid.symmetric or self.grid.auxiliary_bits == 8):
            raise NotApplicable(
                f"method.solve_groups={self.solve_groups} solves for fractional zero-points: it needs"
                " symmetric=false and auxiliary_bits=16 or 32, or solve_groups=0"
            )

    @property
    def statistic(self) -> type[Statistic]:
        needed = self.inner.statistic
        return pair(Hessian, needed) if needed and issubclass(needed, InputStatistic) else Hessian

    def quantize(self, weight: Tensor, statistic: Hessian | Pair) -> CompressedWeight:
        return self.quantize_together([weight], statistic)[0]

    def quantize_together(self, weights: Sequence[Tensor], statistic: Any) -> list[CompressedWeight]:
        hessian: Any = statistic.parts[0] if isinstance(statistic, Pair) else statistic
        of_inner = statistic.parts[1] if isinstance(statistic, Pair) else None
        prepared = self.inner.prepare(weights, of_inner)
        unscaled = any(each.col_scale is None for each in prepared)
        shared = [self.curvature(hessian)] if unscaled else []
        return [
            self.feed_back(weight, each, self._by_tile(hessian, each) or shared)
            for weight, each in zip(weights, prepared, strict=True)
        ]

    def curvature(self, statistic: Hessian, col_scale: Tensor | None = None) -> Curvature:
        """Return the curvature shared by all layers that share their inputs and column scales, (in,).

        Raises:
            ValueError: the Hessian is not finite.
        """
        hessian = statistic.matrix()
        damping = estimated_damping(hessian, statistic.tokens) if self.damping is None else self.damping
        return Curvature.of(
            hessian,
            damping,
            self._order,
            toward=self.toward,
            col_scale=col_scale,
            tokens=statistic.tokens,
        )

    def _by_tile(self, statistic: Hessian, normalized: Normalized) -> list[Curvature]:
        """Return the curvature of each tile of rows that has column scales; none if there are no such."""
        col_scale = () if normalized.col_scale is None else normalized.col_scale
        return [self.curvature(statistic, of_tile) for of_tile in col_scale]

    def feed_back(
        self,
        weight: Tensor,
        normalized: Normalized,
        curvatures: Sequence[Curvature],
        levels: ColumnLevels | None = None,
    ) -> CompressedWeight:
        """Round a matrix (out, in).

        Args:
            normalized: its scales; its weight may be cut, which then decides scales and no codes.
            curvatures: curvature of each tile of rows.
            levels: levels of each column, where they differ from the grid's; the grid must then be uniform,
            with zeros, and `inner` scale no columns.
        """
        result = Rounded.by(self.inner, normalized, levels)
        for tile, curvature in enumerate(curvatures):
            rows = _rows(len(weight), tile, len(curvatures))
            self._feed_back(weight[rows], normalized.rows(rows, tile), result.rows(rows), curvature)
        notes = self._notes(curvatures)
        if self.keep_better_rows:
            inner = Rounded.by(self.inner, normalized, levels)
            errors = [
                _row_errors(weight, _store(each, normalized, {}), curvatures) for each in (result, inner)
            ]
            worse = errors[0] > errors[1]
            result = result.with_rows(worse, inner)
            notes |= {"rows_rounded": float(worse.sum())} if worse.any() else {}
        return _store(result, normalized, notes)

    def _notes(self, curvatures: Sequence[Curvature]) -> dict[str, float]:
        """Return what the report says of the curvatures of a matrix."""
        notes = {}
        if any(curvature.damping_raised for curvature in curvatures):
            notes["damping_raised"] = max(curvature.damping for curvature in curvatures)
        if curvatures[0].dead.any():
            notes["dead_columns"] = float(curvatures[0].dead.sum())
        if (most := curvatures[0].largest_rank) < len(curvatures[0].order):
            notes["hessian_rank"] = float(most)
        return notes

    def _order(self, importance: Tensor) -> Tensor:
        """Return the columns in the order they are rounded, int64 (in,), from the diagonal of H."""
        if self.act_order is ActOrder.full:
            return importance.argsort(descending=True, stable=True)
        columns = torch.arange(len(importance), device=importance.device).reshape(-1, self.grid.group_size)
        if self.act_order is ActOrder.groups:
            grouped = importance.reshape(columns.shape)
            columns = columns.gather(1, grouped.argsort(dim=1, descending=True, stable=True))
            columns = columns[grouped.amax(1).argsort(descending=True, stable=True)]
        return columns.reshape(-1)

    def _feed_back(
        self, weight: Tensor, normalized: Normalized, result: Rounded, curvature: Curvature
    ) -> None:
        """Round all columns of a tile of rows in order, and set its codes, and its scales unless static."""
        order, size = curvature.order, self.grid.group_size
        static = self.static_groups or self.act_order is ActOrder.full
        # What rounds by extremes alone chooses within the block's loop; any other method group by group.
        by_extremes = self.inner.only_rounds(normalized) and not (
            self.grid.range_floor and normalized.row_scale is not None
        )
        # Blocks are whole groups, so that no scale is chosen from half-updated weights.
        block = -(-self.block // size) * size if static or by_extremes else size
        matrix = divide(weight, None, normalized.col_scale)[:, order]
        error = torch.empty_like(matrix)  # V − V̂, in the order of rounding
        for start in range(0, len(order), block):
            part = slice(start, min(start + block, len(order)))
            columns, (factor, gain) = order[part], [each.float() for each in curvature.of_block(part)]
            moved = error[:, :start] @ gain
            work = matrix[:, part] + moved
            if not static and not by_extremes:
                self._choose_group(work, normalized, result, columns)
            errors = round_block(
                work,
                factor,
                columns,
                self.grid,
                result.levels,
                by_extremes and not static,
                result.codes,
                result.scale,
                result.zero,
            )
            torch.sub(errors @ factor, moved, out=error[:, part])
        if self.solve_groups:
            self._solve_groups(divide(weight, None, normalized.col_scale), result, curvature)

    def _solve_groups(self, matrix: Tensor, result: Rounded, curvature: Curvature) -> None:
        """Set the scales and zeros of a tile of rows to what leaves the least error with its codes."""
        assert result.zero is not None  # the grid is not symmetric
        damped = curvature.damped(self.toward).float()
        scale, zero = solved(matrix, result.values(), result.scale, result.zero, damped, self.solve_groups)
        smallest, largest = zero_limits(self.grid)
        fits = ((zero >= smallest) & (zero <= largest)).all(1, keepdim=True)  # a row is solved as a whole
        result.scale.copy_(torch.where(fits, scale, result.scale))
        result.zero.copy_(torch.where(fits, zero, result.zero))

    def _choose_group(self, work: Tensor, normalized: Normalized, result: Rounded, columns: Tensor) -> None:
        """Let `inner` choose scale and zero of a group from its weights so far, V (out, group_size)."""
        group = int(columns[0]) // self.grid.group_size
        of_group = normalized.columns(columns, [group])
        changed = replace(of_group, weight=multiply(work, None, of_group.col_scale))
        _, scale, zero = self.inner.choose(changed)
        result.set_group(group, scale if changed.row_scale is None else scale * changed.row_scale, zero)


def _rows(count: int, tile: int, tiles: int) -> slice:
    """Return the rows of a tile of a matrix of `count` rows."""
    return slice(tile * count // tiles, (tile + 1) * count // tiles)


def _row_errors(weight: Tensor, stored: CompressedWeight, curvatures: Sequence[Curvature]) -> Tensor:
    """Return the diagonal of E H Eᵀ, float64 (out,), with scales as they are stored."""
    error, tiles = (weight - stored.dequantize()).double(), len(curvatures)
    found = []
    for tile, curvature in enumerate(curvatures):
        of_tile = error[_rows(len(error), tile, tiles)]
        if curvature.col_scale is not None:
            of_tile = of_tile / curvature.col_scale
        found.append(((of_tile @ curvature.hessian) * of_tile).sum(1))
    return torch.cat(found)


def _store(rounded: Rounded, normalized: Normalized, notes: dict[str, float]) -> CompressedWeight:
    if rounded.levels is not None and rounded.zero is not None:
        return MixedColumns.store(
            rounded.codes, rounded.levels, rounded.grid, rounded.scale, rounded.zero, notes
        )
    whole = replace(normalized, row_scale=None)  # it is part of the scales
    return whole.store(rounded.grid, rounded.packed(), rounded.scale, rounded.zero, notes)
