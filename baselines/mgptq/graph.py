"""The columns of a layer as a graph: who depends on whom, and what each one is like (MG-PTQ, arXiv 2501.18154).

Nodes are the layer's input columns. When GPTQ rounds column j, its error is pushed to every later column k in proportion U[j, k] / U[j, j],
where U is the upper Cholesky factor of the inverse Hessian. That share is the edge:

    A = |U| / diag(U),    A + Aᵀ (2 on the diagonal: a loop),    Â = D^(−1/2) (A + Aᵀ) D^(−1/2)    D: row sums

so Â is symmetric, and its largest eigenvalue is 1.
"""

import torch
from torch import Tensor

SKETCH = 32
"""Random projections of a column's weights among its features."""
TINY = 1e-12


def adjacency(factor: Tensor, neighbours: int | None = None) -> Tensor:
    """Â, float32 (in, in), of the factor's order of columns.

    Args:
        factor: upper factor of the inverse Hessian, float64 (in, in).
        neighbours: keep an edge only where it is among so many strongest ones of either end, and loops; None keeps all.
    """
    shares = factor.abs() / factor.diagonal()[:, None]
    edges = shares + shares.T
    if neighbours is not None and neighbours < len(edges):
        strongest = torch.zeros_like(edges, dtype=torch.bool).scatter_(
            1, edges.topk(neighbours, dim=1).indices, True
        )
        edges = edges * (strongest | strongest.T).fill_diagonal_(True)
    scale = edges.sum(1).rsqrt()
    return (scale[:, None] * edges * scale).float()


def features(weight: Tensor, importance: Tensor, factor: Tensor, generator: torch.Generator) -> Tensor:
    """What the network knows of each column, float32 (in, 5 + SKETCH), whatever the number of rows.

    Five standardised logarithms: mean, deviation and maximum of |W_j| (the deviation is that of W_j), √H_jj, U_jj; and W_jᵀR with a random
    R (out, SKETCH), over the projections' common deviation.

    Args:
        weight: (out, in), its columns in the factor's order.
        importance: the diagonal of H in that order, (in,), positive.
        generator: draws R.
    """
    magnitude = weight.abs()
    plain = [
        magnitude.mean(0),
        weight.std(0, correction=0),
        magnitude.amax(0),
        importance.sqrt().float(),
        factor.diagonal().float(),
    ]
    logs = torch.stack([_logarithm(values) for values in plain], dim=1)
    standard = (logs - logs.mean(0)) / logs.std(0, correction=0).clamp_min(TINY)
    sketch = weight.T @ torch.randn(len(weight), SKETCH, generator=generator).to(weight)
    return torch.cat(
        [standard, sketch / sketch.std(correction=0).clamp_min(torch.finfo(torch.float32).tiny)], dim=1
    )


def _logarithm(values: Tensor) -> Tensor:
    """log, of a column of zeros as if it were the smallest of the others."""
    alive = values > 0
    smallest = torch.where(alive, values, torch.inf).amin()
    return torch.where(alive, values, torch.where(smallest.isfinite(), smallest, 1.0)).log()
