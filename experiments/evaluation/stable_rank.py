"""Stable rank of the matrices of linear layers: ‖W‖_F² / ‖W‖₂², at most the rank, whatever the scale.

It is the number of directions that carry a matrix: n for an orthogonal one, 1 for an outer product. JoMA
(arXiv 2310.00535) follows that of the MLP's lower matrix over training. The matrices are those a model has
now: of a compressed layer, what its codes stand for; of fused experts, the mean over experts. The output head
counts if it is compressed. A method that changes a layer's inputs (a rotation, a folded scale) changes its
matrix too, so the rank of a dense model's row may be that of another matrix. A matrix of zeros has rank 0.

The spectral norm comes from Lanczos iteration on WᵀW in float64, stopped when its residual shows the
eigenvalue to `TOLERANCE`; a full decomposition of large layers would take minutes each.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from experiments.evaluation.base import Evaluation, EvaluationContext, Measurement
from sinq import CompressedLinear
from sinq.model.experts import CompressedExperts
from sinq.model.language_model import Predicts
from sinq.model.targets import linear_places, output_head

TOLERANCE = 1e-6
"""Relative residual of the largest eigenvalue."""


@dataclass(frozen=True)
class StableRank(Evaluation):
    """Stable rank of every linear layer."""

    name: ClassVar[str] = "stable_rank"
    predicts: ClassVar[Predicts | None] = None

    @torch.inference_mode()
    def measure(self, context: EvaluationContext) -> Measurement:
        """Return mean, median, extremes, and the stable rank of each layer."""
        layers = dict(_layers(context.model))
        ranks = {
            name: fmean(map(stable_rank, layers[name]))
            for name in context.progress(list(layers), "stable ranks", len(layers))
        }
        if not ranks:
            return Measurement({})
        lowest, highest = min(ranks, key=ranks.__getitem__), max(ranks, key=ranks.__getitem__)
        values = list(ranks.values())
        metrics: dict[str, Any] = {"layers": len(ranks), "mean": fmean(values), "median": median(values)}
        metrics |= {"min": ranks[lowest], "lowest": lowest, "max": ranks[highest], "highest": highest}
        return Measurement(metrics, {"stable_rank": ranks})


def _layers(model: nn.Module) -> Iterator[tuple[str, Iterator[Tensor]]]:
    """Yield the name and matrices (out, in) of each linear layer, decoded in turn; not a dense head."""
    head = output_head(model)
    for target in linear_places(model):
        if target.module is not head:
            yield target.name, iter(target.matrices().values())
    for name, module in model.named_modules():
        if isinstance(module, CompressedLinear):
            yield name, iter([module.weight.dense()])
        elif isinstance(module, CompressedExperts):
            yield name, (store.dense() for store in module.stores())


def stable_rank(matrix: Tensor) -> float:
    """Return ‖W‖_F² / ‖W‖₂² of a matrix (out, in); 0 for a matrix of zeros."""
    w = matrix.double()
    largest = w.abs().max()
    if largest == 0:
        return 0.0
    w = w / largest  # squares of tiny and huge weights stay in range
    return w.square().sum().item() / _largest_eigenvalue(w if w.shape[0] >= w.shape[1] else w.T)


def _largest_eigenvalue(w: Tensor) -> float:
    """Return the largest eigenvalue of WᵀW, by Lanczos iteration with full orthogonalization.

    The residual bounds the distance to an eigenvalue. The start is random, with a fixed seed: it lies in no
    subspace without the largest one.
    """
    start = torch.randn(w.shape[1], dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    basis = (start / start.norm()).to(w.device)[None]
    diagonal: list[float] = []
    beside: list[float] = []
    while True:
        image = w.T @ (w @ basis[-1])
        diagonal.append((image @ basis[-1]).item())
        for _ in range(2):  # once is not enough in finite precision
            image = image - basis.T @ (basis @ image)
        value, last = _top(diagonal, beside)
        beside.append(image.norm().item())
        if beside[-1] * last <= TOLERANCE * value or len(basis) == w.shape[1]:
            return value
        basis = torch.cat([basis, image[None] / beside[-1]])


def _top(diagonal: list[float], beside: list[float]) -> tuple[float, float]:
    """Return a tridiagonal matrix's largest eigenvalue, and the size of its vector's last component."""
    main, off = (torch.tensor(numbers, dtype=torch.float64) for numbers in (diagonal, beside))
    values, vectors = torch.linalg.eigh(main.diag() + off.diag(1) + off.diag(-1))
    return values[-1].item(), vectors[-1, -1].abs().item()
