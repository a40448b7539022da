"""The tensors of a GGUF file: matrices as stacks, dense ones, and the divisors of rotary frequencies.

The matrices of all experts of a kind are one tensor (experts, out, in); any other matrix is a stack of one.
Bytes are made while they are written, so one matrix is in memory.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from sinq.common.errors import NotApplicable
from sinq.export.gguf.architecture import EXPERTS, ROUTERS, Architecture
from sinq.export.gguf.blocks import BF16, F16, F32, PACKERS, BlockType
from sinq.export.gguf.container import Entry
from sinq.export.gguf.k_quants import PACKERS_OF_K
from sinq.export.source import Source
from sinq.export.view import MatrixView

DENSE = {torch.float32: F32, torch.float16: F16, torch.bfloat16: BF16}
WEIGHT, BIAS = ".weight", ".bias"


@dataclass(frozen=True)
class Stack:
    """Matrices that are one tensor of the file."""

    name: str
    layers: tuple[str, ...]
    """Layers in a checkpoint of the dense model, in order."""
    kind: BlockType


def stacks(
    source: Source, architecture: Architecture, kind: Callable[[MatrixView], BlockType]
) -> list[Stack]:
    """Return the compressed matrices as stacks.

    Raises:
        NotApplicable: the graph has no such layer, or experts of a stack have several types.
    """
    layers = _by_name(source.matrices, architecture)
    return [Stack(name, tuple(held), _common(name, held, source, kind)) for name, held in layers.items()]


def _by_name(layers: Iterable[str], architecture: Architecture) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for layer in layers:
        found.setdefault(architecture.name(layer), []).append(layer)
    return found


def _common(
    name: str, layers: list[str], source: Source, kind: Callable[[MatrixView], BlockType]
) -> BlockType:
    """Return the type of all matrices of a stack."""
    kinds = {kind(source.view(layer)) for layer in layers}
    if len(kinds) > 1:
        names = ", ".join(sorted(each.name for each in kinds))
        raise NotApplicable(
            f"gguf: {name} has experts of {names}, and one type there; give all the same bits"
        )
    return kinds.pop()


def entry(source: Source, stack: Stack, architecture: Architecture) -> Entry:
    """Return a stack as a tensor of the file."""

    def parts() -> Iterator[Tensor]:
        pack = (PACKERS | PACKERS_OF_K)[stack.kind]
        for layer in stack.layers:
            yield architecture.order(layer)(pack(source.view(layer))).cpu().contiguous()

    shape = _shape(stack.name, len(stack.layers), source.matrices[stack.layers[0]].shape)
    return Entry(stack.name + WEIGHT, stack.kind, shape, parts)


def _shape(name: str, count: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    return (count, *shape) if name.endswith(EXPERTS) else shape


def dense_entries(source: Source, architecture: Architecture) -> Iterator[Entry]:
    """Yield the dense tensors of the file; vectors and routers are float32."""
    single = replace(source, dtype=torch.float32)
    if (factors := architecture.rope_factors()) is not None:
        yield Entry("rope_freqs.weight", F32, tuple(factors.shape), lambda: [_plain(factors)])
    for ending in (WEIGHT, BIAS):
        layers = [name.removesuffix(ending) for name in source.tensors if name.endswith(ending)]
        for name, held in _by_name(layers, architecture).items():
            shape = _shape(name, len(held), tuple(source.tensor(held[0] + ending).shape))
            stored = single if len(shape) == 1 or name.endswith(ROUTERS) else source
            parts = partial(_dense_parts, stored, held, ending, architecture)
            yield Entry(name + ending, DENSE[stored.dtype], shape, parts)


def _dense_parts(
    source: Source, layers: list[str], ending: str, architecture: Architecture
) -> Iterator[Tensor]:
    for layer in layers:
        yield _plain(architecture.order(layer)(source.tensor(layer + ending)))


def _plain(tensor: Tensor) -> Tensor:
    """Return a tensor's bytes, uint8: NumPy has no bfloat16."""
    return tensor.contiguous().view(torch.uint8)
