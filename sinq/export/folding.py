"""Column scales moved into the layer before, exactly and without touching codes.

Most formats have no tensor for the scale t of a column. Where the layer before can be multiplied by t
instead, the model is the same and the format can hold it:

    down                    rows of up · t          always, in a gated MLP; of experts, one by one
    o                       rows of v · t           if query heads of one kv head have the same t
    q k v;  gate up         norm's gain · t         if all compressed readers of the norm have the same t
    lm_head                 final norm's gain · t

Rows of a quantized matrix are its scales; rows of a dense one, its bias, and the gain are dense tensors. The
columns of a dense reader of such a norm (a router) are divided. SINQ finds a t for each matrix, so q k v and
gate up fold only if they were quantized with shared columns, or the model was rewritten first (PreSINQ).
Column scales of tiles (`tiling=2`) belong to rows as well, and never fold.

In float32 this is exact; the number format in which a file has gains, biases and scales rounds them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from sinq.export.matrices import GATE_UP, Matrix
from sinq.export.view import MatrixView
from sinq.formats.scalar import QuantizedTensor
from sinq.model.decoder import KNOWN, Block, Gated, Norm, ParameterRef, decoder


@dataclass
class Folds:
    """Factors that take the place of column scales."""

    rows: dict[str, Tensor] = field(default_factory=dict)
    """Factor (out,) of the rows of a compressed layer."""
    dense: dict[str, Tensor] = field(default_factory=dict)
    """Factor of a dense tensor, which broadcasts against it; the tensor may be a bias that is not there."""
    folded: set[str] = field(default_factory=set)
    """Compressed layers whose column scales are left out."""

    def view(self, view: MatrixView) -> MatrixView:
        """Return the view of a layer as it is exported."""
        if view.name in self.folded:
            view = view.without_columns()
        return view.with_rows(self.rows[view.name]) if view.name in self.rows else view

    def tensor(self, name: str, tensor: Tensor) -> Tensor:
        """Return a dense tensor of the model as it is exported."""
        if name not in self.dense:
            return tensor
        return (tensor.float() * self.dense[name].to(tensor.device)).to(tensor.dtype)

    def multiply(self, name: str, factor: Tensor) -> None:
        """Multiply a dense tensor by one more factor."""
        self.dense[name] = self.dense[name] * factor if name in self.dense else factor


def folds_of(model: nn.Module, matrices: Mapping[str, Matrix]) -> Folds:
    """Return the folds of every column scale that can be moved; none in an architecture that is not known."""
    if type(model).__name__ not in KNOWN:
        return Folds()
    finder, connections = _Finder(model, matrices), decoder(model)
    for block in connections.blocks:
        finder.fold_output(block)
        for gated in block.gated:
            finder.fold_down(gated)
    for norm in connections.norms:
        finder.fold_norm(norm)
    return finder.folds


class _Finder:
    """Search for folds in a model."""

    def __init__(self, model: nn.Module, matrices: Mapping[str, Matrix]) -> None:
        self.folds = Folds()
        self.names = {module: name for name, module in model.named_modules()}
        self.matrices = matrices

    def compressed(self, reference: ParameterRef) -> list[str]:
        """Return the names of the compressed layers whose matrices a parameter holds; none if it is dense."""
        name = self.names[reference.module]
        if reference.name == "weight":
            return [name] if name in self.matrices else []
        parts = ("gate_proj", "up_proj") if reference.name == GATE_UP else (reference.name,)
        return [
            layer
            for layer in self.matrices
            if layer.startswith(f"{name}.") and layer.rpartition(".")[2] in parts
        ]

    def columns(self, layer: str) -> Tensor | None:
        """Return the column scales (in,) of a compressed layer, if they are the same for all rows."""
        value = self.matrices[layer].value
        scale = value.col_scale() if isinstance(value, QuantizedTensor) else None
        return scale[0] if scale is not None and len(scale) == 1 else None

    def fold_down(self, gated: Gated) -> None:
        for layer in self.compressed(gated.down):
            scale, up = self.columns(layer), f"{layer.removesuffix('down_proj')}up_proj"
            dense = gated.up.name == "weight"  # of one layer: rows of dense experts would be found by number
            if scale is not None and (dense or up in self.matrices):
                self.scale_rows(up, scale)
                self.folds.folded.add(layer)

    def fold_output(self, block: Block) -> None:
        for layer in self.compressed(block.output):
            scale, values = self.columns(layer), self.names[block.value.module]
            if scale is None:
                continue
            rows: Any = block.value.module.out_features
            by_head = scale.reshape(rows // block.head_width, -1, block.head_width)
            if torch.equal(by_head, by_head[:, :1].expand_as(by_head)):
                self.scale_rows(values, by_head[:, 0].flatten())
                self.folds.folded.add(layer)

    def scale_rows(self, layer: str, scale: Tensor) -> None:
        if layer in self.matrices:
            self.folds.rows[layer] = scale
        else:
            self.folds.multiply(f"{layer}.weight", scale[:, None])
        self.folds.multiply(f"{layer}.bias", scale)

    def fold_norm(self, norm: Norm) -> None:
        layers = [layer for reader in norm.readers for layer in self.compressed(reader)]
        scales = [self.columns(layer) for layer in layers]
        first = scales[0] if scales else None
        if first is None or not all(scale is not None and torch.equal(scale, first) for scale in scales):
            return
        for reader in norm.readers:
            if not self.compressed(reader):
                self.folds.multiply(f"{self.names[reader.module]}.{reader.name}", 1 / first)
        self.folds.multiply(f"{self.names[norm.gain.module]}.{norm.gain.name}", first)
        self.folds.folded.update(layers)
