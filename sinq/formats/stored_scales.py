"""Storage of scales and zeros: in float16, or one byte each.

Float16 holds numbers from 2⁻¹⁴ to 2¹⁵ in full precision. If the scales of a matrix are not all in this
range (weights of std 10⁻⁴ and less), they are multiplied by a power of two, which is stored in one more
byte, so that tiny weights lose nothing.

One byte for a *scale*: its log2, affine in blocks of 32 consecutive scales (row-major) with a float16 (low,
step) per block, so 1.125 bytes a scale. Logarithms make the relative error, which matters, the same for
every scale of a block.

One byte for a *zero*: a whole number around the grid's centre, exactly (`rounding.choose` ensures that it
fits). Groups share no range, so one narrow group cannot cost the others their resolution, which it does in
the official release.
"""

import torch
from torch import Tensor

from sinq.formats.grid import Grid, Levels
from sinq.formats.rounding import TABLE_ZERO_STEP

BLOCK = 32
HALF_MIN, HALF_MAX = -14, 14
"""Exponents of float16: of the smallest normal number, and the largest that rounding up keeps finite."""
LOWEST_EXPONENT = -126
"""Lowest stored exponent, of the smallest normal float32; smaller scales lose digits."""


def store_scale(scale: Tensor, bits: int) -> dict[str, Tensor]:
    """Return the stored tensors of positive float32 scales of any shape, by name.

    Args:
        bits: of a stored scale: 8, 16 or 32.

    Raises:
        ValueError: a scale is not a positive finite number; with 16 bits, the scales are too far apart for
            float16.
    """
    smallest, largest = scale.aminmax()
    if not (smallest > 0 and largest < torch.inf):
        raise ValueError(
            f"scales from {smallest:.3g} to {largest:.3g} cannot be stored; they must be above 0 and finite"
        )
    if bits == 32:
        return {"scale": scale}
    if bits == 16:
        return _store_half(scale, int(smallest.log2().floor()), int(largest.log2().floor()))
    blocks = _blocks(scale.log2())
    low = blocks.amin(1).to(torch.float16).float()
    step = ((blocks.amax(1) - low).clamp_min(0) / 255).to(torch.float16).float()
    codes = ((blocks - low[:, None]) / torch.where(step > 0, step, 1.0)[:, None]).round().clamp(0, 255)
    ranges = torch.stack([low, step], dim=1).to(torch.float16)
    return {
        "scale": codes.to(torch.uint8).reshape(-1)[: scale.numel()].reshape(scale.shape),
        "scale_range": ranges,
    }


def _store_half(scale: Tensor, low: int, high: int) -> dict[str, Tensor]:
    """Store scales from 2^low to below 2^(high + 1)."""
    if high - low > HALF_MAX - HALF_MIN:
        raise ValueError(
            f"scales from 2^{low} to 2^{high} are too far apart for float16; use auxiliary_bits=8 or 32"
        )
    exponent = min(max(0, high - HALF_MAX), low - HALF_MIN)  # 0 if the scales fit unchanged
    exponent = max(exponent, LOWEST_EXPONENT)
    tensors = {"scale": (scale * 2.0**-exponent).to(torch.float16)}
    if exponent:
        tensors["scale_exponent"] = torch.tensor([exponent], dtype=torch.int8, device=scale.device)
    return tensors


def load_scale(tensors: dict[str, Tensor]) -> Tensor:
    """Return the float32 scales that `store_scale` stored."""
    stored = tensors["scale"]
    if "scale_exponent" in tensors:
        return stored.float() * torch.exp2(tensors["scale_exponent"].float())
    if "scale_range" not in tensors:
        return stored.float()
    low, step = tensors["scale_range"].float().repeat_interleave(BLOCK, dim=0)[: stored.numel()].unbind(1)
    return torch.exp2(low + stored.reshape(-1) * step).reshape(stored.shape)


def store_zero(zero: Tensor, grid: Grid) -> Tensor:
    """Return zeros of `rounding.choose` in stored form: float16, float32, or int8 around the centre."""
    if grid.auxiliary_bits == 8:
        offset, step = _zero_byte(grid)
        return ((zero - offset) / step).round().to(torch.int8)
    return zero.to(torch.float16 if grid.auxiliary_bits == 16 else torch.float32)


def load_zero(stored: Tensor, grid: Grid) -> Tensor:
    """Return the float32 zeros that `store_zero` stored."""
    if grid.auxiliary_bits == 8:
        offset, step = _zero_byte(grid)
        return stored.float() * step + offset
    return stored.float()


def _zero_byte(grid: Grid) -> tuple[float, float]:
    """Return offset and step of a zero stored in one byte."""
    return (2.0 ** (grid.bits - 1), 1.0) if grid.levels is Levels.uniform else (0.0, TABLE_ZERO_STEP)


def _blocks(values: Tensor) -> Tensor:
    """Return values as (blocks, 32). The last block repeats its last value, which changes no range."""
    flat = values.reshape(-1)
    missing = -flat.numel() % BLOCK
    return torch.cat([flat, flat[-1:].expand(missing)]).reshape(-1, BLOCK)
