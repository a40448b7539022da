"""Spikes: inputs of a layer as neurons that fire for some steps (SpikeLLM, arXiv 2407.04752).

An integrate-and-fire neuron holds a membrane potential v. In each step it fires the whole thresholds that v
has, at most L − 1 of them, and loses what it fired (soft reset):

    s(t) = clip(⌊v⌋, 0, L − 1),    v ← v − s(t),    t = 1 … T           threshold 1, L = 2^bits levels

This *generalized* neuron (GIF) fires in one step what L − 1 binary ones of a plain neuron say. Charged with a
code q in 0 … T(L − 1), it fires Σ_t s(t) = q; a larger charge fires T(L − 1), which is one code less for each
step after the first than (bits + log2 T)-bit codes would have. So inputs are charged so that their range
fits:

    x ≈ (Σ_t s(t) − zero) · scale,    scale = (max − min) / (T (L − 1)),    zero = the charge of 0

with the extremes of all of a token's channels, 0 among them. The authors' release takes (bits + log2 T)-bit
codes, whose largest ones never fire: a choice of ours. Firing takes no product: weights are added
as often as their neuron fires (`accumulate`).
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sinq.common.options import check, whole
from sinq.common.reading import options as typed_options
from sinq.formats.rounding import round_through

LARGEST_BITS, LONGEST = 8, 64


def fire(charge: Tensor, levels: int, steps: int) -> Tensor:
    """Return the spikes of neurons, (steps, …) of the dtype of their charge (…).

    Args:
        levels: L; a spike is a whole number below it.
    """
    membrane, spikes = charge.clone(), []
    for _ in range(steps):
        spike = (
            membrane.floor().clamp_(0, levels - 1)
            if charge.is_floating_point()
            else (membrane.clamp(0, levels - 1))
        )
        membrane -= spike
        spikes.append(spike)
    return torch.stack(spikes)


def binary(spikes: Tensor, levels: int) -> Tensor:
    """Return spikes as binary ones, (steps · (levels − 1), …): 1 where a spike is above 0, above 1 …"""
    above = torch.arange(levels - 1, device=spikes.device, dtype=spikes.dtype)
    return (spikes[:, None] > above.view(1, -1, *[1] * (spikes.ndim - 1))).flatten(0, 1)


def accumulate(spikes: Tensor, weight: Tensor) -> Tensor:
    """Return Σ_t s(t) Wᵀ, step by step, (..., out) in the dtype of the weight.

    Args:
        spikes: (steps, ..., in); of binary ones, the product adds columns of W and multiplies nothing.
        weight: (out, in).
    """
    total = weight.new_zeros(*spikes.shape[1:-1], len(weight))
    for spike in spikes:
        total += spike.to(weight.dtype) @ weight.T
    return total


@dataclass(frozen=True)
class NeuronFormat:
    """The neurons of a layer's inputs.

    Raises:
        ValueError: an option is out of its range.
    """

    bits: int = 4
    """Bits of a spike: 2^bits levels."""
    steps: int = 2
    """Steps T of salient channels; others fire for one step. The paper's are 2 and 4."""
    binary: bool = False
    """Expand spikes to binary ones, which only add weights: the same sums in 2^bits − 1 times the passes."""

    def __post_init__(self) -> None:
        check(self, "neurons", bits=whole(1, LARGEST_BITS), steps=whole(1, LONGEST))

    @property
    def levels(self) -> int:
        """L."""
        return int(2**self.bits)

    @property
    def label(self) -> str:
        """A short label for people: "A4 T2"."""
        return f"A{self.bits} T{self.steps}" + (" binary" if self.binary else "")

    def charged(self, x: Tensor, low: Tensor, high: Tensor, steps: int) -> "SpikeTrain":
        """Return the spikes of inputs (..., channels) of which a token's extremes are known, (..., 1).

        With one step, sums of spikes are the codes of an asymmetric `ActivationFormat` to the last bit.
        """
        most, half = steps * (self.levels - 1), 2 ** (self.bits - 1)
        scale = (high - low) * (1 / most)
        scale = torch.where(scale == 0, 1.0, scale)
        zero = torch.round(-low / scale)
        charge = (x / scale + (zero - half)).round_().clamp_(-half, most - half) + half
        return SpikeTrain(fire(charge, self.levels, steps), scale, zero, self.levels if self.binary else 0)

    def through(self, x: Tensor, low: Tensor, high: Tensor, steps: Tensor) -> Tensor:
        """Return what the spikes of inputs stand for, float32 (..., channels), to be trained through.

        The sum of spikes is the clamped code, so the gradient is that of rounding, and firing has none of its
        own. The arguments are those of `charged`, with the steps of each channel, (channels,).
        """
        most = steps * (self.levels - 1)
        scale = (high - low) * (1 / most)
        scale = torch.where(scale == 0, 1.0, scale)
        zero = torch.round(-low / scale)
        most = most.to(scale)
        codes = round_through(x / scale + zero).clamp(torch.zeros_like(most), most)
        return (codes - zero) * scale

    @classmethod
    def from_json(cls, options: Any) -> "NeuronFormat":
        """Return the format that a file describes.

        Raises:
            ValueError: an option is unknown, or has a value of another type or that no format could have.
        """
        return cls(**typed_options(cls, dict(options), "neuron format"))


@dataclass(frozen=True, eq=False)
class SpikeTrain:
    """Spikes of some channels, x ≈ (Σ_t spikes(t) − zero) · scale."""

    spikes: Tensor
    """Whole numbers in float32 (steps, ..., channels)."""
    scale: Tensor
    """float32 (..., 1)."""
    zero: Tensor
    """Whole numbers in float32 (..., 1)."""
    binary_levels: int = 0
    """L, where products take binary spikes; else 0."""

    def dequantize(self) -> Tensor:
        """Return the inputs that the spikes stand for, float32 (..., channels)."""
        return (self.spikes.sum(0) - self.zero) * self.scale

    def product(self, weight: Tensor) -> Tensor:
        """Return x Wᵀ, float32 (..., out), for the columns (out, channels) of these channels alone.

        The zero is subtracted from the sums of exactly these columns.
        """
        spikes = binary(self.spikes, self.binary_levels) if self.binary_levels else self.spikes
        return (accumulate(spikes, weight) - self.zero * weight.sum(1)) * self.scale
