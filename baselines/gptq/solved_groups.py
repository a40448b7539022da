"""Scales and zeros of groups solved for again, for given codes, by the output error they make.

Once all codes are chosen, V̂ = s (q − z) is linear in the scales s and the offsets −s z of a row's groups, and
tr(E H Eᵀ) is quadratic in them. One group after another is set to its best values, for all rows at once: two
numbers per row and group, in closed form. No step raises the error.
"""

import torch
from torch import Tensor

from sinq.formats.rounding import by_group

FLAT = 1e-6
"""Relative determinant below which a group's two numbers cannot be told apart; they stay."""


def solved(
    matrix: Tensor, levels: Tensor, scale: Tensor, zero: Tensor, hessian: Tensor, sweeps: int
) -> tuple[Tensor, Tensor]:
    """Return scales and zeros that lower tr(E H Eᵀ), (out, in / group_size) each.

    Args:
        matrix: V, float32 (out, in).
        levels: the values q of the codes, float32 (out, in).
        scale, zero: to begin with, (out, in / group_size).
        hessian: H, with damping, float32 (in, in).
        sweeps: times that every group is set.

    A row whose scales would not all be positive keeps what it has.
    """
    size = matrix.shape[1] // scale.shape[1]
    scales, offsets = scale.clone(), -scale * zero
    error = matrix - (by_group(levels, size) * scales[..., None] + offsets[..., None]).reshape(matrix.shape)
    for _ in range(sweeps):
        for group in range(scale.shape[1]):
            part = slice(group * size, group * size + size)
            step, shift = _best(levels[:, part], error @ hessian[:, part], hessian[part, part])
            error[:, part] -= step[:, None] * levels[:, part] + shift[:, None]
            scales[:, group] += step
            offsets[:, group] += shift
    positive = (scales > 0).all(1, keepdim=True)
    return torch.where(positive, scales, scale), torch.where(positive, -offsets / scales, zero)


def _best(levels: Tensor, pull: Tensor, hessian: Tensor) -> tuple[Tensor, Tensor]:
    """Return the changes of scale and offset, (out,), that leave the least error.

    Args:
        levels: q of a group, (out, group_size).
        pull: the group's columns of E H, (out, group_size).
        hessian: the group's part of H.
    """
    weighted = levels @ hessian
    a, b, c = (weighted * levels).sum(1), weighted.sum(1), hessian.sum()
    by_level, by_one = (pull * levels).sum(1), pull.sum(1)
    determinant = a * c - b * b
    fits = determinant > FLAT * a * c
    safe = torch.where(fits, determinant, 1.0)
    step = torch.where(fits, (c * by_level - b * by_one) / safe, 0.0)
    return step, torch.where(fits, (a * by_one - b * by_level) / safe, 0.0)
