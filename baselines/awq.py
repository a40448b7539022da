"""AWQ (arXiv 2306.00978) and A-SINQ: channels with large activations are scaled up before rounding.

Rounding errs by about the same amount everywhere, but an error counts as much as the activation it is
multiplied by. So column j is multiplied by c_j before rounding and divided by it afterwards, with

    c = m^α / (w^(1−α) + 1e-4)      m: mean |activation| of each channel
                                    w: mean of |W| over the largest |W| of its group

(without the `weight_term`: c = m^α), scaled so that the largest and smallest multiply to 1. Of `ratios`
values from 0 to 1, α is the one with the smallest output error over a sample of the calibration inputs. c = 1
is always among the candidates: where scaling does not help, nothing is scaled. Layers that share an input
(query, key and value) share c, chosen for their outputs together.

`clip` then cuts the largest weights of each group of a row to one of ten shares of the largest, from 1 down
to 0.55: the share with the smallest squared output error of that group alone. (The package skips query and
key; nothing here is skipped.)

Around SINQ this is A-SINQ (SINQ paper, equation 6): norm 1, no weight term, no clipping, c applied to the
balanced matrix. The division by c ends up in `col_scale`, so A-SINQ stores no more than SINQ. The balanced
matrix does not depend on c and is computed once.

Small values are floored at 1e-4 in units of the mean activation, so that nothing depends on the unit of the
inputs (the package floors c at an absolute 1e-4, which decides c where channels are never active).

Compared with autoawq 0.2.9: for the same α both give the same matrix. On a CPU, autoawq's search mostly ends
at α = 0, because the backup from which it restores the weights between two candidates (`v.cpu()`) is no copy
there and is scaled with them.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from sinq import Groups, LayerWrapper, Normalized, NormalizingMethod, ScalarMethod
from sinq.calibration.statistics import Inputs, Statistic
from sinq.common.options import check, one_of, whole
from sinq.formats.rounding import by_group

CLIPS = tuple(1 - step / 20 for step in range(10))
TINY = 1e-4
"""Floor of activations and of c, in units of the mean activation of channels that are alive; term of w."""
CHUNK = 64
"""Inputs between two checks whether a candidate is already worse than the best."""


@dataclass(frozen=True)
class AWQ(LayerWrapper, NormalizingMethod):
    """Activation-aware channel scales around a scalar quantizer.

    Raises:
        ValueError: an option is out of its range, or `inner` is not a scalar quantizer.
    """

    name: ClassVar[str] = "awq"
    version: ClassVar[int] = 2
    """1 floored activations at an absolute 1e-4."""

    inner: ScalarMethod
    norm: int = 2
    """Norm of the output error: 2, or 1 as in A-SINQ."""
    ratios: int = 20
    """Number of α tried: 0, 1/ratios, …"""
    weight_term: bool = True
    """Divide c by a power of w, so that channels of small weights are scaled up more."""
    clip: bool = True
    """Cut large weights where that lowers the output error."""

    def __post_init__(self) -> None:
        check(self, "method", norm=one_of(1, 2), ratios=whole(1, 10_000))
        if not isinstance(self.inner, ScalarMethod):
            inner = type(self.inner).__name__
            raise ValueError(f"method.inner={inner} is not possible; AWQ scales what RTN, SINQ or HQQ rounds")

    @property
    def statistic(self) -> type[Statistic]:
        return Inputs

    def choose(self, normalized: Normalized) -> Groups:
        return self.inner.choose(normalized)

    def only_rounds(self, normalized: Normalized) -> bool:
        return self.inner.only_rounds(normalized)

    def prepare(self, weights: Sequence[Tensor], statistic: Any) -> list[Normalized]:
        normalized = [self.inner.normalize(weight) for weight in weights]
        channel = self._search(normalized, statistic)
        scaled = [layer if channel is None else layer.scaled_by(channel) for layer in normalized]
        if self.clip and statistic.tokens:
            inputs = by_group(statistic.sample(), self.grid.group_size).transpose(0, 1)
            grams = inputs.transpose(1, 2) @ inputs
            scaled = [self._clipped(layer, grams) for layer in scaled]
        return scaled

    def _search(self, normalized: list[Normalized], statistic: Inputs) -> Tensor | None:
        """Return the best channel scale (in,); None for 1."""
        inputs, best = statistic.sample(), None
        if self.norm == 2:
            inputs = principal(inputs)
        lowest = self._error(normalized, inputs, math.inf)
        for channel in self._candidates(normalized, statistic):
            error = self._error([layer.scaled_by(channel) for layer in normalized], inputs, lowest)
            if error < lowest:
                lowest, best = error, channel
        return best

    def _error(self, normalized: list[Normalized], inputs: Tensor, lowest: float) -> float:
        """Return Σ |X (W − Ŵ)ᵀ|^norm over the sample and all layers that share it.

        Once the sum is not below `lowest`, stop and return the part summed so far.
        """
        errors, total = [self.inner.error(layer) for layer in normalized], 0.0
        for part in inputs.split(CHUNK):
            for error in errors:
                outputs = error @ part.T
                losses = outputs.abs_() if self.norm == 1 else outputs.square_()
                total += losses.sum(dtype=torch.float64).item()
            if total >= lowest:
                break
        return total

    def _candidates(self, normalized: list[Normalized], statistic: Inputs) -> Iterator[Tensor]:
        """Yield the channel scales (in,) besides 1.

        Middling α come first: they are mostly the best, so that the others can be dropped early.
        """
        activation = statistic.mean_magnitude()
        alive = activation[activation > 0]
        unit = alive.mean().item() if len(alive) else 1.0
        activation = activation.clamp_min(TINY * unit)
        shares = [_share_of_largest(layer.matrix, self.grid.group_size) for layer in normalized]
        weight = torch.cat(shares).mean(0)
        for step in sorted(range(self.ratios), key=lambda step: abs(2 * step - self.ratios)):
            ratio = step / self.ratios
            channel = activation**ratio
            if self.weight_term:
                channel = channel / (weight ** (1 - ratio) + TINY)
            channel = channel.clamp_min(TINY * unit**ratio)
            yield channel / (channel.max() * channel.min()).sqrt()

    def _clipped(self, normalized: Normalized, grams: Tensor) -> Normalized:
        """Cut the weights of each group of a row where that lowers the group's output error.

        Args:
            grams: XᵀX of each group's inputs, (groups, group_size, group_size).
        """
        largest = by_group(normalized.matrix.abs(), self.grid.group_size).amax(-1)
        best, lowest = largest, torch.full_like(largest, torch.inf)
        for share in CLIPS:
            error = self.inner.error(normalized, share * largest)
            grouped = by_group(error, self.grid.group_size).transpose(0, 1)
            loss = ((grouped @ grams) * grouped).sum(-1).T
            best = torch.where(loss < lowest, share * largest, best)
            lowest = torch.minimum(loss, lowest)
        return normalized.cut_at(best)


def around(inner: ScalarMethod) -> AWQ:
    """Return the calibrated form of a scalar quantizer.

    A quantizer that balances columns itself gets A-SINQ's settings, any other quantizer AWQ's.
    """
    balances = type(inner).normalize is not ScalarMethod.normalize
    return AWQ(inner, norm=1, weight_term=False, clip=False) if balances else AWQ(inner)


def _share_of_largest(matrix: Tensor, group_size: int) -> Tensor:
    """Return |W| over the largest |W| of its group, (out, in)."""
    groups = by_group(matrix.abs(), group_size)
    return (groups / (groups.amax(-1, keepdim=True) + 1e-6)).reshape(matrix.shape)


def principal(inputs: Tensor) -> Tensor:
    """Return rows Y with ‖Y e‖ = ‖X e‖ for every e, the longest first.

    Y has as many rows as X (tokens, in) has rows or columns, whichever are fewer.
    """
    if len(inputs) <= inputs.shape[1]:
        _, rotation = torch.linalg.eigh(inputs @ inputs.T)
        return rotation.flip(1).T @ inputs
    wide = inputs.double()  # errors avoid the longest direction; in float32 its rounding would drown them
    squares, directions = torch.linalg.eigh(wide.T @ wide)
    return (directions * squares.clamp_min(0).sqrt()).flip(1).T.float()
