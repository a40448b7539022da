"""Rotation before quantization: outliers are spread over a whole row by a random-sign Hadamard matrix (`sinq/formats/rotation.py`).

Two places to rotate:

`Hadamard` rotates the inputs of every linear layer apart, so it works for any model, and undoes it at run time, as QuIP#
(arXiv 2402.04396) does on one side of its two.

`ResidualHadamard` rotates the residual stream once, offline, as QuaRot (arXiv 2404.00456) and SliceGPT (arXiv 2401.15024) do: the norms'
gains go into the matrices that read the stream, after which it can be in any basis. Nothing is left to do at run time. The inputs of o
and down stay as they are (QuaRot rotates these too, with a transform at run time); their outputs are rotated.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sinq import (
    Calibration,
    CompressedWeight,
    Context,
    LayerMethod,
    LayerWrapper,
    Method,
    NotApplicable,
    find_targets,
)
from sinq.calibration.statistics import InputStatistic
from sinq.common.progress import Progress
from sinq.formats.rotation import Rotated, Rotation, factors
from sinq.methods.plan import Plan
from sinq.methods.rewriting import Rewriting
from sinq.model.decoder import ParameterRef, decoder, with_bias


@dataclass(frozen=True)
class Hadamard(LayerWrapper):
    """Quantizes W·Qᵀ in place of W, with `inner`; its calibration statistic is that of the rotated inputs."""

    name: ClassVar[str] = "hadamard"

    inner: LayerMethod
    seed: int = 0
    """Of the random signs. Layers with as many inputs have the same ones."""

    def __post_init__(self) -> None:
        if not isinstance(self.inner, LayerMethod):
            raise NotApplicable(
                f"Hadamard rotates layer by layer; inner={type(self.inner).__name__} does not work that way"
            )
        if self.inner.statistic is not None and not issubclass(self.inner.statistic, InputStatistic):
            needed = self.inner.statistic.__name__
            raise NotApplicable(
                f"Hadamard rotates inputs; the {needed} that inner={type(self.inner).__name__} works from is not of inputs"
            )

    def quantize(self, weight: Tensor, statistic: Any = None) -> Rotated:
        rotation = Rotation.random(weight.shape[1], self.seed, weight.device)
        return Rotated(rotation, self.inner.quantize(rotation.apply(weight), _rotated(statistic, rotation)))

    def quantize_together(self, weights: Sequence[Tensor], statistic: Any) -> list[CompressedWeight]:
        rotation = Rotation.random(weights[0].shape[1], self.seed, weights[0].device)
        rotated = [rotation.apply(weight) for weight in weights]
        values = self.inner.quantize_together(rotated, _rotated(statistic, rotation))
        return [
            Rotated(replace(rotation, signs=rotation.signs.clone()), value) for value in values
        ]  # each is saved on its own

    def plan(self, model: nn.Module, calibration: Calibration | None, context: Context) -> Plan:
        for target in find_targets(model, context.layers.exclude):
            try:
                factors(target.shape[1])
            except NotApplicable as error:
                raise NotApplicable(f"{target.name}: {error}") from error
        return super().plan(model, calibration, context)


def _rotated(statistic: Any, rotation: Rotation) -> Any:
    return None if statistic is None else statistic.transformed(rotation.matrix())


@dataclass(frozen=True)
class ResidualHadamard(Rewriting):
    """Rotates the residual stream of an RMSNorm decoder, then lets `inner` compress it.

    A head tied to the embedding cannot stay so: they are rotated alike, but only the head takes the last norm's gain. It becomes a
    matrix of its own, and costs its bytes.
    """

    name: ClassVar[str] = "residual_hadamard"

    inner: Method
    seed: int = 0
    """Of the random signs."""

    def rewrite(self, model: nn.Module, device: torch.device, progress: Progress) -> None:
        parts = decoder(model)
        embedding = parts.embedding.read(device)
        rotation = Rotation.random(embedding.shape[1], self.seed, device)
        parts.embedding.write(rotation.apply(embedding))
        for norm in parts.norms:
            gain = norm.gain.read(device)
            for place in norm.readers:
                place.write(rotation.apply(place.read(device) * gain))
            norm.gain.write(torch.ones_like(gain))
        config: Any = model.config
        config.tie_word_embeddings = False  # each was given a parameter of its own
        for block in progress(parts.blocks, "rotating", len(parts.blocks)):
            for place in (block.output, *(gated.down for gated in block.gated)):
                for part in with_bias(place):
                    _rotate_outputs(part, rotation, device)


def _rotate_outputs(place: ParameterRef, rotation: Rotation, device: torch.device) -> None:
    """W (…, out, in) or a bias (out,) becomes Q·W."""
    values = place.read(device)
    place.write(rotation.apply(values) if place.name == "bias" else rotation.apply(values.mT).mT.contiguous())
