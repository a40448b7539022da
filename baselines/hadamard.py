"""Rotation before quantization: a random-sign Hadamard matrix spreads outliers over a whole row.

The transform is in `sinq/formats/rotation.py`. There are two points at which to rotate:

`Hadamard` rotates the inputs of every linear layer separately, so it works for any model, and undoes the
rotation at run time. QuIP# (arXiv 2402.04396) does so for inputs and for outputs; here only inputs are
rotated.

`ResidualHadamard` rotates the residual stream once, offline, like QuaRot (arXiv 2404.00456) and SliceGPT
(arXiv 2401.15024): the norms' gains are merged into the matrices that read the stream, after which the stream
can be in any basis. Nothing is left to do at run time. The inputs of o and down stay unrotated (QuaRot
rotates these too, with a transform at run time); their outputs are rotated.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from sinq import Calibration, CompressedWeight, Context, LayerMethod, LayerWrapper, Method, NotApplicable
from sinq.calibration.statistics import InputStatistic
from sinq.common.options import SEED, check
from sinq.formats.base import Incompatibility
from sinq.formats.rotation import Rotated, Rotation, factors
from sinq.methods.rewriting import Rewriting
from sinq.model.decoder import ParameterRef, decoder, with_bias


@dataclass(frozen=True)
class Hadamard(LayerWrapper):
    """Rotation of a layer's inputs around `inner`, which quantizes W·Qᵀ instead of W.

    The calibration statistic of `inner` is that of the rotated inputs.

    Raises:
        NotApplicable: `inner` does not work layer by layer, or its statistic is not of inputs.
    """

    name: ClassVar[str] = "hadamard"

    inner: LayerMethod
    seed: int = 0
    """Seed of the random signs. Layers with the same number of inputs have the same signs."""

    def __post_init__(self) -> None:
        check(self, "method", seed=SEED)
        if not isinstance(self.inner, LayerMethod):
            raise NotApplicable(
                f"Hadamard rotates layer by layer; inner={type(self.inner).__name__} does not work that way"
            )
        if self.inner.statistic is not None and not issubclass(self.inner.statistic, InputStatistic):
            inner, needed = type(self.inner).__name__, self.inner.statistic.__name__
            raise NotApplicable(
                f"Hadamard rotates inputs; the {needed} that inner={inner} works from is not of inputs"
            )

    def quantize(self, weight: Tensor, statistic: Any = None) -> Rotated:
        rotation = Rotation.random(weight.shape[1], self.seed, weight.device)
        return Rotated(rotation, self.inner.quantize(rotation.apply(weight), _rotated(statistic, rotation)))

    def quantize_together(self, weights: Sequence[Tensor], statistic: Any) -> list[CompressedWeight]:
        rotation = Rotation.random(weights[0].shape[1], self.seed, weights[0].device)
        rotated = [rotation.apply(weight) for weight in weights]
        values = self.inner.quantize_together(rotated, _rotated(statistic, rotation))
        # Every layer is saved separately, so every layer has a copy of the signs.
        return [Rotated(replace(rotation, signs=rotation.signs.clone()), value) for value in values]

    def incompatibility(self, shape: tuple[int, int]) -> Incompatibility | None:
        return _cannot_rotate(shape) or super().incompatibility(shape)

    def shrunk(self, shape: tuple[int, int]) -> Self | None:
        return None if _cannot_rotate(shape) else super().shrunk(shape)


def _cannot_rotate(shape: tuple[int, int]) -> Incompatibility | None:
    """Return the reason why the inputs of a matrix (out, in) have no rotation; None where they have one."""
    try:
        factors(shape[1])
    except NotApplicable:
        return Incompatibility(
            "no Hadamard matrix is known here for the inputs of", f"have {shape[1]} inputs"
        )
    return None


def _rotated(statistic: Any, rotation: Rotation) -> Any:
    return None if statistic is None else statistic.transformed(rotation.matrix())


@dataclass(frozen=True)
class ResidualHadamard(Rewriting):
    """Rotation of the residual stream of an RMSNorm decoder, which `inner` then compresses.

    A head tied to the embedding cannot stay tied: both are rotated alike, but only the head takes the last
    norm's gain. The head becomes a separate matrix, and costs its bytes.
    """

    name: ClassVar[str] = "residual_hadamard"

    inner: Method
    seed: int = 0
    """Seed of the random signs."""

    def __post_init__(self) -> None:
        check(self, "method", seed=SEED)

    def rewrite(self, model: nn.Module, calibration: Calibration | None, context: Context) -> None:
        parts, device = decoder(model), context.device_for(model)
        embedding = parts.embedding.read(device)
        rotation = Rotation.random(embedding.shape[1], self.seed, device)
        parts.embedding.write(rotation.apply(embedding))
        for norm in parts.norms:
            gain = norm.gain.read(device)
            for reader in norm.readers:
                reader.write(rotation.apply(reader.read(device) * gain))
            norm.gain.write(torch.ones_like(gain))
        config: Any = model.config
        config.tie_word_embeddings = False  # head and embedding are separate parameters now
        for block in context.progress(parts.blocks, "rotating", len(parts.blocks)):
            for matrix in (block.output, *(gated.down for gated in block.gated)):
                for parameter in with_bias(matrix):
                    _rotate_outputs(parameter, rotation, device)


def _rotate_outputs(parameter: ParameterRef, rotation: Rotation, device: torch.device) -> None:
    """Replace a matrix W (…, out, in) by Q·W, or a bias b (out,) by Q·b."""
    values = parameter.read(device)
    if parameter.name == "bias":
        parameter.write(rotation.apply(values))
    else:
        parameter.write(rotation.apply(values.mT).mT.contiguous())
