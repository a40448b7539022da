"""Graph of a layer's columns: dependences between columns, and features of each (MG-PTQ, arXiv 2501.18154).

Nodes are the layer's input columns. When GPTQ rounds column j, its error is pushed to every later column k in
proportion U[j, k] / U[j, j], where U is the upper Cholesky factor of the inverse Hessian. That share is the
edge:

    A = |U| / diag(U),    A + Aᵀ (2 on the diagonal: a loop),    Â = D^(−1/2) (A + Aᵀ) D^(−1/2)

with D the row sums of A + Aᵀ. So Â is symmetric, and its largest eigenvalue is 1.
"""

import torch
from torch import Tensor

SKETCH = 32
"""Number of random projections of a column's weights among its features."""
TINY = 1e-12


def adjacency(factor: Tensor, neighbours: int | None = None) -> Tensor:
    """Return Â, float32 (in, in), with columns in the factor's order.

    Args:
        factor: upper factor of the inverse Hessian, float64 (in, in).
        neighbours: number of strongest edges kept for each column; an edge stays if either end keeps it.
            Loops always stay. None keeps all edges.
    """
    shares = factor.abs() / factor.diagonal()[:, None]
    edges = shares + shares.T
    if neighbours is not None and neighbours < len(edges):
        indices = edges.topk(neighbours, dim=1).indices
        strongest = torch.zeros_like(edges, dtype=torch.bool).scatter_(1, indices, True)
        edges = edges * (strongest | strongest.T).fill_diagonal_(True)
    scale = edges.sum(1).rsqrt()
    return (scale[:, None] * edges * scale).float()


def features(weight: Tensor, importance: Tensor, factor: Tensor, generator: torch.Generator) -> Tensor:
    """Return the features of each column, float32 (in, 5 + SKETCH), for any number of rows.

    Five standardised logarithms: mean and maximum of |W_j|, deviation of W_j, √H_jj, U_jj; and W_jᵀR with a
    random R (out, SKETCH), over the projections' common deviation.

    Args:
        weight: (out, in), its columns in the factor's order.
        importance: the diagonal of H in that order, (in,), positive.
        factor: upper factor of the inverse Hessian, float64 (in, in).
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
    deviation = sketch.std(correction=0).clamp_min(torch.finfo(torch.float32).tiny)
    return torch.cat([standard, sketch / deviation], dim=1)


def _logarithm(values: Tensor) -> Tensor:
    """Return the logarithms; a zero counts as the smallest positive value."""
    alive = values > 0
    smallest = torch.where(alive, values, torch.inf).amin()
    return torch.where(alive, values, torch.where(smallest.isfinite(), smallest, 1.0)).log()
