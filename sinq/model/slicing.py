"""Removal of heads and neurons: matrices become smaller, and the model stays one of plain linear layers.

    units = find_units(model)[3]
    slice_block(model, units, kept_groups(units, [0, 2], torch.arange(1000)))

`slice_block` keeps rows and columns of the coupled matrices of a block and the entries of biases, bit for
bit, in the order given. Every block may keep another number. The edit holds the numbers only; which units
were kept is in the matrices. So a sliced model is saved and loaded like any other, generates with its cache
(each layer keeps as many keys and values as it has heads), and its layers can be compressed afterwards.

Parameters are replaced by new ones, never changed in place: they may be shared with the dense model.

Not covered: a smaller residual stream, and fewer blocks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sinq.common.reading import typed
from sinq.model.conv1d import is_conv1d
from sinq.model.edits import Edit, edit
from sinq.model.key_values import STORE
from sinq.model.units import Counts, Units, shape_of, units_of


@dataclass(frozen=True)
class SliceBlock(Edit):
    """Smaller numbers of heads and neurons in one block."""

    name: ClassVar[str] = "slice_block"

    block: str
    """Name of the block."""
    heads: int
    """Query heads that are left."""
    kv_heads: int
    neurons: int

    def apply(self, model: nn.Module) -> None:
        units = units_of(self.block, _block(model, self.block))
        counts = Counts(*(typed(value, int, name) for name, value in self._numbers.items()))
        _require_possible(units, counts)
        for name, (rows, columns) in _shapes(units, counts).items():
            _resize(units.layer(name), rows, columns)
        _count(units, counts)

    @property
    def _numbers(self) -> dict[str, Any]:
        return {"heads": self.heads, "kv_heads": self.kv_heads, "neurons": self.neurons}


@dataclass(frozen=True, eq=False)
class Kept:
    """Units of a block that stay: their indices, int64, in the order they get.

    Query heads of one kv head are next to each other, in the order of `kv_heads`, and equally many.
    """

    heads: Tensor
    """(query heads,)"""
    kv_heads: Tensor
    """(kv heads,)"""
    neurons: Tensor
    """(neurons,)"""

    @property
    def counts(self) -> Counts:
        return Counts(len(self.heads), len(self.kv_heads), len(self.neurons))


def kept_groups(units: Units, groups: Sequence[int] | Tensor, neurons: Sequence[int] | Tensor) -> Kept:
    """Return what stays if whole groups do: a kv head with all its query heads.

    Args:
        groups: indices of kv heads; of heads, in attention without groups.
        neurons: indices.
    """
    counts = units.counts
    size = counts.heads // counts.kv_heads
    kv_heads = torch.as_tensor(groups, dtype=torch.long).cpu()
    heads = spread(kv_heads, size)
    return Kept(heads, kv_heads, torch.as_tensor(neurons, dtype=torch.long).cpu())


def slice_block(model: nn.Module, units: Units, kept: Kept) -> None:
    """Keep some units of a block, in place, as an edit of the model.

    Raises:
        ValueError: nothing would be left, an index is out of range or given twice, or query heads do not fit
            their kv heads; before anything is changed.
    """
    _require_fitting(units, kept)
    tensors = _sliced(units, kept)
    counts = kept.counts
    edit(model, SliceBlock(units.name, counts.heads, counts.kv_heads, counts.neurons))
    for (name, key), tensor in tensors.items():
        layer = units.layer(name)
        setattr(layer, key, nn.Parameter(tensor, requires_grad=getattr(layer, key).requires_grad))


def spread(indices: Tensor, width: int) -> Tensor:
    """Return the indices of all rows of units of `width` rows each, (units · width,)."""
    return (indices[:, None] * width + torch.arange(width, device=indices.device)).flatten()


def _sliced(units: Units, kept: Kept) -> dict[tuple[str, str], Tensor]:
    """Return (layer, parameter) → kept entries, in the layer's layout."""
    queries, keys = (spread(each, units.head_width) for each in (kept.heads, kept.kv_heads))
    rows = [queries, keys, keys]
    if units.fused:
        section = units.counts.heads * units.head_width
        rows = [torch.cat([index + k * section for k, index in enumerate(rows)])]
    names = units.names
    found: dict[tuple[str, str], Tensor] = {}
    for name, index in (*zip(names.inputs, rows, strict=True), *((up, kept.neurons) for up in names.up)):
        found |= _rows(name, units.layer(name), index)
    for name, index in ((names.output, queries), (names.down, kept.neurons)):
        found[name, "weight"] = _taken(units.layer(name), index, columns=True)
    return found


def _rows(name: str, layer: Any, index: Tensor) -> dict[tuple[str, str], Tensor]:
    found = {(name, "weight"): _taken(layer, index, columns=False)}
    if layer.bias is not None:
        found[name, "bias"] = layer.bias.detach()[index.to(layer.bias.device)]
    return found


def _taken(layer: Any, index: Tensor, columns: bool) -> Tensor:
    """Return rows or columns of a layer's matrix (out, in), in its stored layout."""
    weight = layer.weight.detach()
    return weight.index_select(int(columns) ^ int(is_conv1d(layer)), index.to(weight.device))


def _shapes(units: Units, counts: Counts) -> dict[str, tuple[int, int]]:
    """Return layer → (out, in) of a block with these numbers of units."""
    names, width = units.names, units.head_width
    rows = [counts.heads * width, counts.kv_heads * width, counts.kv_heads * width]
    outs = zip(names.inputs, [sum(rows)] if units.fused else rows, strict=True)
    shapes = {name: (out, shape_of(units.layer(name))[1]) for name, out in outs}
    shapes |= {up: (counts.neurons, shape_of(units.layer(up))[1]) for up in names.up}
    shapes[names.output] = shape_of(units.layer(names.output))[0], rows[0]
    shapes[names.down] = shape_of(units.layer(names.down))[0], counts.neurons
    return shapes


def _resize(layer: Any, rows: int, columns: int) -> None:
    """Give a linear layer another shape (out, in); parameters of another shape have any content."""
    shape = (columns, rows) if is_conv1d(layer) else (rows, columns)
    wanted = {"weight": shape} | ({} if layer.bias is None else {"bias": (rows,)})
    for key, size in wanted.items():
        old = getattr(layer, key)
        if old.shape == size:  # the bias of o and down
            continue
        setattr(layer, key, nn.Parameter(old.detach().new_empty(size), requires_grad=old.requires_grad))
    names = ("nf", "nx") if is_conv1d(layer) else ("out_features", "in_features")
    for name, value in zip(names, (rows, columns), strict=True):
        setattr(layer, name, value)


def _count(units: Units, counts: Counts) -> None:
    """Write the numbers of heads where the attention module reads them."""
    read = {
        "num_heads": counts.heads,
        "num_attention_heads": counts.heads,
        "n_heads": counts.heads,
        "num_key_value_groups": counts.heads // counts.kv_heads,
        "split_size": counts.heads * units.head_width,
        "all_head_size": counts.heads * units.head_width,
    }
    for name, value in read.items():
        if hasattr(units.attention, name):
            setattr(units.attention, name, value)


def _block(model: nn.Module, name: Any) -> nn.Module:
    try:
        return model.get_submodule(typed(name, str, "the name of a block"))
    except AttributeError as error:
        raise ValueError(f"{type(model).__name__} has no block {name}") from error


def _require_possible(units: Units, counts: Counts) -> None:
    """Raise `ValueError` for numbers of units that a block cannot have."""
    if hasattr(units.attention, STORE):
        raise ValueError(
            f"{units.name} rounds or prefixes keys and values already; heads are removed before that"
        )
    present = units.counts
    for what in ("heads", "kv_heads", "neurons"):
        number, most = getattr(counts, what), getattr(present, what)
        if not 1 <= number <= most:
            raise ValueError(f"{units.name} can keep 1 to {most} of its {what}, not {number}")
    shared = not units.fused and hasattr(units.attention, "num_key_value_groups")
    if counts.heads % counts.kv_heads or (counts.heads != counts.kv_heads and not shared):
        raise ValueError(
            f"{units.name} cannot have {counts.heads} query heads on {counts.kv_heads} kv heads:"
            f" each needs the same number{'' if shared else ', one'}"
        )


def _require_fitting(units: Units, kept: Kept) -> None:
    """Raise `ValueError` for indices that are no choice of a block's units."""
    _require_possible(units, kept.counts)
    present = units.counts
    for what in ("heads", "kv_heads", "neurons"):
        index, most = getattr(kept, what), getattr(present, what)
        if index.dtype != torch.long or index.ndim != 1 or len(index.unique()) != len(index):
            raise ValueError(f"{units.name}: the kept {what} must be different indices, int64")
        if not 0 <= int(index.min()) <= int(index.max()) < most:
            raise ValueError(f"{units.name}: the kept {what} must be indices below {most}")
    size = present.heads // present.kv_heads
    wanted = kept.kv_heads.repeat_interleave(len(kept.heads) // len(kept.kv_heads))
    if not torch.equal(kept.heads // size, wanted):
        raise ValueError(f"{units.name}: the kept query heads are not those of the kept kv heads, in order")
