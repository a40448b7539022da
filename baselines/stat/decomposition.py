"""Interpolative decomposition: a matrix from some of its columns.

    M Π = Q [R11 R12]        M ≈ M[:, I] T,   T = [1 | R11⁻¹ R12] Πᵀ,   ‖M − M[:, I] T‖ = ‖R22‖
            [ 0  R22]

I are the first k columns in the order Π. A QR with column pivoting takes the column with the largest part
that the columns before it do not explain; its diagonal falls. For any other order T is still the best for the
kept columns. Q is never needed, so all of this is done on R of an unpivoted QR, which has as many rows as
columns.

All in float64.
"""

import torch
from torch import Tensor

RANK_TOLERANCE = 1e-10
"""Share of the largest entry of the diagonal below which a column counts as explained."""
REFRESH = 32
"""Steps after which squared norms, which are updated by subtraction, are computed anew."""


def triangle(matrix: Tensor) -> Tensor:
    """Return R of an unpivoted QR, (columns, columns), with rows of zeros where the matrix has fewer rows."""
    factor = torch.linalg.qr(matrix, mode="r").R
    missing = matrix.shape[1] - len(factor)
    return torch.nn.functional.pad(factor, (0, 0, 0, missing)) if missing else factor


def pivoted_triangle(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return R (columns, columns) of a QR with column pivoting, and the order of the columns.

    Householder reflections on R of the unpivoted QR.
    """
    factor = triangle(matrix)
    width = len(factor)
    order = torch.arange(width, device=matrix.device)
    squares = factor.square().sum(0)
    for step in range(width):
        if step % REFRESH == 0:
            squares = factor[step:].square().sum(0)
        best = step + int(squares[step:].argmax())
        for rows in (order, squares, factor.T):
            rows[[step, best]] = rows[[best, step]]
        _reflect(factor[step:, step:])
        squares -= factor[step].square()
    return factor, order


def _reflect(factor: Tensor) -> None:
    """Make a matrix's first column a multiple of the first unit vector by a reflection, in place."""
    vector = factor[:, 0].clone()
    length = torch.linalg.vector_norm(vector)
    if length == 0:
        return
    vector[0] += torch.copysign(length, vector[0])
    scale = 2 / vector.dot(vector)
    factor.addr_(vector, vector @ factor, alpha=-float(scale))
    factor[1:, 0] = 0


def interpolation(factor: Tensor, kept: int) -> Tensor:
    """Return T (kept, columns) in the order of the columns of R: an identity, then R11⁻¹ R12.

    Where kept columns depend on each other, R11⁻¹ is the pseudo-inverse.
    """
    head, rest = factor[:kept, :kept], factor[:kept, kept:]
    sizes = head.diagonal().abs()
    if rest.numel() and float(sizes.min()) > RANK_TOLERANCE * float(sizes.max()):
        mixing = torch.linalg.solve_triangular(head, rest, upper=True)
    else:
        mixing = torch.linalg.pinv(head, rtol=RANK_TOLERANCE) @ rest if rest.numel() else rest
    return torch.cat([torch.eye(kept, dtype=factor.dtype, device=factor.device), mixing], dim=1)


def tails(factor: Tensor) -> Tensor:
    """Return ‖R22‖ (Frobenius) for each number of kept columns, 0 to all, (columns + 1,)."""
    rows = factor.square().sum(1).flip(0).cumsum(0).flip(0)
    return torch.cat([rows, rows.new_zeros(1)]).sqrt()
