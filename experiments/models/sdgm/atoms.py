"""The dictionary: atoms with an amplitude, a frequency and a phase for each channel, and sums of them.

Atom k is a_{k,d} sin(2π f_{k,d} t / T_max + φ_{k,d}) in channel d at position t. T_max is the longest input
of the model and never the length of a batch, so that a token's result does not depend on what comes later.
The parameter is log f: gradients by f grow with t, those by log f are of one size for all atoms.

`synthesized` evaluates sines directly, for whole texts. `Oscillators` turns each atom by one step of its
angle, O(atoms · width) a token without a sine, for generation. Both are linear in the length of the text.
Angles are in float32 or wider, whatever the model's number format.

With one frequency for all channels of an atom (`shared`), a restriction of the paper's dictionary, a sum is a
product of matrices: sin(ωt + φ) = sin ωt cos φ + cos ωt sin φ, so that

    X̂ = [C ⊙ sin ωt, C ⊙ cos ωt] · [a cos φ; a sin φ]

and no sine is taken for a channel. `Modulation` lets amplitudes change slowly in time, alike in all channels.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

CHUNK = 64
"""Positions whose atoms are in memory at once; in training, autograd keeps those of all positions."""
RESEED = 256
"""Steps after which oscillators take their angle from a sine again: rounding errors grow with the steps."""


class Atoms(nn.Module):
    """Amplitudes, logarithms of frequencies (periods in `span` positions) and phases, (atoms, width) each.

    Args:
        shared: one frequency for all channels of an atom, (atoms, 1).
    """

    def __init__(self, atoms: int, width: int, span: int, shared: bool = False) -> None:
        super().__init__()
        self.span, self.shared = span, shared
        self.amplitude = nn.Parameter(torch.empty(atoms, width))
        self.log_frequency = nn.Parameter(torch.empty(atoms, 1 if shared else width))
        self.phase = nn.Parameter(torch.empty(atoms, width))

    def forward(self, coefficients: Tensor, start: int = 0) -> Tensor:
        """Return the sums of atoms (batch, tokens, width) from position `start` on.

        Args:
            coefficients: (batch, tokens, atoms).
        """
        make = synthesized_by_products if self.shared else synthesized
        return make(coefficients, self.amplitude, self.step, self.phase, start)

    @property
    def step(self) -> Tensor:
        """Return the angle between two positions, radians (atoms, width), or (atoms, 1) if shared."""
        wide = self.log_frequency.to(torch.promote_types(self.log_frequency.dtype, torch.float32))
        return 2 * math.pi / self.span * wide.exp()

    def oscillators(self, position: int) -> "Oscillators":
        """Return oscillators at a position, which turn from there."""
        return Oscillators(self.step, self.phase, position)


def synthesized(coefficients: Tensor, amplitude: Tensor, step: Tensor, phase: Tensor, start: int) -> Tensor:
    """Return Σ_k C_{t,k} a_{k,d} sin(step_{k,d} t + φ_{k,d}), (batch, tokens, width), t from `start`."""
    parts = []
    for chunk in coefficients.split(CHUNK, dim=1):
        positions = torch.arange(start, start + chunk.shape[1], device=step.device, dtype=step.dtype)
        waves = torch.sin(positions[:, None, None] * step + phase) * amplitude
        parts.append(torch.einsum("btk,tkd->btd", chunk, waves.to(chunk.dtype)))
        start += chunk.shape[1]
    return torch.cat(parts, dim=1)


def synthesized_by_products(
    coefficients: Tensor, amplitude: Tensor, step: Tensor, phase: Tensor, start: int
) -> Tensor:
    """Return what `synthesized` does, for steps (atoms, 1) that all channels share."""
    positions = torch.arange(start, start + coefficients.shape[1], device=step.device, dtype=step.dtype)
    angle = positions[:, None] * step[:, 0]
    waves = torch.cat([angle.sin(), angle.cos()], dim=-1).to(coefficients.dtype)
    phase = phase.to(step.dtype)
    parts = torch.cat([amplitude * phase.cos(), amplitude * phase.sin()])
    return (coefficients.repeat(1, 1, 2) * waves) @ parts.to(coefficients.dtype)


class Modulation(nn.Module):
    """Factors 1 + tanh(u t/T_max + b) · V of the amplitudes of atoms at a position: a small MLP of time.

    Parameters are no linear layers, so that they are not quantized: a row of inputs has one number.
    """

    def __init__(self, atoms: int, hidden: int, span: int) -> None:
        super().__init__()
        self.span = span
        self.inner = nn.Parameter(torch.empty(hidden))
        self.bias = nn.Parameter(torch.empty(hidden))
        self.outer = nn.Parameter(torch.empty(hidden, atoms))

    def forward(self, start: int, tokens: int) -> Tensor:
        """Return the factors (tokens, atoms) from position `start` on."""
        wide = torch.promote_types(self.inner.dtype, torch.float32)
        positions = torch.arange(start, start + tokens, device=self.inner.device, dtype=wide)
        hidden = (positions[:, None] / self.span * self.inner + self.bias).tanh()
        return 1 + hidden.to(self.outer.dtype) @ self.outer


@dataclass
class Oscillators:
    """Sine and cosine of the angle of every atom at a position, turned by one position at a time."""

    step: Tensor
    phase: Tensor
    position: int

    def __post_init__(self) -> None:
        self._turn = self.step.sin(), self.step.cos()
        self._seed()

    def _seed(self) -> None:
        angle = self.position * self.step + self.phase
        self._now = angle.sin(), angle.cos()

    def sines(self) -> Tensor:
        """Return the sines (atoms, width) at the position, and go on to the next one."""
        (sine, cosine), (turn_sine, turn_cosine) = self._now, self._turn
        self.position += 1
        if self.position % RESEED:
            self._now = (
                sine * turn_cosine + cosine * turn_sine,
                cosine * turn_cosine - sine * turn_sine,
            )
        else:
            self._seed()
        return sine
