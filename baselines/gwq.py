"""GWQ (arXiv 2411.00850): weights with the largest loss gradients stay in float16, the rest is rounded.

    A = Σ |∂ℓ/∂W|       over calibration windows; ℓ: mean next-token cross-entropy of the dense model
    outliers            the `share` of a layer's weights with the largest A, kept as float16(W), sparse
                        (`sinq/formats/sparse_outliers.py`)
    other weights       min-max rounding in groups, as RTN, with ranges that ignore the outliers

In the rounded matrix an outlier is rounded as a weight of 0, and so decodes to exactly 0: the dense and the
sparse part are added, and no weight is held twice. Where all other weights of its group have one sign, the
range is widened to reach 0 (`widened_groups` in the report; on the embedded model at 1 %, in 6 layers of 210
at the most).

**Claims of the paper** (from its abstract, all that was at hand): gradients find outliers, the top 1 % stay
in FP16, the rest is grouped at low bits, one calibration sample is enough. No code and no table was found, so
nothing here was checked against the authors' numbers.

**Chosen here**, since no source says:
- |∂ℓ/∂W| itself ranks weights; magnitudes, not gradients, are added over windows; at the pretrained weights,
  float32 sums.
- 1 % of each layer, not of the model (`global` scope, a threshold over all layers, is not offered: a method
  sees one layer at a time).
- Groups of 64, asymmetric, min-max; float16 scales and zeros; no error feedback (that would be GWQ + GPTQ).
- Number and text of windows: `calibration.samples=1` is the paper's "one sample"; its length and text are not
  known.
- Storage: float16 value and 16-bit column for each outlier, 32 bits for each row; an outlier's code in the
  rounded matrix is paid for too.

`score` tests the claim: |∂ℓ/∂W · W| (first-order change of the loss if the weight were 0), (∂ℓ/∂W)² (Fisher;
with one window the same mask as the gradient), |W|, and chance. With two windows or more the report has
`mask_overlap` of each layer: the share of outliers that two halves of the windows, each alone, would both
choose (by chance, `share`).
"""

import enum
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sinq import Grid, LayerMethod, Levels, Normalized, NotApplicable, SparseOutliers
from sinq.calibration.statistics import Gradient, SquaredGradient, Statistic
from sinq.common.options import SEED, check, number
from sinq.formats.rounding import by_group


class Score(enum.Enum):
    """Measure by which the largest weights are outliers."""

    grad = "grad"
    grad_weight = "grad_weight"
    fisher = "fisher"
    magnitude = "magnitude"
    random = "random"


@dataclass(frozen=True)
class GWQ(LayerMethod):
    """Round to nearest, with the weights of largest score kept in float16.

    Raises:
        ValueError: `share` is not from 0 to 1.
        NotApplicable: the grid has no level that is exactly 0.
    """

    name: ClassVar[str] = "gwq"

    grid: Grid = Grid()
    share: float = 0.01
    """Share of each layer's weights that are outliers, rounded to a whole number of weights."""
    score: Score = Score.grad
    seed: int = 0
    """Seed of `score=random`. Layers of one shape then have their outliers at the same positions."""

    def __post_init__(self) -> None:
        check(self, "method", share=number(least=0, most=1), seed=SEED)
        if self.grid.levels is not Levels.uniform and not self.grid.symmetric:
            name = self.grid.levels.name
            raise NotApplicable(
                f"grid.levels={name} is not possible with GWQ unless symmetric=true: "
                "outliers need a level that is exactly 0"
            )

    @property
    def statistic(self) -> type[Statistic] | None:
        if self.score in (Score.magnitude, Score.random):
            return None
        return SquaredGradient if self.score is Score.fisher else Gradient

    def quantize(self, weight: Tensor, statistic: Gradient | None = None) -> SparseOutliers:
        score = self._score(weight, statistic.total() if statistic else None)
        mask = self._largest(score)
        others = Normalized(weight.masked_fill(mask, 0.0))
        inner = others.store(self.grid, *others.rounded(self.grid))
        return SparseOutliers.store(inner, weight, mask, self._notes(weight, statistic, score, mask))

    def _score(self, weight: Tensor, gradient: Tensor | None) -> Tensor:
        """Return the score of each weight, float32 (out, in)."""
        if self.score is Score.magnitude:
            return weight.abs()
        if gradient is None:
            generator = torch.Generator().manual_seed(self.seed)
            return torch.rand(weight.shape, generator=generator).to(weight.device)
        return gradient * weight.abs() if self.score is Score.grad_weight else gradient

    def _largest(self, score: Tensor) -> Tensor:
        """Return the mask of the largest scores, bool (out, in)."""
        chosen = score.reshape(-1).topk(round(self.share * score.numel()), sorted=False).indices
        mask = torch.zeros(score.numel(), dtype=torch.bool, device=score.device)
        return mask.index_fill_(0, chosen, True).reshape(score.shape)

    def _notes(
        self, weight: Tensor, statistic: Gradient | None, score: Tensor, mask: Tensor
    ) -> dict[str, float]:
        counts = {
            "widened_groups": _widened(weight, mask, self.grid),
            "outliers_of_score_0": int((score[mask] == 0).sum()),
        }
        notes: dict[str, float] = {name: float(count) for name, count in counts.items() if count}
        halves = statistic.halves() if statistic else None
        if halves and mask.any():
            first, second = (self._largest(self._score(weight, half)) for half in halves)
            notes["mask_overlap"] = ((first & second).sum() / mask.sum()).item()
        return notes


def _widened(weight: Tensor, mask: Tensor, grid: Grid) -> int:
    """Count the groups whose range reaches to 0 only for the sake of outliers."""
    if grid.symmetric:
        return 0
    groups, outliers = by_group(weight, grid.group_size), by_group(mask, grid.group_size)
    above = ((groups > 0) | outliers).all(-1)
    below = ((groups < 0) | outliers).all(-1)
    return int(((above | below) & outliers.any(-1) & ~outliers.all(-1)).sum())
