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

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from sinq.formats.checks import HALF, DTypes, require_tensor
from sinq.formats.grid import Grid, Levels
from sinq.formats.rounding import TABLE_ZERO_STEP

BLOCK = 32
HALF_MIN, HALF_MAX = -14, 14
"""Exponents of float16: of the smallest normal number, and the largest that rounding up keeps finite."""
LOWEST_EXPONENT = -126
"""Lowest stored exponent, of the smallest normal float32; smaller scales lose digits."""
FLOAT_MAX = 128
"""Exponent of the first power of two that is infinite in float32."""
SCALE_TENSORS = ("scale", "scale_range", "scale_exponent")
STORED: dict[int, DTypes] = {8: torch.uint8, 16: HALF, 32: torch.float32}
"""Types of a stored scale, by its bits."""
STORED_ZERO: dict[int, DTypes] = {8: torch.int8, 16: HALF, 32: torch.float32}
"""Types of a stored zero, by its bits."""


def store_scale(scale: Tensor, bits: int) -> dict[str, Tensor]:
    """Return the stored tensors of positive float32 scales of any shape, by name.

    Args:
        bits: of a stored scale: 8, 16 or 32.

    Raises:
        ValueError: a scale is not a positive finite number; with 16 bits, the scales are too far apart for
            float16.
    """
    smallest, largest = torch.stack(scale.aminmax()).tolist()  # a device is asked once
    if not (smallest > 0 and largest < math.inf):
        raise ValueError(
            f"scales from {smallest:.3g} to {largest:.3g} cannot be stored; they must be above 0 and finite"
        )
    if bits == 32:
        return {"scale": scale}
    if bits == 16:
        return _store_half(scale, math.frexp(smallest)[1] - 1, math.frexp(largest)[1] - 1)
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


def load_scale(tensors: Mapping[str, Tensor]) -> Tensor:
    """Return the float32 scales that `store_scale` stored."""
    stored = tensors["scale"]
    if "scale_exponent" in tensors:
        return stored.float() * torch.exp2(tensors["scale_exponent"].float())
    if "scale_range" not in tensors:
        return stored.float()
    low, step = tensors["scale_range"].float().repeat_interleave(BLOCK, dim=0)[: stored.numel()].unbind(1)
    return torch.exp2(low + stored.reshape(-1) * step).reshape(stored.shape)


def require_scale(tensors: Mapping[str, Tensor], shape: tuple[int, int], bits: int) -> None:
    """Raise `ValueError` if stored scales do not have the tensors that `store_scale` makes for a shape.

    Args:
        tensors: of a value; those of its scales are `SCALE_TENSORS`.
        bits: of a stored scale.
    """
    found = [name for name in SCALE_TENSORS if name in tensors]
    accepted = {
        8: (["scale", "scale_range"],),
        16: (["scale"], ["scale", "scale_exponent"]),
        32: (["scale"],),
    }
    if found not in accepted[bits]:
        wanted = " or ".join(" and ".join(names) for names in accepted[bits])
        raise ValueError(
            f"scales of {bits} bits have the tensors {', '.join(found)}; they must have {wanted}"
        )
    require_tensor("scale", tensors["scale"], STORED[bits], shape)
    if bits == 8:
        blocks = -(-shape[0] * shape[1] // BLOCK)
        require_tensor("scale_range", tensors["scale_range"], HALF, (blocks, 2))
    require_exponent(tensors)


def require_exponent(tensors: Mapping[str, Tensor]) -> None:
    """Raise `ValueError` if the exponent of stored scales, where there is one, is no single byte."""
    if "scale_exponent" in tensors:
        require_tensor("scale_exponent", tensors["scale_exponent"], torch.int8, (1,))


def require_finite_scale(tensors: Mapping[str, Tensor]) -> None:
    """Raise `ValueError` if decoded scales of finite stored numbers are not finite in float32."""
    if "scale_range" in tensors:
        low, step = tensors["scale_range"].float().unbind(1)
        powers = torch.cat([low, low + 255 * step])
    elif "scale_exponent" in tensors:
        powers = tensors["scale"].float().abs().amax().log2() + tensors["scale_exponent"].float()
    else:
        return
    if powers.numel() and powers.amax() >= FLOAT_MAX:
        name = "scale_range" if "scale_range" in tensors else "scale_exponent"
        raise ValueError(
            f"{name} makes scales of 2^{powers.amax().item():.0f}; they must be below 2^{FLOAT_MAX}"
        )


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
