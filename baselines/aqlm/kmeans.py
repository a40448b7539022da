"""Initialization of AQLM: residual k-means. Each codebook holds centroids of the residuals so far.

The Hessian plays no part here. Centroids start as vectors drawn from the data; a centroid that loses all its
vectors stays unchanged; the iteration ends when no centroid moves any more, or after `iterations` steps.
"""

import torch
from torch import Tensor

from sinq.kernels import fast

PIECE = 1 << 16
"""Vectors whose distances to all centroids are in memory together."""


def residual_kmeans(
    groups: Tensor, count: int, vectors: int, iterations: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Return codebooks whose sums approximate the groups, and the codes.

    Args:
        groups: the vectors to approximate, float32 (N, g).
        count: number of codebooks.
        vectors: centroids of each codebook.
        iterations: steps of k-means, at most, for each codebook.
        seed: seed of the initial centroids.

    Returns:
        Codebooks, float32 (count, vectors, g), and codes, int64 (N, count).
    """
    generator, residual = torch.Generator().manual_seed(seed), groups
    codebooks, codes = [], []
    for _ in range(count):
        centroids, found = kmeans(residual, vectors, iterations, generator)
        codebooks.append(centroids)
        codes.append(found)
        residual = residual - centroids[found]
    return torch.stack(codebooks), torch.stack(codes, 1)


def kmeans(
    points: Tensor, vectors: int, iterations: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return centroids (vectors, g) of points (N, g) by Lloyd's iteration, and nearest ones, int64 (N,)."""
    count = len(points)
    start = torch.randperm(count, generator=generator)[:vectors]
    if len(start) < vectors:  # fewer points than centroids: some points are drawn twice
        start = torch.cat([start, torch.randint(count, (vectors - len(start),), generator=generator)])
    centroids = points[start.to(points.device)]
    for _ in range(iterations):
        codes = nearest(points, centroids)
        sums = torch.zeros_like(centroids, dtype=torch.float64).index_add_(0, codes, points.double())
        sizes = torch.bincount(codes, minlength=vectors)[:, None]
        moved = torch.where(sizes > 0, (sums / sizes.clamp_min(1)).float(), centroids)
        settled = torch.allclose(moved, centroids)
        centroids = moved
        if settled:
            break
    return centroids, nearest(points, centroids)


@fast(cpu="baselines.aqlm.cpu:nearest")
def nearest(points: Tensor, centroids: Tensor) -> Tensor:
    """Return the index of the nearest centroid of each point, int64 (N,)."""
    half = centroids.square().sum(1) / 2
    return torch.cat([(half - piece @ centroids.T).argmin(1) for piece in points.split(PIECE)])
