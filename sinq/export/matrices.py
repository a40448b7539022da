"""The compressed matrices of a model, by the names of their layers in a checkpoint of the dense model.

transformers keeps all experts of a layer in fused parameters (gate_up_proj, down_proj), and checkpoints keep
them one by one: `model.layers.0.mlp.experts.3.up_proj`. Other formats have the checkpoint's names.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from sinq.common.errors import NotApplicable
from sinq.export.view import MatrixView
from sinq.formats.base import CompressedWeight
from sinq.formats.scalar import QuantizedTensor
from sinq.model.experts import CompressedExperts
from sinq.model.linear import CompressedLinear

GATE_UP = "gate_up_proj"


@dataclass(frozen=True, eq=False)
class Matrix:
    """A compressed matrix, or some of its rows, under the name of its layer."""

    name: str
    value: CompressedWeight
    rows: slice | None = None
    """Rows of the value that are this layer; None for all."""

    def view(self) -> MatrixView:
        """Return the view of a matrix whose value is a `QuantizedTensor`."""
        assert isinstance(self.value, QuantizedTensor)
        view = MatrixView.of(self.name, self.value)
        return view if self.rows is None else view.part(self.name, self.rows)

    @property
    def shape(self) -> tuple[int, int]:
        rows, columns = self.value.shape
        return len(range(rows)[self.rows or slice(None)]), columns


def compressed_matrices(model: nn.Module) -> dict[str, Matrix]:
    """Return the compressed matrices of a model in the order of its modules.

    Raises:
        NotApplicable: one matrix is that of several layers, or experts have a layout of their own.
    """
    found: dict[str, Matrix] = {}
    shared: dict[int, str] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        for matrix in _matrices(name, module):
            other = shared.setdefault(id(module), name)
            if other != name:
                raise NotApplicable(f"{name} and {other} are one layer, which a file would have twice")
            found[matrix.name] = matrix
    return found


def _matrices(name: str, module: nn.Module) -> Iterator[Matrix]:
    if isinstance(module, CompressedLinear):
        yield Matrix(name, module.weight.value)
    elif isinstance(module, CompressedExperts):
        yield from _experts(name, module)


def _experts(name: str, experts: CompressedExperts) -> Iterator[Matrix]:
    """Yield the matrices of a fused parameter; the first half of the rows of gate_up is gate."""
    owner, _, parameter = name.rpartition(".")
    if experts.transposed:
        raise NotApplicable(f"{name} has experts as (in, out), which no checkpoint has one by one")
    for number, store in enumerate(experts.stores()):
        layer, value = f"{owner}.{number}", store.value
        if parameter != GATE_UP:
            yield Matrix(f"{layer}.{parameter}", value)
            continue
        half = value.shape[0] // 2
        yield Matrix(f"{layer}.gate_proj", value, slice(0, half))
        yield Matrix(f"{layer}.up_proj", value, slice(half, 2 * half))
