"""PreSINQ: SINQ's column scales without their cost, folded into the model before any quantizer sees it.

SINQ stores W = (row ⊗ col) · Ŵ and multiplies by `col` at run time. Where the layer before can be scaled
instead, the column scales t of Sinkhorn's iteration are moved there exactly, and a plain quantizer rounds the
balanced matrix:

    q k v                              W / t, input norm's gain · t
    gate up (every expert, router)     W / t, post-attention norm's gain · t
    down                               W / t, rows of up · t
    o                                  W / t, rows of v · t

Matrices that share their inputs share t, found on all of them stacked. With grouped queries one row of v
feeds several columns of o, so t is found with these stacked too. Row scales are not moved: a quantizer with a
scale per row and group has them anyway.

The authors' code does this for GGUF (arXiv 2509.22944, no-overhead SINQ). It divides t by its median and
chooses the number of iterations by the divergence of the logits on a few prompts. Here t has geometric mean 1
in each group of columns, where its level is arbitrary (the group's scale absorbs it), and the number of
iterations is an option. t is exact up to the number format the model is in.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sinq.algorithms.sinkhorn import Sinkhorn
from sinq.calibration.data import Calibration
from sinq.common.errors import NotApplicable
from sinq.common.options import check
from sinq.formats.base import Format
from sinq.formats.grid import Grid
from sinq.kernels import sinkhorn_scales
from sinq.methods.base import Method
from sinq.methods.rewriting import Rewriting
from sinq.model.context import Context
from sinq.model.decoder import Block, decoder
from sinq.model.folding import columns_by_head, fold_into_norm, fold_into_up, fold_into_values


@dataclass(frozen=True)
class PreSINQ(Rewriting):
    """Sinkhorn column scales of a decoder, folded into the layers before; `inner` compresses the result.

    Raises:
        NotApplicable: `inner` has no grid.
    """

    name: ClassVar[str] = "presinq"

    inner: Method
    sinkhorn: Sinkhorn = Sinkhorn()
    output_projection: bool = True
    """Also balance o against v.

    Off in the authors' code, whose order of heads is wrong for grouped queries.
    """

    def __post_init__(self) -> None:
        check(self)
        if not isinstance(getattr(self.inner, "grid", None), Grid):
            raise NotApplicable(
                f"PreSINQ balances groups of columns, but inner={type(self.inner).__name__}"
                " has no grid to name their size"
            )

    @property
    def grid(self) -> Grid:
        """Grid of the inner method."""
        inner: Any = self.inner
        return inner.grid

    @property
    def format(self) -> Format:
        """Storage of a matrix: the grid."""
        return self.grid

    def rewrite(self, model: nn.Module, calibration: Calibration | None, context: Context) -> None:
        blocks, device = decoder(model).blocks, context.device_for(model)
        for block in context.progress(blocks, "folding column scales", len(blocks)):
            self._fold_block(block, device)

    def _fold_block(self, block: Block, device: torch.device) -> None:
        if self.output_projection:
            by_head = columns_by_head(block, device)
            stacked = by_head.transpose(1, 2).reshape(-1, by_head.shape[1] * block.head_width)
            fold_into_values(block, self.column_scale(stacked), device)
        for gated in block.gated:
            fold_into_up(gated, self.column_scale(gated.down.read(device)), device)
        for norm in block.norms:
            stacked = torch.cat([matrix.read(device).flatten(0, -2) for matrix in norm.matrices])
            scale = self.column_scale(stacked)
            del stacked  # it holds all experts at once
            fold_into_norm(norm, scale, device)

    def column_scale(self, weight: Tensor) -> Tensor:
        """Return t of a matrix or of each of several, (…, out, in): positive float32 (…, in).

        Its geometric mean is 1 in each group of columns. Groups have the grid's size and span all rows; where
        that size does not divide `in`, they have the largest smaller size that does.
        """
        *several, rows, columns = weight.shape
        grid = Grid(group_size=self.grid.group_size).shrunk((rows, columns))
        width = grid.group_size if grid else columns
        side_by_side = weight.movedim(-2, 0).reshape(rows, -1)  # tiles do not see each other
        scale = sinkhorn_scales(side_by_side, (rows, width), self.sinkhorn)[1].reshape(-1, width)
        return (scale / scale.log().mean(1, keepdim=True).exp()).reshape(*several, columns)
