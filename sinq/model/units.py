"""Units of a block that can be removed: attention heads with their keys and values, and MLP neurons.

    q ─┐                                   gate ─┐
    k ─┼▶ attention, head by head ▶ o      up ───┼▶ act(gate)·up ▶ down
    v ─┘

A head is rows of q, k and v and the same columns of o. Query heads that share keys and values (grouped-query
attention) are next to each other. A neuron is a row of gate and of up (or of fc1), and a column of down. A
row has a bias where its layer has one. GPT-2 stores q, k and v as one matrix, transposed. Encoders (BERT,
DistilBERT) have the same layers under other names.

A module tree does not show which rows are which head, so known architectures are listed by the class of their
blocks. Neither rotary positions nor Qwen3's norms of queries and keys reach over heads; a layer with its own
gain for each head would.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from sinq.common.errors import NotApplicable
from sinq.model.blocks import find_blocks
from sinq.model.conv1d import is_conv1d, is_linear


@dataclass(frozen=True)
class Names:
    """Names of layers inside a block."""

    attention: str
    inputs: tuple[str, ...]
    """Layers of q, k and v; one name if they are one matrix, with the rows of q, of k and of v in order."""
    output: str
    up: tuple[str, ...]
    """Layers whose rows are neurons."""
    down: str
    width: str = "head_dim"
    """Attribute of the attention module with the width of a head."""


GATED = Names(
    "self_attn",
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "self_attn.o_proj",
    ("mlp.gate_proj", "mlp.up_proj"),
    "mlp.down_proj",
)
KNOWN: Mapping[str, Names] = {
    "LlamaDecoderLayer": GATED,
    "MistralDecoderLayer": GATED,
    "Qwen2DecoderLayer": GATED,
    "Qwen3DecoderLayer": GATED,
    "OPTDecoderLayer": Names(
        "self_attn",
        ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "self_attn.out_proj",
        ("fc1",),
        "fc2",
    ),
    "GPT2Block": Names("attn", ("attn.c_attn",), "attn.c_proj", ("mlp.c_fc",), "mlp.c_proj"),
    "BertLayer": Names(
        "attention.self",
        ("attention.self.query", "attention.self.key", "attention.self.value"),
        "attention.output.dense",
        ("intermediate.dense",),
        "output.dense",
        "attention_head_size",
    ),
    "TransformerBlock": Names(  # DistilBERT
        "attention",
        ("attention.q_lin", "attention.k_lin", "attention.v_lin"),
        "attention.out_lin",
        ("ffn.lin1",),
        "ffn.lin2",
        "attention_head_size",
    ),
}
"""Layers by the class of a block."""


@dataclass(frozen=True)
class Counts:
    """Numbers of a block's units."""

    heads: int
    """Query heads."""
    kv_heads: int
    neurons: int


@dataclass(frozen=True)
class Units:
    """A block whose units are known. Counts are read from the shapes of the layers as they are now."""

    name: str
    """Name of the block in the model."""
    block: nn.Module
    names: Names

    def layer(self, name: str) -> Any:
        """Return a layer by its name inside the block.

        Raises:
            ValueError: it is not linear: it is compressed already, say.
        """
        layer = self.block.get_submodule(name)
        if not is_linear(layer) or layer._parameters.get("weight") is None:
            raise ValueError(
                f"{self.name}.{name} is a {type(layer).__name__}; only linear layers with weights of their"
                " own can lose rows or columns, so heads and neurons are removed before weights are"
                " compressed"
            )
        return layer

    @property
    def attention(self) -> Any:
        return self.block.get_submodule(self.names.attention)

    @property
    def fused(self) -> bool:
        """True if q, k and v are one matrix."""
        return len(self.names.inputs) == 1

    @property
    def head_width(self) -> int:
        return int(getattr(self.attention, self.names.width))

    @property
    def counts(self) -> Counts:
        rows = [shape_of(self.layer(name))[0] // self.head_width for name in self.names.inputs]
        heads, kv_heads = (rows[0] // 3, rows[0] // 3) if self.fused else (rows[0], rows[1])
        return Counts(heads, kv_heads, shape_of(self.layer(self.names.down))[1])

    @property
    def matrices(self) -> tuple[str, ...]:
        """Names inside the block of all layers that have units, in the order of the block."""
        return (*self.names.inputs, self.names.output, *self.names.up, self.names.down)


def shape_of(layer: Any) -> tuple[int, int]:
    """Return (out_features, in_features) of a linear layer."""
    rows, columns = matrix_of(layer).shape
    return rows, columns


def find_units(model: nn.Module) -> tuple[Units, ...]:
    """Return the units of each block, in order.

    Raises:
        NotApplicable: the architecture is not known.
        ValueError: a layer is not linear.
    """
    names = {id(module): name for name, module in model.named_modules()}
    found = tuple(units_of(names[id(block)], block) for block in find_blocks(model))
    for each in found:
        each.counts  # noqa: B018 - refuses layers that are no linear ones
    return found


def units_of(name: str, block: nn.Module) -> Units:
    """Return the units of one block.

    Raises:
        NotApplicable: the block's class is not known.
    """
    kind = type(block).__name__
    if kind not in KNOWN:
        raise NotApplicable(
            f"{name} is a {kind}, whose heads and neurons are not known here; those of {', '.join(KNOWN)} are"
        )
    return Units(name, block, KNOWN[kind])


def matrix_of(layer: Any) -> Tensor:
    """Return a linear layer's matrix (out, in), a view."""
    weight: Tensor = layer.weight.detach()
    return weight.T if is_conv1d(layer) else weight


def replace_matrix(layer: Any, matrix: Tensor) -> None:
    """Give a linear layer a new parameter with the content of a matrix (out, in), in its type and layout."""
    old, stored = layer.weight, matrix.T if is_conv1d(layer) else matrix
    layer.weight = nn.Parameter(stored.to(old.device, old.dtype).contiguous(), old.requires_grad)


def macs_per_token(units: Units, context: int = 0) -> int:
    """Return the multiply-accumulates of a block for each token: of its matrices, and of attention.

    Args:
        context: tokens that a token attends to; 0 counts the matrices alone.
    """
    weights = sum(units.layer(name).weight.numel() for name in units.matrices)
    return int(weights + 2 * context * units.counts.heads * units.head_width)
