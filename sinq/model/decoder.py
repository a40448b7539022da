"""What is connected to what in a decoder, for methods that rewrite a model into an equal one before it is quantized.

    embedding ─▶ residual ─┬▶ norm ─▶ q k v ─▶ attention ─▶ o ─┬▶ norm ─▶ gate up ─▶ act(gate)·up ─▶ down ─┬▶ … ─▶ norm ─▶ head
                           └───────────────────────────────────┴───────────────────────────────────────────┘

A diagonal may be moved between a norm's gain and all who read the normed stream (routers and shared experts of a mixture included),
between the rows of `up` and the columns of `down`, and between the rows of v and the columns of o: a softmax only averages values. An
orthogonal matrix may be moved into the residual stream, because RMSNorm without its gain keeps lengths: RMSNorm(Q·x) = Q·RMSNorm(x).

This is knowledge about architectures, not something a module tree shows (Gemma's norm multiplies by 1 + gain), so those that are
known are listed by name. Weights lie as (…, out, in) in all of them, fused experts included.

Never in place: parameters may be shared with the dense model, so every change puts a new parameter in the old one's place.
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
    """A parameter of a module, read and replaced."""

    module: nn.Module
    name: str = "weight"

    def read(self, device: torch.device) -> Tensor:
        """The parameter, float32, on a device; possibly the very tensor, so not to be changed in place."""
        return getattr(self.module, self.name).detach().to(device, torch.float32)

    def write(self, value: Tensor) -> None:
        """Put a new parameter there, in the dtype and on the device of the old one."""
        old = getattr(self.module, self.name)
        setattr(self.module, self.name, nn.Parameter(value.to(old.device, old.dtype), requires_grad=False))


@dataclass(frozen=True)
class Norm:
    """A norm's gain, and every matrix whose columns are multiplied by the normed stream."""

    gain: ParameterRef
    matrices: tuple[ParameterRef, ...]
    """Those of linear layers and experts."""
    routers: tuple[ParameterRef, ...] = ()
    """Those that choose or weigh experts."""

    @property
    def readers(self) -> tuple[ParameterRef, ...]:
        return self.matrices + self.routers


@dataclass(frozen=True)
class Gated:
    """act(gate)·up ─▶ down, dense (2-D) or of experts (3-D)."""

    up: ParameterRef
    """Its last rows, as many as `down` has columns: all of them, or the second half where gate and up are fused."""
    down: ParameterRef


@dataclass(frozen=True)
class Block:
    """One decoder block."""

    value: ParameterRef
    """The matrix of v, (kv heads · head width, hidden)."""
    output: ParameterRef
    """The matrix of o, (hidden, heads · head width); heads that share a kv head are next to each other."""
    head_width: int
    norms: tuple[Norm, Norm]
    gated: tuple[Gated, ...]


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
    """The connections of a dense model.

    Raises:
        NotApplicable: they are not known.
    """
    name = type(model).__name__
    if name not in KNOWN:
        raise NotApplicable(
            f"{name} is not an architecture whose norms and residual stream are known here; those are {', '.join(KNOWN)}"
        )
    body = model.model
    blocks = tuple(_block(layer) for layer in body.layers)
    return Decoder(
        ParameterRef(body.embed_tokens), blocks, Norm(ParameterRef(body.norm), (ParameterRef(model.lm_head),))
    )


def _block(layer: Any) -> Block:
    attention, mlp = layer.self_attn, layer.mlp
    inputs = tuple(ParameterRef(part) for part in (attention.q_proj, attention.k_proj, attention.v_proj))
    matrices, routers, gated = _mixture(mlp) if hasattr(mlp, "experts") else _dense(mlp)
    norms = (
        Norm(ParameterRef(layer.input_layernorm), inputs),
        Norm(ParameterRef(layer.post_attention_layernorm), matrices, routers),
    )
    return Block(
        ParameterRef(attention.v_proj), ParameterRef(attention.o_proj), attention.head_dim, norms, gated
    )


Mlp = tuple[tuple[ParameterRef, ...], tuple[ParameterRef, ...], tuple[Gated, ...]]
"""Matrices and routers that read the stream, and what is between the matrices."""


def _dense(mlp: Any) -> Mlp:
    return (
        (ParameterRef(mlp.gate_proj), ParameterRef(mlp.up_proj)),
        (),
        (Gated(ParameterRef(mlp.up_proj), ParameterRef(mlp.down_proj)),),
    )


def _mixture(mlp: Any) -> Mlp:
    fused = ParameterRef(mlp.experts, "gate_up_proj")
    matrices, gated = (fused,), (Gated(fused, ParameterRef(mlp.experts, "down_proj")),)
    if not hasattr(mlp, "shared_expert"):
        return matrices, (ParameterRef(mlp.gate),), gated
    shared, _, shared_gated = _dense(mlp.shared_expert)
    return (
        matrices + shared,
        (ParameterRef(mlp.gate), ParameterRef(mlp.shared_expert_gate)),
        gated + shared_gated,
    )


def with_bias(place: ParameterRef) -> tuple[ParameterRef, ...]:
    """A matrix and, if its layer has one, its bias."""
    return (
        (place, ParameterRef(place.module, "bias"))
        if getattr(place.module, "bias", None) is not None
        else (place,)
    )
