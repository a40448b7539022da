"""Sinkhorn normalization of standard deviations (SINQ, arXiv 2509.22944, algorithm 1).

A matrix is easy to quantize if no row and no column stands out. SINQ divides it by a scale per row and a
scale per column, chosen so that the standard deviations of all rows and columns are as equal as possible:

    Ŵ = W / (row ⊗ col),   imbalance(Ŵ) = max(all row and column std) / min(all row and column std)   → small

Each step measures row and column std on the same Ŵ (Jacobi, not Gauss-Seidel), compares them with the
target τ (the smallest std of the tile at the start), and moves the logarithms of the scales by the
logarithm of the clamped ratio. The best state seen is kept. Tiles (see `formats/grid.py`) are balanced
independently of each other.

The paper leaves the constants open. The defaults are those of the authors' code, with one difference. There
the floors are absolute numbers, so a tile with std 1e-4 is hardly balanced at all. Here they are relative
to the tile's own std, which makes the result independent of the scale of the weights
(`relative_floors=False` gives the absolute floors).

This module is the definition: plain and in float32. Fast versions are tested against it.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from sinq.common.options import check, number, whole

CHUNK_ELEMENTS = {"cpu": 1 << 20}
"""Elements balanced at once, by type of device: on a CPU, few enough to stay in its cache."""
ALL = 1 << 62
LARGEST_LOG = 80.0
"""Largest logarithm of a scale; e^88 is the end of float32."""
TIE = 1 + 1e-6
"""Ratio up to which two imbalances are equal. While all scales move by the clamped step the imbalance stays
constant, and rounding must not decide whether the tile stops."""


@dataclass(frozen=True)
class Sinkhorn:
    """Constants of the iteration.

    Raises:
        ValueError: a constant makes the iteration meaningless.
    """

    iterations: int = 16
    """Number of states that are scored; no update follows the last one."""
    step_min: float = 0.7
    step_max: float = 2.0
    """Clamp of std/τ in one step."""
    log_min: float = -0.3
    log_max: float = 10.0
    """Clip of the accumulated logarithm of a scale."""
    std_min: float = 1e-3
    std_max: float = 1e3
    """Clamp of a measured std; in units of the tile's std if `relative_floors`."""
    early_stop: bool = True
    """Stop moving a tile the first time its imbalance rises."""
    relative_floors: bool = True
    """Measure std in units of the tile's std."""

    def __post_init__(self) -> None:
        logarithm, positive = number(least=-LARGEST_LOG, most=LARGEST_LOG), number(above=0, most=1e30)
        check(
            self,
            iterations=whole(1),
            step_min=positive,
            step_max=positive,
            log_min=logarithm,
            log_max=logarithm,
            std_min=positive,
            std_max=positive,
        )
        for low, high in (("step_min", "step_max"), ("log_min", "log_max"), ("std_min", "std_max")):
            if getattr(self, low) >= getattr(self, high):
                raise ValueError(f"{low}={getattr(self, low)} must be below {high}={getattr(self, high)}")


def to_tiles(weight: Tensor, tile: tuple[int, int]) -> Tensor:
    """Return a matrix (out, in) as tiles (out/rows · in/columns, rows, columns), in row-major order."""
    rows, columns = tile
    out_features, in_features = weight.shape
    split = weight.reshape(out_features // rows, rows, in_features // columns, columns)
    return split.transpose(1, 2).reshape(-1, rows, columns)


def _std(tiles: Tensor, dim: int) -> Tensor:
    # Unbiased like the reference; a single row or column has no spread. Written out, it is ten times faster
    # than torch.std on a CPU.
    centred = tiles - tiles.mean(dim, keepdim=True)
    return (centred.square_().sum(dim, dtype=torch.float64) / max(1, tiles.shape[dim] - 1)).sqrt().float()


def imbalance(tiles: Tensor) -> Tensor:
    """Return the largest over the smallest std of all rows and columns (paper, equation 4).

    Tiles (T, rows, columns) give (T,).
    """
    return _ratio(_std(tiles, 2), _std(tiles, 1))


def _ratio(row_std: Tensor, col_std: Tensor) -> Tensor:
    both = torch.cat([row_std, col_std], dim=1)
    return both.amax(1) / both.amin(1).clamp_min(1e-12)


def sinkhorn_scales(
    weight: Tensor, tile: tuple[int, int], options: Sinkhorn = Sinkhorn()
) -> tuple[Tensor, Tensor]:
    """Return the row and column scales that balance every tile of a matrix (paper, algorithm 1).

    Args:
        weight: (out, in), any float type; the computation is in float32.
        tile: rows and columns of a tile; they must divide `weight`.

    Returns:
        row_scale (out, in / columns) and col_scale (out / rows, in), float32, all positive.
    """
    tiles = to_tiles(weight.float(), tile)
    pieces = [_balance(piece, options) for piece in _pieces(tiles)]
    rows, cols = (torch.cat(part) for part in zip(*pieces, strict=True))
    (height, width), (out_features, in_features) = tile, weight.shape
    row_scale = rows.reshape(out_features // height, in_features // width, height).transpose(1, 2)
    return row_scale.reshape(out_features, -1), cols.reshape(out_features // height, in_features)


def _pieces(tiles: Tensor) -> Iterator[Tensor]:
    yield from tiles.split(max(1, CHUNK_ELEMENTS.get(tiles.device.type, ALL) // tiles[0].numel()))


def _balance(tiles: Tensor, options: Sinkhorn) -> tuple[Tensor, Tensor]:
    """Return row scales (T, rows) and column scales (T, columns) of tiles (T, rows, columns)."""
    if options.relative_floors:
        spread = tiles.std(dim=(1, 2), keepdim=True)
        tiles = tiles / torch.where(spread > 0, spread, 1.0)
    log_row, log_col = torch.zeros_like(tiles[:, :, 0]), torch.zeros_like(tiles[:, 0, :])
    best_row, best_col = log_row, log_col
    row_std, col_std = _std(tiles, 2), _std(tiles, 1)
    best = previous = torch.full_like(row_std[:, 0], torch.inf)
    target = _target(row_std, col_std, options)
    moving = torch.ones_like(target)
    for _ in range(options.iterations):
        current = tiles / log_col.exp()[:, None, :] / log_row.exp()[:, :, None]
        row_std, col_std = _std(current, 2), _std(current, 1)
        score = _ratio(row_std, col_std)
        better = (score <= best * TIE)[:, None]
        best_row, best_col = torch.where(better, log_row, best_row), torch.where(better, log_col, best_col)
        best = torch.minimum(score, best)
        if options.early_stop:
            moving = moving * (score <= previous * TIE)[:, None]
        previous = score
        log_row, log_col = (
            _step(log, std, target, moving, options) for log, std in ((log_row, row_std), (log_col, col_std))
        )
    return best_row.exp(), best_col.exp()


def _target(row_std: Tensor, col_std: Tensor, options: Sinkhorn) -> Tensor:
    """Return τ of the paper, (T, 1): the smallest std of each tile. The 1e-6 is the reference's guard."""
    both = torch.cat([row_std, col_std], dim=1).clamp(options.std_min, options.std_max)
    return both.amin(1, keepdim=True) + 1e-6


def _step(log_scale: Tensor, std: Tensor, target: Tensor, moving: Tensor, options: Sinkhorn) -> Tensor:
    ratio = (std.clamp(options.std_min, options.std_max) / target).clamp(options.step_min, options.step_max)
    return (log_scale + ratio.log() * moving).clamp(options.log_min, options.log_max)
