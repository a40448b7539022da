"""AQLM (arXiv 2401.06118): additive quantization. A group of weights is a sum of learned vectors.

    start       residual k-means on the groups of W, each row divided by its norm (`kmeans.py`)
    alternate   Adam on codebooks and row scales, then a beam search over all codes (`beam_search.py`), both
                on L = tr((Ŵ − W) H (Ŵ − W)ᵀ) / o,  H = XᵀX / tokens behind the compressed blocks;
                until a search gains less than `tolerance`

The published method is `Tuned(AQLM())`: when a block is done, its codebooks, scales, norms and biases are
tuned on its output (`sinq/training/block_tuning.py`); codes stay unchanged.

Sequence, objective and defaults are those of the official code, where it has one: 100 steps of k-means, Adam
with a rate of 1e-4, betas (0, 0.95) and AMSGrad, 100 steps a round, a beam of 1, and the tolerance of the
recommended runs, 0.01, which is checked right after a search, before any training. H is a float64 mean;
everything after is float32, with H divided by the mean of its diagonal.

Chosen here, since no source says, or where the sources differ:
- A row's codes are never replaced by codes of a higher loss; the report counts rows where rounding would have
  (`rows_kept_codes`).
- Scales are trained in units of their root mean square over rows, so that the result follows the scale of W.
- Where k-means has fewer groups than vectors, some vectors start twice. A layer whose inputs were all zero,
  or never seen, is given H = 1 (`hessian_missing`). A layer that used up its `rounds` before the tolerance is
  counted (`rounds_used_up`).
- Tuning's batch and held-out windows; see `sinq/training/block_tuning.py`.

The official runs use 1,024 windows of 4,096 tokens of RedPajama. Fewer rounds, as in
`conf/method/aqlm_cpu.yaml`, are this project's.

Not covered: groups of several output rows, quantized scales and codebooks, end-to-end tuning on logits, and
PV-Tuning ("AQLM+").
"""

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from baselines.aqlm.beam_search import Problem, search
from baselines.aqlm.kmeans import residual_kmeans
from sinq import LayerMethod
from sinq.calibration.statistics import Hessian
from sinq.formats.additive import AdditiveTensor, summed
from sinq.formats.codebooks import Codebooks
from sinq.kernels import fast

SMALLEST_NORM = 1e-9
"""Addition to a row's norm, in units of all rows' root mean square."""


@dataclass(frozen=True)
class AQLM(LayerMethod):
    """Additive quantization by k-means, then training and beam search alternately.

    Raises:
        ValueError: an option is out of its range.
    """

    name: ClassVar[str] = "aqlm"
    version: ClassVar[int] = 2
    """1 had a beam of 4."""

    format: Codebooks = Codebooks()  # noqa: RUF009
    beam: int = 1
    """Hypotheses kept for each row while its codes are searched."""
    init_iterations: int = 100
    """Steps of k-means, at most, for each codebook."""
    rounds: int = 1000
    """Rounds of training and search, at most."""
    steps: int = 100
    """Steps of Adam in a round."""
    tolerance: float = 0.01
    """Share of the loss; a search that lowers the loss by less is the last."""
    learning_rate: float = 1e-4
    seed: int = 0
    """Seed of k-means' initial centroids and of the order of the search, in every layer."""

    statistic = Hessian

    def __post_init__(self) -> None:
        for option in ("beam", "init_iterations", "rounds", "steps"):
            if getattr(self, option) < 1:
                raise ValueError(f"method.{option}={getattr(self, option)} is not possible; it must be ≥ 1")
        if not 0 <= self.tolerance < 1:
            raise ValueError(
                f"method.tolerance={self.tolerance} is not possible; it must be from 0 to below 1"
            )
        if self.learning_rate <= 0:
            raise ValueError(f"method.learning_rate={self.learning_rate} is not possible; it must be above 0")

    def with_format(self, format: Any) -> Self:
        return replace(self, format=format)

    def warming_up(self) -> Self:
        return replace(self, init_iterations=1, rounds=1, steps=1)

    def quantize(self, weight: Tensor, statistic: Hessian) -> AdditiveTensor:
        hessian = statistic.matrix()
        if not torch.isfinite(hessian).all():
            raise ValueError(
                "the Hessian of a layer's inputs has NaN or Inf: the model's activations overflow; "
                "try model.dtype=float32"
            )
        unit = hessian.diagonal().mean()
        curvature = (hessian / unit if unit > 0 else torch.eye(len(hessian)).to(hessian)).float()
        rms = weight.norm(dim=1).square().mean().sqrt()
        size = torch.where(rms > 0, rms, 1.0)
        fit, notes = self._alternate(Problem(weight / size, curvature))
        notes |= {} if unit > 0 else {"hessian_missing": 1.0}
        return AdditiveTensor.store(fit.codes, fit.codebooks, fit.scale * size, self.format, notes)

    def start(self, weight: Tensor) -> "Fit":
        """Return the initial fit of a matrix (out, in): row norms and k-means of the normed groups."""
        scale = weight.norm(dim=1) + SMALLEST_NORM
        groups = (weight / scale[:, None]).reshape(-1, self.format.group)
        codebooks, codes = residual_kmeans(
            groups, self.format.codebooks, self.format.vectors, self.init_iterations, self.seed
        )
        return Fit(codes.reshape(len(weight), -1, self.format.codebooks), codebooks, scale)

    def _alternate(self, problem: Problem) -> tuple["Fit", dict[str, float]]:
        fit, kept, previous = self.start(problem.weight), 0, torch.inf
        optimizer = torch.optim.Adam(
            [fit.codebooks, fit.scale], self.learning_rate, betas=(0.0, 0.95), amsgrad=True
        )
        generator = torch.Generator().manual_seed(self.seed)
        loss = problem.row_losses(fit.codes, fit.codebooks, fit.scale).sum().item()
        for _ in range(self.rounds):
            if not loss < (1 - self.tolerance) * previous:
                return fit, fit.notes(kept)
            previous = min(previous, loss)
            for _ in range(self.steps):
                fit.codebooks.grad, fit.scale.grad = fit.gradients(problem)
                optimizer.step()
            codes, losses, worse = search(problem, fit.codes, fit.codebooks, fit.scale, self.beam, generator)
            fit, kept, loss = replace(fit, codes=codes), kept + worse, losses.sum().item()
        return fit, fit.notes(kept) | {"rounds_used_up": 1.0}


@dataclass(frozen=True, eq=False)
class Fit:
    """Additive quantization while it is fitted; `AdditiveTensor.store` names the shapes.

    Codebooks and scales are trained in place.
    """

    codes: Tensor
    codebooks: Tensor
    scale: Tensor

    def notes(self, kept: int) -> dict[str, float]:
        return {"rows_kept_codes": float(kept)} if kept else {}

    def gradients(self, problem: Problem) -> tuple[Tensor, Tensor]:
        """Return the gradients of tr(E H Eᵀ) / o, E = Ŵ − W, with respect to codebooks and scales."""
        rows, width = len(self.scale), self.codebooks.shape[2]
        total = summed(self.codes, self.codebooks).reshape(problem.weight.shape)
        slope = ((total * self.scale[:, None] - problem.weight) @ problem.hessian) * (2 / rows)
        group_gradient = (slope * self.scale[:, None]).reshape(-1, width)
        of_codebooks = scatter(group_gradient, self.codes.flatten(0, 1), self.codebooks.shape[1])
        return of_codebooks, (slope * total).sum(1)


@fast(cpu="baselines.aqlm.cpu:scatter")
def scatter(gradient: Tensor, codes: Tensor, vectors: int) -> Tensor:
    """Return the gradient with respect to codebooks, (M, vectors, g).

    Args:
        gradient: gradient with respect to the sums of vectors, float32 (N, g).
        codes: int64 (N, M).
        vectors: vectors of a codebook.
    """
    empty = torch.zeros(vectors, gradient.shape[1], device=gradient.device)
    return torch.stack([empty.index_add(0, codes[:, m], gradient) for m in range(codes.shape[1])])
