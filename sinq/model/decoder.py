"""Connections of a decoder, for methods that rewrite a model into an equal one before it is quantized.

    embed ▶ residual ┬▶ norm ▶ q k v ▶ attention ▶ o ┬▶ norm ▶ gate up ▶ act(gate)·up ▶ down ┬▶ … norm ▶ head
                     └───────────────────────────────┴───────────────────────────────────────┘

A diagonal may be moved between a norm's gain and every matrix that reads the normed stream (routers and
shared experts of a mixture included), between the rows of `up` and the columns of `down`, and between the
rows of v and the columns of o: a softmax only averages values. An orthogonal matrix may be moved into the
residual stream, because RMSNorm without its gain keeps lengths: RMSNorm(Q·x) = Q·RMSNorm(x).

A module tree does not show these connections (Gemma's norm multiplies by 1 + gain), so known architectures
are listed by name. Weights are stored as (…, out, in) in all of them, fused experts included.

Nothing is changed in place: parameters may be shared with the dense model, so every change replaces a
parameter with a new one.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sinq.common.errors import NotApplicable

KNOWN = (
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen2MoeForCausalLM",
    "Qwen3ForCausalLM",
    "Qwen3MoeForCausalLM",
)


@dataclass(frozen=True)
class ParameterRef:
    """A reference to a parameter of a module, to read and to replace it."""

    module: nn.Module
    name: str = "weight"

    def read(self, device: torch.device) -> Tensor:
        """Return the parameter, float32, on a device; it may be the same tensor: never change it in place."""
        return getattr(self.module, self.name).detach().to(device, torch.float32)

    def write(self, value: Tensor) -> None:
        """Replace the parameter with a new one, in the dtype and on the device of the old one."""
        old = getattr(self.module, self.name)
        setattr(self.module, self.name, nn.Parameter(value.to(old.device, old.dtype), requires_grad=False))


@dataclass(frozen=True)
class Norm:
    """A norm's gain, and every matrix whose columns are multiplied by the normed stream."""

    gain: ParameterRef
    matrices: tuple[ParameterRef, ...]
    """Matrices of linear layers and experts."""
    routers: tuple[ParameterRef, ...] = ()
    """Matrices that choose or weigh experts."""

    @property
    def readers(self) -> tuple[ParameterRef, ...]:
        return self.matrices + self.routers


@dataclass(frozen=True)
class Gated:
    """The pair act(gate)·up ─▶ down, dense (2-D) or of experts (3-D)."""

    up: ParameterRef
    """Matrix whose last rows, as many as `down` has columns, are `up`: all rows, or the second half if gate
    and up are fused."""
    down: ParameterRef


@dataclass(frozen=True)
class Block:
    """A decoder block."""

    value: ParameterRef
    """The matrix of v, (kv heads · head width, hidden)."""
    output: ParameterRef
    """The matrix of o, (hidden, heads · head width); heads that share a kv head are next to each other."""
    head_width: int
    norms: tuple[Norm, Norm]
    gated: tuple[Gated, ...]
    query: ParameterRef
    """The matrix of q, (heads · head width, hidden), or the gain of a norm behind it, (head width,)."""
    key: ParameterRef
    """The same of k. A rotary embedding turns channel c of each head with c + head width / 2."""


@dataclass(frozen=True)
class Decoder:
    """A whole model."""

    embedding: ParameterRef
    blocks: tuple[Block, ...]
    final: Norm
    """The last norm, and the head."""

    @property
    def norms(self) -> Iterator[Norm]:
        for block in self.blocks:
            yield from block.norms
        yield self.final


def decoder(model: Any) -> Decoder:
    """Return the connections of a dense model.

    Raises:
        NotApplicable: the architecture is not known.
    """
    name = type(model).__name__
    if name not in KNOWN:
        raise NotApplicable(
            f"{name} is not an architecture whose norms and residual stream are known here;"
            f" those are {', '.join(KNOWN)}"
        )
    body = model.model
    blocks = tuple(_block(layer) for layer in body.layers)
    final = Norm(ParameterRef(body.norm), (ParameterRef(model.lm_head),))
    return Decoder(ParameterRef(body.embed_tokens), blocks, final)


def _block(layer: Any) -> Block:
    attention, mlp = layer.self_attn, layer.mlp
    inputs = tuple(ParameterRef(part) for part in (attention.q_proj, attention.k_proj, attention.v_proj))
    matrices, routers, gated = _mixture(mlp) if hasattr(mlp, "experts") else _dense(mlp)
    norms = (
        Norm(ParameterRef(layer.input_layernorm), inputs),
        Norm(ParameterRef(layer.post_attention_layernorm), matrices, routers),
    )
    value, output = ParameterRef(attention.v_proj), ParameterRef(attention.o_proj)
    query, key = (
        ParameterRef(getattr(attention, f"{part}_norm", getattr(attention, f"{part}_proj"))) for part in "qk"
    )
    return Block(value, output, attention.head_dim, norms, gated, query, key)


Mlp = tuple[tuple[ParameterRef, ...], tuple[ParameterRef, ...], tuple[Gated, ...]]
"""Matrices and routers that read the normed stream, and the pairs of up and down."""


def _dense(mlp: Any) -> Mlp:
    gate, up, down = (ParameterRef(part) for part in (mlp.gate_proj, mlp.up_proj, mlp.down_proj))
    return (gate, up), (), (Gated(up, down),)


def _mixture(mlp: Any) -> Mlp:
    fused = ParameterRef(mlp.experts, "gate_up_proj")
    gated = (Gated(fused, ParameterRef(mlp.experts, "down_proj")),)
    router = ParameterRef(mlp.gate)
    if not hasattr(mlp, "shared_expert"):
        return (fused,), (router,), gated
    shared, _, shared_gated = _dense(mlp.shared_expert)
    return (fused, *shared), (router, ParameterRef(mlp.shared_expert_gate)), gated + shared_gated


def with_bias(matrix: ParameterRef) -> tuple[ParameterRef, ...]:
    """Return a matrix and, if its layer has a bias, the bias."""
    if getattr(matrix.module, "bias", None) is None:
        return (matrix,)
    return matrix, ParameterRef(matrix.module, "bias")
