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

from sinq.common.reading import entry
from sinq.common.reading import notes as typed_notes
from sinq.formats.base import INNER, CompressedWeight, inner_of, stored_as
from sinq.formats.checks import HALF, has_numbers, require_finite, require_names, require_tensor

SPARSE = ("values", "columns", "row_starts")
NARROW = 1 << 16
"""Largest number of inputs for which a column index is stored in 16 bits."""


@dataclass(frozen=True, eq=False)
class SparseOutliers(CompressedWeight):
    """A compressed weight plus a sparse one.

    tensors: those of `inner` with a prefix; `values` float16 (outliers,), row by row; `columns` (outliers,),
    uint16 for at most 65,536 inputs, else int32; `row_starts` int32 (out + 1,).

    Raises:
        ValueError: tensors of other types or lengths; columns beyond the inputs; row starts that are not
            ascending from 0 to the number of outliers; values that are not finite.
    """

    name: ClassVar[str] = "sparse_outliers"

    inner: CompressedWeight
    values: Tensor
    columns: Tensor
    row_starts: Tensor
    notes: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        sparse, (rows, columns) = {name: getattr(self, name) for name in SPARSE}, self.shape
        require_names(self.name, sparse, SPARSE)
        count = (self.values.numel(),)
        require_tensor("values", self.values, HALF, count)
        require_tensor("columns", self.columns, torch.uint16 if columns <= NARROW else torch.int32, count)
        require_tensor("row_starts", self.row_starts, torch.int32, (rows + 1,))
        if has_numbers(sparse):
            require_finite(sparse)
            self._require_indices()

    def _require_indices(self) -> None:
        """Raise `ValueError` if a column or a row start is out of range."""
        starts, count = self.row_starts, len(self.values)
        if not bool((starts[0] == 0) & (starts[-1] == count) & (starts.diff() >= 0).all()):
            raise ValueError(f"row_starts must ascend from 0 to {count}, the number of outliers")
        if count:
            low, high = (int(bound) for bound in self.columns.int().aminmax())
            if low < 0 or high >= self.shape[1]:
                raise ValueError(
                    f"columns are from {low} to {high}; they must be from 0 to {self.shape[1] - 1}"
                )

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
        inner, sparse = inner_of(config, tensors)
        require_names(cls.name, sparse, SPARSE)
        notes = typed_notes(entry(config, "notes", dict))
        return cls(inner, sparse["values"], sparse["columns"], sparse["row_starts"], notes)
