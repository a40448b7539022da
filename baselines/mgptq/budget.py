"""Bits per column under an exact budget, from what each column would give for each width.

A table `cost` (in, widths) says what column j loses with each width; `within` picks the widths that cost least together while their mean
is at most the budget. It bisects the price μ of a bit, argmin_b(cost + μ b) for each column by itself, down to the smallest price at which
the budget holds; where a step of μ moves several columns at once, the bits that are left go one column at a time to where they cost least.
So the mean is the budget, up to less than one step between neighbouring widths of one single column.

Every allocator is such a table, so all of them meet the same budget in the same way.
"""

import torch
from torch import Tensor

BISECTIONS = 60


def within(cost: Tensor, widths: Tensor, budget: float) -> Tensor:
    """The index of each column's width, int64 (in,).

    Args:
        cost: (in, widths), finite; any unit.
        widths: bits, whole numbers (widths,), ascending.
        budget: the largest mean of bits, from the smallest to the largest width.
    """
    cost, bits = cost.double(), widths.double()
    allowed = int(budget * len(cost) + 1e-6)
    low, high = _range(cost, bits)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (low, middle) if _spent(_at(cost, bits, middle), widths) <= allowed else (middle, high)
    return _filled(cost, widths, _at(cost, bits, high), allowed)


def _range(cost: Tensor, bits: Tensor) -> tuple[float, float]:
    """Prices at which every column takes the largest width, and the smallest one."""
    steepest = (cost.amax() - cost.amin()).item() + 1.0
    narrowest = (bits[1:] - bits[:-1]).amin().item() if len(bits) > 1 else 1.0
    return -2 * steepest / narrowest, 2 * steepest / narrowest


def _at(cost: Tensor, bits: Tensor, price: float) -> Tensor:
    return (cost + price * bits).argmin(1)


def _spent(index: Tensor, widths: Tensor) -> int:
    return int(widths[index].sum())


def _filled(cost: Tensor, widths: Tensor, index: Tensor, allowed: int) -> Tensor:
    """With what is left of the budget spent, each time on the upgrade that costs least per bit."""
    index, left = index.clone(), allowed - _spent(index, widths)
    while True:
        more = widths - widths[index][:, None]
        change = (cost - cost.gather(1, index[:, None])) / more.clamp_min(1)
        change = change.masked_fill((more <= 0) | (more > left), torch.inf)
        best = int(change.argmin())
        column, choice = divmod(best, len(widths))
        if not torch.isfinite(change[column, choice]):
            return index
        left -= int(more[column, choice])
        index[column] = choice


def separable(errors: Tensor, factor: Tensor) -> Tensor:
    """‖E_b[:, j]‖² / U_jj², float64 (in, widths): what rounding column j costs under error feedback, by itself.

    Args:
        errors: (widths, rows, in).
        factor: upper factor of the inverse Hessian, (in, in).
    """
    return (errors.double().square().sum(1) / factor.diagonal().square()).T


def random(columns: int, widths: Tensor, generator: torch.Generator) -> Tensor:
    """The cost of leaving a width drawn for each column, at a random strength, float64 (in, widths)."""
    drawn = widths[torch.randint(len(widths), (columns,), generator=generator).to(widths.device)].double()
    strength = torch.rand(columns, generator=generator, dtype=torch.float64).to(widths.device)
    return strength[:, None] * (widths - drawn[:, None]).square()
