"""Code search of AQLM: beam search over the codes of every row, for that row's share of the output error.

A row of the matrix has the error e = w − ŵ and the loss e H eᵀ. Replacing `old` in group G by another vector
c changes the row by δ = s·(c − old) and the loss by

    Δ(c) = −2 δ·P + δ H[G, G] δᵀ,     P = e H[:, G]
         = (s² q(c) − c·u) − (s² q(old) − old·u),     q(c) = c H[G, G] cᵀ,  u = 2s (P + s H[G, G] old)

so a vector costs one product of g numbers, and q is shared by all rows. A sweep visits groups in random
order, the same for all rows, and the codebooks of a group one after the other; after each visit the best
`beam` of all (hypothesis, vector) pairs go on. The present vector is always among them with Δ = 0, so the
best hypothesis never gets worse. Only float32 rounding could still make a row worse, which is checked at the
end: a row whose recomputed loss is higher keeps its codes.

The definition of `sweep` works on all rows side by side in torch; `baselines.aqlm.cpu.sweep` is the CPU
version.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from sinq.formats.additive import summed
from sinq.kernels import fast


@dataclass(frozen=True, eq=False)
class Problem:
    """Matrix of a layer and the Hessian of its output error."""

    weight: Tensor
    """float32 (out, in)."""
    hessian: Tensor
    """float32 (in, in)."""

    def row_losses(self, codes: Tensor, codebooks: Tensor, scale: Tensor) -> Tensor:
        """Return e H eᵀ of each row, float64 (out,). Arguments are those of `AdditiveTensor.store`."""
        error = summed(codes, codebooks).reshape(self.weight.shape) * scale[:, None] - self.weight
        return ((error @ self.hessian).double() * error).sum(1)


def search(
    problem: Problem, codes: Tensor, codebooks: Tensor, scale: Tensor, beam: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, int]:
    """Sweep once over all groups, in random order.

    Args:
        problem: the matrix (out, in) and its Hessian.
        codes: codes to start from, int64 (out, in / g, M).
        codebooks: float32 (M, vectors, g).
        scale: float32 (out,).
        beam: hypotheses kept for each row.
        generator: draws the order of groups.

    Returns:
        New codes, the loss of each row, float64 (out,), and the number of rows that kept their old codes
        because of rounding.
    """
    order = torch.randperm(codes.shape[1], generator=generator)
    before = problem.row_losses(codes, codebooks, scale)
    found = sweep(problem.weight, problem.hessian, codes, codebooks, scale, beam, order)
    after = problem.row_losses(found, codebooks, scale)
    worse = after > before
    kept = torch.where(worse[:, None, None], codes, found)
    return kept, torch.where(worse, before, after), int(worse.sum())


@fast(cpu="baselines.aqlm.cpu:sweep")
def sweep(
    weight: Tensor,
    hessian: Tensor,
    codes: Tensor,
    codebooks: Tensor,
    scale: Tensor,
    beam: int,
    order: Tensor,
) -> Tensor:
    """Visit all groups of all rows once.

    Args:
        weight: float32 (out, in).
        hessian: float32 (in, in).
        codes: codes to start from, int64 (out, in / g, M).
        codebooks: float32 (M, vectors, g).
        scale: float32 (out,).
        beam: hypotheses kept for each row.
        order: order of the groups, int64 (in / g,).

    Returns:
        Codes of each row's best hypothesis, int64 (out, in / g, M).
    """
    rows, vectors, width = len(weight), codebooks.shape[1], codebooks.shape[2]
    error = weight - summed(codes, codebooks).reshape(weight.shape) * scale[:, None]
    error = error[:, None]  # (rows, hypotheses, in)
    held, gain = codes[:, None].clone(), torch.zeros(rows, 1, device=weight.device)
    s, row = scale[:, None, None], torch.arange(rows, device=weight.device)[:, None]
    for j in order.tolist():
        part = slice(j * width, (j + 1) * width)
        block = hessian[part, part]
        for m, codebook in enumerate(codebooks):
            old = codebook[held[:, :, j, m]]
            u = 2 * s * (error @ hessian[:, part] + s * (old @ block))
            # (rows, hypotheses, vectors)
            score = s**2 * ((codebook @ block) * codebook).sum(1) - u @ codebook.T
            total = gain[:, :, None] + score - score.gather(2, held[:, :, j, m, None])
            gain, index = total.flatten(1).topk(min(beam, total[0].numel()), largest=False, sorted=True)
            parent, code = index // vectors, index % vectors
            held, error = held[row, parent], error[row, parent]
            error[:, :, part] -= s * (codebook[code] - codebook[held[:, :, j, m]])
            held[:, :, j, m] = code
    return held[row[:, 0], gain.argmin(1)]
