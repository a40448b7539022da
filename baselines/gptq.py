"""GPTQ (arXiv 2210.17323): round column by column, and let the columns still to come make up for each rounding error.

The output error of a layer, over the inputs X seen in calibration, is tr(E H Eᵀ) with E = W − Ŵ and H = XᵀX. When column j is rounded with
error e, the best change of the later columns is −e · U[j, j:] / U[j, j], where U is the upper Cholesky factor of H⁻¹. Changes inside a
block of columns are made at once, those behind it when the block is done ("lazy"), which is exact and faster.

Scales and zeros of a group are chosen when its first column is reached, from the weights as changed until then. `act_order` lets columns
that matter (large diagonal of H) go first. Groups are always those of the original order, so that storage stays what it is for every
other method: `groups` reorders groups and columns within a group (GPTQModel's default, "group-aware"); `full` reorders all columns
and chooses the scales of all groups before anything is rounded ("static groups"). The order can decide everything: on SmolLM2 at
3 bits, with the dense model's statistics, GPTQ without it is worse than round to nearest, though its layers' errors are smaller.

What this does that the packages do not agree on, or do not do:
- The inverse and its factor are computed in float64. Where H is singular all the same, the damping is raised tenfold until it is not, and
  the report says so (`damping_raised`). The default damping is the paper's 0.01; GPTQModel 7.6 has 0.05.
- A channel never active in calibration (a zero on the diagonal of H) is rounded to nearest, not set to 0: calibration is not all text.
- Each row keeps whichever of GPTQ and round to nearest has the smaller tr(E H Eᵀ), so that GPTQ is never the worse one on its own
  measure; the report counts rows where it was (`rows_rounded`).
"""

import enum
from dataclasses import dataclass, replace
from importlib import import_module
from typing import ClassVar, Self

import torch
from torch import Tensor

from sinq import Grid, Kernel, LayerMethod, Levels, QuantizedTensor, assign, choose
from sinq.kernels.choice import chosen
from sinq.rounding import centre, level, nearest
from sinq.statistics import Hessian, Statistic

SMALLEST_DAMPING = 1e-6
"""Where raising starts from 0."""
TRIANGLE = 64
"""Triangles up to this size are inverted as they are."""


class ActOrder(enum.Enum):
    """In which order columns are rounded."""

    none = "none"
    groups = "groups"
    full = "full"


@dataclass(frozen=True)
class GPTQ(LayerMethod):
    """Rounding with error feedback through the Hessian of the layer's inputs."""

    grid: Grid = Grid()
    damping: float = 0.01
    """Added to the diagonal of H, in units of its mean."""
    block: int = 128
    """Columns between two lazy updates; changes no result but by float rounding."""
    act_order: ActOrder = ActOrder.none
    true_sequential: bool = False  # type: ignore[misc]
    """Within a block, let each layer see the compressed ones before it: one more pass over the text for each input (about four)."""

    statistic: ClassVar[type[Statistic]] = Hessian

    def __post_init__(self) -> None:
        if self.damping < 0:
            raise ValueError(f"method.damping={self.damping} is not possible; it must be ≥ 0")
        if self.block < 1:
            raise ValueError(f"method.block={self.block} is not possible; it must be ≥ 1")

    def quantize(self, weight: Tensor, statistic: Hessian) -> QuantizedTensor:
        hessian = statistic.matrix()
        dead = hessian.diagonal() == 0
        alive = hessian + torch.diag(dead.double())
        order = self._order(alive.diagonal())
        factor, damping = inverse_factor(alive[order][:, order], self.damping)
        fed_back, rounded = self._feed_back(weight, factor.float(), order), _Rounded.nearest(weight, self.grid)
        worse = fed_back.row_errors(weight, hessian) > rounded.row_errors(weight, hessian)
        notes = {"damping_raised": damping} if damping > self.damping else {}
        notes |= {key: float(mask.sum()) for key, mask in (("dead_columns", dead), ("rows_rounded", worse)) if mask.any()}
        return fed_back.with_rows(worse, rounded).store(notes)

    def _order(self, importance: Tensor) -> Tensor:
        """Columns in the order they are rounded."""
        if self.act_order is ActOrder.full:
            return importance.argsort(descending=True, stable=True)
        columns = torch.arange(len(importance), device=importance.device).reshape(-1, self.grid.group_size)
        if self.act_order is ActOrder.groups:
            grouped = importance.reshape(columns.shape)
            columns = columns.gather(1, grouped.argsort(dim=1, descending=True, stable=True))
            columns = columns[grouped.amax(1).argsort(descending=True, stable=True)]
        return columns.reshape(-1)

    def _feed_back(self, weight: Tensor, factor: Tensor, order: Tensor) -> "_Rounded":
        """All columns in `order`, (in,), with the upper factor of the inverse Hessian, (in, in) in that order."""
        block = -(-self.block // self.grid.group_size) * self.grid.group_size  # whole groups, so that none is chosen half-updated
        work, result, choosing = weight[:, order], _Rounded.nearest(weight, self.grid), self.act_order is not ActOrder.full
        round_block = result.round_block_fast if _has_kernel(weight, self.grid) else result.round_block
        for start in range(0, len(order), block):
            stop = min(start + block, len(order))
            errors = round_block(work[:, start:stop], factor[start:stop, start:stop], order[start:stop], choosing)
            work[:, stop:] -= errors @ factor[start:stop, stop:]
        return result


def _has_kernel(weight: Tensor, grid: Grid) -> bool:
    return chosen(weight.device) is Kernel.cpu and grid.levels is Levels.uniform and not grid.symmetric


@dataclass(frozen=True, eq=False)
class _Rounded:
    """A matrix in the making: codes (out, in), scale and zero (out, in / group_size)."""

    grid: Grid
    codes: Tensor
    scale: Tensor
    zero: Tensor | None

    @classmethod
    def nearest(cls, weight: Tensor, grid: Grid) -> Self:
        scale, zero = choose(weight, grid)
        return cls(grid, assign(weight, scale, zero, grid), scale, zero)

    def round_block(self, work: Tensor, factor: Tensor, columns: Tensor, choosing: bool) -> Tensor:
        """Round a block of columns, (out, width), with feedback within it; `work` is overwritten.

        Args:
            factor: the block's part of the inverse Hessian's upper factor, (width, width).
            columns: where the block's columns lie in the matrix, (width,).
            choosing: whether scales and zeros of a group are chosen when it begins.

        Returns:
            Each column's error divided by the factor's diagonal, (out, width).
        """
        group_size, errors = self.grid.group_size, torch.empty_like(work)
        for j, column in enumerate(columns.tolist()):
            if choosing and j % group_size == 0:
                self.choose_group(column // group_size, work[:, j : j + group_size])
            errors[:, j] = (work[:, j] - self.round_column(column, work[:, j])) / factor[j, j]
            work[:, j:] -= errors[:, j, None] * factor[j, j:]
        return errors

    def round_block_fast(self, work: Tensor, factor: Tensor, columns: Tensor, choosing: bool) -> Tensor:
        """`round_block` by the processor's kernel."""
        kernel = import_module("baselines.gptq_kernel")  # Numba is loaded where it is needed
        return kernel.round_block(work, factor, columns, self.grid, choosing, self.codes, self.scale, self.zero)

    def choose_group(self, group: int, weight: Tensor) -> None:
        """Scale and zero of one group of columns, (out, group_size)."""
        scale, zero = choose(weight, self.grid)
        self.scale[:, group] = scale[:, 0]
        if self.zero is not None and zero is not None:
            self.zero[:, group] = zero[:, 0]

    def round_column(self, column: int, weight: Tensor) -> Tensor:
        """Set the codes of a column, (out,), and return the weights they stand for."""
        group = column // self.grid.group_size
        scale, zero = self.scale[:, group], centre(self.grid) if self.zero is None else self.zero[:, group]
        codes = nearest(weight / scale + zero, self.grid)
        self.codes[:, column] = codes
        return (level(codes, self.grid) - zero) * scale

    def row_errors(self, weight: Tensor, hessian: Tensor) -> Tensor:
        """The diagonal of E H Eᵀ, float64 (out,), with scales as they are stored."""
        error = (weight - self.store({}).dequantize()).double()
        return ((error @ hessian) * error).sum(1)

    def with_rows(self, rows: Tensor, other: Self) -> Self:
        """Rows of `other` where `rows`, (out,), says so."""
        codes, scale = (torch.where(rows[:, None], theirs, own) for own, theirs in ((self.codes, other.codes), (self.scale, other.scale)))
        zero = None if self.zero is None or other.zero is None else torch.where(rows[:, None], other.zero, self.zero)
        return replace(self, codes=codes, scale=scale, zero=zero)

    def store(self, notes: dict[str, float]) -> QuantizedTensor:
        return QuantizedTensor.store(self.codes, self.grid, self.scale, self.zero, notes=notes)


def inverse_factor(hessian: Tensor, damping: float) -> tuple[Tensor, float]:
    """Upper Cholesky factor U of the damped inverse, UᵀU = (H + λ·mean(diag H)·1)⁻¹, and the λ it took: `damping`, or a raised one.

    The inverse itself is never formed: with rows and columns in reverse order, H = L Lᵀ reads H = V Vᵀ of an upper V, and U = V⁻¹.

    Args:
        hessian: float64 (in, in), with a positive diagonal.

    Raises:
        ValueError: H is not finite.
    """
    if not torch.isfinite(hessian).all():
        raise ValueError("the Hessian of a layer's inputs has NaN or Inf: the model's activations overflow; try model.dtype=float32")
    reversed_, unit = hessian.flip(0, 1), hessian.diagonal().mean()
    while True:
        lower, failed = torch.linalg.cholesky_ex(reversed_ + damping * unit * torch.eye(len(hessian)).to(hessian))
        if not failed:
            return _upper_inverse(lower.flip(0, 1)), damping
        damping = max(10 * damping, SMALLEST_DAMPING)


def _upper_inverse(upper: Tensor) -> Tensor:
    """The inverse of an upper triangular matrix, by halves: all the work is in products."""
    half, result = len(upper) // 2, torch.zeros_like(upper)
    if len(upper) <= TRIANGLE:
        return torch.linalg.solve_triangular(upper, torch.eye(len(upper)).to(upper), upper=True)
    result[:half, :half], result[half:, half:] = _upper_inverse(upper[:half, :half]), _upper_inverse(upper[half:, half:])
    result[:half, half:] = -(result[:half, :half] @ upper[:half, half:]) @ result[half:, half:]
    return result
