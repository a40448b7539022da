"""Bits per column under an exact budget, from the cost of each column at each bit-width.

A table `cost` (in, bit-widths) holds the loss of column j at each bit-width. `within` picks the bit-widths
with the smallest total cost whose mean is at most the budget. It bisects the Lagrange multiplier μ of a bit,
argmin_b(cost + μ b) for each column separately, down to the smallest multiplier at which the budget holds.
Where a step of μ moves several columns at once, the remaining bits go one column at a time to where they cost
least. So the mean is the budget, up to less than one step between neighbouring bit-widths of one single
column.

Every allocator is such a table, so all allocators meet the same budget in the same way.
"""

import torch
from torch import Tensor

BISECTIONS = 60


def within(cost: Tensor, bit_widths: Tensor, budget: float) -> Tensor:
    """Return the index of each column's bit-width, int64 (in,).

    Args:
        cost: (in, bit-widths), finite; any unit.
        bit_widths: whole numbers (bit-widths,), ascending.
        budget: the largest mean of bits, from the smallest to the largest bit-width.
    """
    cost, bits = cost.double(), bit_widths.double()
    allowed = int(budget * len(cost) + 1e-6)
    low, high = _range(cost, bits)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        if _spent(_cheapest(cost, bits, middle), bit_widths) <= allowed:
            high = middle
        else:
            low = middle
    return _fill(cost, bit_widths, _cheapest(cost, bits, high), allowed)


def _range(cost: Tensor, bits: Tensor) -> tuple[float, float]:
    """Return multipliers at which every column takes the largest, and the smallest bit-width."""
    steepest = (cost.amax() - cost.amin()).item() + 1.0
    narrowest = (bits[1:] - bits[:-1]).amin().item() if len(bits) > 1 else 1.0
    return -2 * steepest / narrowest, 2 * steepest / narrowest


def _cheapest(cost: Tensor, bits: Tensor, multiplier: float) -> Tensor:
    return (cost + multiplier * bits).argmin(1)


def _spent(index: Tensor, bit_widths: Tensor) -> int:
    return int(bit_widths[index].sum())


def _fill(cost: Tensor, bit_widths: Tensor, index: Tensor, allowed: int) -> Tensor:
    """Spend the rest of the budget, each time on the upgrade with the smallest change of cost per bit."""
    index, left = index.clone(), allowed - _spent(index, bit_widths)
    while True:
        more = bit_widths - bit_widths[index][:, None]
        change = (cost - cost.gather(1, index[:, None])) / more.clamp_min(1)
        change = change.masked_fill((more <= 0) | (more > left), torch.inf)
        column, choice = divmod(int(change.argmin()), len(bit_widths))
        if not torch.isfinite(change[column, choice]):
            return index
        left -= int(more[column, choice])
        index[column] = choice


def separable(errors: Tensor, factor: Tensor) -> Tensor:
    """Return ‖E_b[:, j]‖² / U_jj², the cost of rounding column j alone under error feedback.

    Args:
        errors: (bit-widths, rows, in).
        factor: upper factor of the inverse Hessian, (in, in).

    Returns:
        float64 (in, bit-widths).
    """
    return (errors.double().square().sum(1) / factor.diagonal().square()).T


def random(columns: int, bit_widths: Tensor, generator: torch.Generator) -> Tensor:
    """Return the cost of deviating from a bit-width drawn for each column, float64 (in, bit-widths).

    The strength of the cost is random too.
    """
    index = torch.randint(len(bit_widths), (columns,), generator=generator).to(bit_widths.device)
    drawn = bit_widths[index].double()
    strength = torch.rand(columns, generator=generator, dtype=torch.float64).to(bit_widths.device)
    return strength[:, None] * (bit_widths - drawn[:, None]).square()
