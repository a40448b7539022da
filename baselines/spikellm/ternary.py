"""Weights as ternary neurons: each column is −α, 0 or α, and salient columns are sums of several such steps.

The paper (arXiv 2407.04752) has ternary weights within GPTQ, whose salient columns fire for more steps; its
release has no code for them. This is a method of this project's, in that spirit:

    1. A column's saliency is the optimal brain surgeon's, Σ_i W[i, j]² / [H⁻¹]_jj², with H = XᵀX / tokens.
    2. Scales: α of a group's first step is fitted to its weights, and α of each later step, one for a row, to
       what the steps before leave of the row's salient columns.
    3. Column by column, weights fire (`fire`), and later columns compensate for what is left (GPTQ).

`SpikeLLM(inner=Ternary())` (method=spikellm_ternary) has inputs that fire too.

Choices, all of this project: the share and steps (10 % and 5, so 1.4 steps of a weight, which is what the
paper's reviews say of its ternary models); scales as Ternary Weight Networks fits them (arXiv 1605.04711:
α is the mean of what is above a threshold, at first 0.7 mean |w|, and the best threshold is α / 2), found
before feedback begins and not while it goes on; columns in their own order; scales in groups.
"""

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from baselines.gptq.curvature import Curvature
from sinq import CompressedWeight, LayerMethod
from sinq.algorithms.saliency import largest
from sinq.calibration.statistics import Hessian, Statistic
from sinq.common.options import check, number
from sinq.formats.rounding import by_group
from sinq.formats.stored_scales import load_scale, store_scale
from sinq.formats.ternary import TernarySteps, TernaryTensor

BLOCK = 128
"""Columns between two lazy updates; results differ by float rounding only."""
ROUNDS = 8
"""Times that a scale is fitted to what is above half of it."""


@dataclass(frozen=True)
class Ternary(LayerMethod):
    """Ternary weights with error feedback, salient columns of several steps.

    Raises:
        ValueError: an option is out of its range.
    """

    name: ClassVar[str] = "ternary"

    # A literal default is not possible: the base class has a property of this name.
    format: TernarySteps = TernarySteps()  # noqa: RUF009
    damping: float = 0.01
    """λ, in units of the mean of diag H over channels that are alive."""

    def __post_init__(self) -> None:
        check(self, "method", damping=number(least=0, most=1e6))

    @property
    def statistic(self) -> type[Statistic]:
        return Hessian

    def with_format(self, format: Any) -> Self:
        return replace(self, format=format)

    def quantize(self, weight: Tensor, statistic: Hessian) -> CompressedWeight:
        curvature = Curvature.of(statistic.matrix(), self.damping, _in_order, tokens=statistic.tokens)
        inverse = curvature.factor.square().sum(0)  # the diagonal of UᵀU
        score = weight.double().square().sum(0) / inverse.square()
        salient = largest(score, self.format.share)
        scale = load_scale(store_scale(scales(weight, salient, self.format), 16))
        spikes = fed_back(weight, scale, salient, self.format, curvature.factor.float())
        notes = {"damping_raised": curvature.damping} if curvature.damping_raised else {}
        return TernaryTensor.store(spikes, salient, scale, self.format, notes)


def _in_order(diagonal: Tensor) -> Tensor:
    return torch.arange(len(diagonal), device=diagonal.device)


def fire(charge: Tensor, scales: Tensor) -> tuple[Tensor, Tensor]:
    """Return the spikes of ternary neurons, (steps, …), and what is left of their charge (…).

    Args:
        scales: of each step, (steps, …), above 0; a step fires the nearest of −1, 0 and 1.
    """
    spikes = []
    for scale in scales:
        spikes.append((charge / scale).round().clamp(-1, 1))
        charge = charge - spikes[-1] * scale
    return torch.stack(spikes), charge


def fitted(values: Tensor) -> Tensor:
    """Return the scale of ternary values (..., n), (...); 1 where all are 0."""
    magnitude = values.abs()
    threshold = 0.7 * magnitude.mean(-1)
    for _ in range(ROUNDS):
        above = magnitude > threshold[..., None]
        scale = (magnitude * above).sum(-1) / above.sum(-1).clamp_min(1)
        threshold = scale / 2
    return torch.where(scale > 0, scale, 1.0)


def scales(weight: Tensor, salient: Tensor, format: TernarySteps) -> Tensor:
    """Return the scales of a matrix (out, in): (out, groups + steps − 1)."""
    groups = by_group(weight, format.group_size)
    found = fitted(groups)
    _, left = fire(groups, found[None, ..., None])
    rest = left.reshape(weight.shape)[:, salient]
    columns = [found]
    for _ in range(format.steps - 1):
        scale = fitted(rest)[:, None] if rest.numel() else torch.ones_like(found[:, :1])
        _, rest = fire(rest, scale[None])
        columns.append(scale)
    return torch.cat(columns, dim=1)


def fed_back(weight: Tensor, scale: Tensor, salient: Tensor, format: TernarySteps, factor: Tensor) -> Tensor:
    """Return the spikes of a matrix (out, in), int8 (steps, out, in).

    Args:
        factor: U with UᵀU = H⁻¹, float32 (in, in).
    """
    work, groups = weight.clone(), weight.shape[1] // format.group_size
    spikes = torch.zeros(format.steps, *weight.shape, dtype=torch.int8, device=weight.device)
    later, several = scale[:, groups:].T, salient.tolist()
    for start in range(0, weight.shape[1], BLOCK):
        stop = min(start + BLOCK, weight.shape[1])
        errors = torch.empty_like(work[:, start:stop])
        for column in range(start, stop):
            first = scale[:, column // format.group_size][None]
            fired, left = fire(work[:, column], torch.cat([first, later]) if several[column] else first)
            spikes[: len(fired), :, column] = fired.to(torch.int8)
            errors[:, column - start] = error = left / factor[column, column]
            work[:, column + 1 : stop] -= error[:, None] * factor[column, column + 1 : stop]
        work[:, stop:] -= errors @ factor[start:stop, stop:]
    return spikes
