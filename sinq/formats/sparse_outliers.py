"""Outliers: a few weights kept in float16, as a sparse matrix beside a compressed one.

    Ŵ = inner + S,    S[i, columns[k]] = values[k]   for row_starts[i] ≤ k < row_starts[i + 1]

S has compressed sparse rows. The two parts are added and nothing is replaced, so a product is the sum of two
products: one by the inner value's kernel, and one by torch's sparse product, which touches the outliers
only. A method that stores the outliers themselves, and not their difference from the inner value, makes an
inner value that is 0 at their positions; then Ŵ is float16(W) there, to the bit.

The cost is 32 bits an outlier (a float16 value, a 16-bit column) and 32 bits a row; the inner value also
spends its bits on the positions of outliers. All are counted, since all are stored.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from sinq.formats.base import CompressedWeight, rebuilt, stored_as

INNER = "inner_"
NARROW = 1 << 16
"""Largest number of inputs for which a column index is stored in 16 bits."""


@dataclass(frozen=True, eq=False)
class SparseOutliers(CompressedWeight):
    """A compressed weight plus a sparse one.

    tensors: those of `inner` with a prefix; `values` float16 (outliers,), row by row; `columns` (outliers,),
    uint16 for at most 65,536 inputs, else int32; `row_starts` int32 (out + 1,).
    """

    name: ClassVar[str] = "sparse_outliers"

    inner: CompressedWeight
    values: Tensor
    columns: Tensor
    row_starts: Tensor
    notes: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def store(
        cls, inner: CompressedWeight, weight: Tensor, mask: Tensor, notes: Mapping[str, float] | None = None
    ) -> Self:
        """Add the weights that a mask selects, both (out, in), to an inner value.

        Raises:
            ValueError: a selected weight is beyond float16.
        """
        values = weight[mask].to(torch.float16)
        if not torch.isfinite(values).all():
            raise ValueError(
                f"an outlier of {weight[mask].abs().max().item():.3g} is beyond float16,"
                " whose largest number is 65504"
            )
        columns = mask.nonzero()[:, 1].to(torch.uint16 if mask.shape[1] <= NARROW else torch.int32)
        row_starts = torch.nn.functional.pad(mask.sum(1), (1, 0)).cumsum(0).to(torch.int32)
        return cls(inner, values, columns, row_starts, {**inner.notes, **(notes or {})})

    @property
    def shape(self) -> tuple[int, int]:  # type: ignore[override]
        return self.inner.shape

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        dense = self.inner.dequantize()
        all_rows = torch.arange(self.shape[0], device=self.values.device)
        rows = all_rows.repeat_interleave(self.row_starts.diff(), output_size=len(self.values))
        indices = (rows, self.columns.long())
        return dense.index_put(indices, self.values.float(), accumulate=True).to(dtype)

    def state_dict(self) -> dict[str, Tensor]:
        sparse = {"values": self.values, "columns": self.columns, "row_starts": self.row_starts}
        return sparse | {INNER + name: tensor for name, tensor in self.inner.state_dict().items()}

    def config(self) -> dict[str, Any]:
        return {"inner": stored_as(self.inner), "notes": dict(self.notes)}

    @classmethod
    def from_state(cls, config: dict[str, Any], tensors: dict[str, Tensor]) -> Self:
        state = {
            name.removeprefix(INNER): tensor for name, tensor in tensors.items() if name.startswith(INNER)
        }
        inner = rebuilt(config["inner"], state)
        return cls(inner, tensors["values"], tensors["columns"], tensors["row_starts"], config["notes"])
