"""Learnable equivalent transformation (OmniQuant, arXiv 2308.13137, equations 3 to 5).

A block computes the same when a channel is divided by s in one place and multiplied by s in the next. Which s
suits rounding best is learned. The places, with what is divided ─▶ what is multiplied:

    gain of a norm ─▶ columns of q k v;  of gate and up
    rows of v      ─▶ columns of o            query heads of one kv head share its values, and so their s
    rows of q      ─▶ rows of k               the two channels that a rotary embedding turns share one s
    rows of up     ─▶ columns of down         ABQ-LLM's addition

Biases go with their rows. Where norms stand behind q and k (Qwen3), their gains are scaled instead of rows,
and all heads share s. The starts are SmoothQuant's, max|x|^α / max|W|^(1−α), and 1 between q and k.

As in the authors' code, s nearer to 0 than 0.01 counts as 0.01, with the gradient of s. Theirs starts from
max W of q and of up only, here from max|W| of all matrices that read the channel; and it does not tie rotary
pairs, so that its folded model is not the trained one.

Not covered: shifts, which the authors use for OPT and not for Llama.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sinq.model.decoder import Block, Gated, Norm, ParameterRef, with_bias
from sinq.model.folding import columns_by_head

FLOOR = 1e-5
"""Smallest maximum of weights, and smallest s at the start."""
NEAREST = 0.01
"""Smallest magnitude of s."""

Peaks = Mapping[nn.Module, Tensor]
"""Largest magnitude of each channel of the inputs of a module, float32 (in,)."""


@dataclass(frozen=True, eq=False)
class Effect:
    """The effect of s on a parameter."""

    parameter: ParameterRef
    divides: bool
    columns: bool = False
    """True for columns of a matrix (out, in); False for its rows, a bias or a gain."""
    channels: Tensor | None = None
    """The entry of s for each row or column, int64; None where they are in the same order."""

    def applied(self, value: Tensor, s: Tensor) -> Tensor:
        """Return the parameter's value under s."""
        factor = s if self.channels is None else s[self.channels]
        factor = factor if self.columns or value.ndim == 1 else factor[:, None]
        return value / factor if self.divides else value * factor


@dataclass(frozen=True, eq=False)
class Fold:
    """A vector s, and its effects, which cancel each other."""

    s: Tensor
    """float32, positive at the start."""
    effects: tuple[Effect, ...]


@dataclass(frozen=True, eq=False)
class Transformation:
    """All folds of a block."""

    folds: tuple[Fold, ...]

    @property
    def leaves(self) -> list[Tensor]:
        """The vectors, to be trained."""
        return [fold.s for fold in self.folds]

    def tensors(self, device: torch.device) -> dict[ParameterRef, Tensor]:
        """Return what the parameters become, float32."""
        found: dict[ParameterRef, Tensor] = {}
        for fold in self.folds:
            s = _bounded(fold.s)
            for effect in fold.effects:
                part = effect.parameter
                value = found[part] if part in found else part.read(device)
                found[part] = effect.applied(value, s)
        return found


def transformation(
    block: Block, peaks: Peaks, alpha: float, down: bool, device: torch.device
) -> Transformation:
    """Return the start of a block's transformation.

    Args:
        peaks: of every module that `smoothed` returns.
        alpha: migration strength of the start: 0 evens out the weights, 1 the activations.
        down: fold into up and down too.
    """
    folds = [_of_norm(norm, peaks, alpha, device) for norm in block.norms]
    folds += [_of_values(block, peaks, alpha, device), _of_queries(block, device)]
    folds += [_of_gated(gated, peaks, alpha, device) for gated in block.gated if down]
    return Transformation(tuple(folds))


def smoothed(block: Block, down: bool) -> list[nn.Module]:
    """Return the modules whose inputs decide the start."""
    gated = [gated.down.module for gated in block.gated if down]
    return [*(norm.matrices[0].module for norm in block.norms), block.output.module, *gated]


def _of_norm(norm: Norm, peaks: Peaks, alpha: float, device: torch.device) -> Fold:
    weights = torch.stack([matrix.read(device).abs().amax(0) for matrix in norm.matrices]).amax(0)
    readers = tuple(Effect(matrix, divides=False, columns=True) for matrix in norm.matrices)
    s = _start(peaks[norm.matrices[0].module], weights, alpha)
    return Fold(s, (Effect(norm.gain, divides=True), *readers))


def _of_values(block: Block, peaks: Peaks, alpha: float, device: torch.device) -> Fold:
    by_head = columns_by_head(block, device)
    _, heads, shared, width = by_head.shape
    inputs = peaks[block.output.module].reshape(heads, shared, width).amax(1)
    s = _start(inputs, by_head.abs().amax((0, 2)), alpha).flatten()
    channels = torch.arange(heads * width, device=device).reshape(heads, 1, width).expand(-1, shared, -1)
    output = Effect(block.output, divides=False, columns=True, channels=channels.flatten())
    return Fold(s, (*_rows(block.value, True), output))


def _of_gated(gated: Gated, peaks: Peaks, alpha: float, device: torch.device) -> Fold:
    s = _start(peaks[gated.down.module], gated.down.read(device).abs().amax(0), alpha)
    return Fold(s, (*_rows(gated.up, True), Effect(gated.down, divides=False, columns=True)))


def _of_queries(block: Block, device: torch.device) -> Fold:
    """Return s between queries and keys, all 1: one for each pair of a kv head, (kv heads · width / 2,)."""
    half = block.head_width // 2
    rows = len(block.key.read(device))
    heads = rows // block.head_width  # 1 where gains of norms are scaled
    shared = len(block.query.read(device)) // rows
    pairs = torch.arange(heads * half, device=device).reshape(heads, 1, 1, half)
    of_key, of_query = pairs.expand(-1, 1, 2, -1).flatten(), pairs.expand(-1, shared, 2, -1).flatten()
    effects = (*_rows(block.query, True, of_query), *_rows(block.key, False, of_key))
    return Fold(torch.ones(heads * half, device=device), effects)


def _rows(matrix: ParameterRef, divides: bool, channels: Tensor | None = None) -> Sequence[Effect]:
    """Return the effects on the rows of a matrix and on its bias."""
    return [Effect(part, divides, channels=channels) for part in with_bias(matrix)]


def _start(inputs: Tensor, weights: Tensor, alpha: float) -> Tensor:
    """Return s from the largest magnitudes of inputs and of weights, of one shape."""
    return (inputs**alpha / weights.clamp_min(FLOOR) ** (1 - alpha)).clamp_min(FLOOR)


def _bounded(s: Tensor) -> Tensor:
    """Return s with no magnitude below `NEAREST`, and the gradient of s."""
    bounded = torch.where(s.abs() < NEAREST, torch.where(s < 0, -NEAREST, NEAREST), s)
    return s + (bounded - s).detach()
