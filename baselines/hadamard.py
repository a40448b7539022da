"""Rotation before quantization: a random-sign Hadamard matrix spreads outliers over a whole row.

The transform is in `sinq/formats/rotation.py`. There are two points at which to rotate:

`Hadamard` rotates the inputs of every linear layer separately, or of some, so it works for any model. At run
time it rotates the inputs themselves. QuIP# (arXiv 2402.04396) does so for inputs and for outputs; here only
inputs are rotated.

`ResidualHadamard` rotates the residual stream once, offline, like QuaRot (arXiv 2404.00456) and SliceGPT
(arXiv 2401.15024): the norms' gains are merged into the matrices that read the stream, after which the stream
can be in any basis. Nothing is left to do at run time. As options it does all that QuaRot does to the inputs
of layers, with the names that SpinQuant (arXiv 2405.16406) gave the rotations:

    R1             residual stream: embedding, q k v, o, gate up, down, head      offline
    R2  `values`   values of each head: rows of v, columns of o                   offline
    R4  `down`     inputs of down                                                 at run time
        `output`   inputs of o                                                    at run time

R3, of queries and keys after their rotary embedding, belongs to the cache of keys and values. This deviates
from QuaRot: all rotations have random signs, where only R1 has them there; o's inputs are rotated as one
vector, where QuaRot rotates between heads (with R2 inside each) and so needs a Hadamard matrix of the number
of heads; and rotations are in float32. Inputs of fused experts are not rotated: their weights are rounded
rotated, and decoded to what the model's code multiplies by.
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
from sinq.methods.plan import Plan
from sinq.methods.rewriting import Rewriting
from sinq.model.decoder import KNOWN, Block, ParameterRef, decoder, with_bias
from sinq.model.folding import columns_by_head
from sinq.model.targets import is_named


@dataclass(frozen=True)
class Hadamard(LayerWrapper):
    """Rotation of a layer's inputs around `inner`, which quantizes W·Qᵀ instead of W.

    The calibration statistic of `inner` is that of the rotated inputs.

    Raises:
        NotApplicable: `inner` does not work layer by layer, or its statistic is not of inputs; later, when
            the model is known, a pattern of `only` is for no layer.
    """

    name: ClassVar[str] = "hadamard"

    inner: LayerMethod
    seed: int = 0
    """Seed of the random signs. Layers with the same number of inputs have the same signs."""
    only: tuple[str, ...] = ()
    """Layers whose inputs are rotated, by shell patterns as in `layers.exclude`; all if there is none."""

    def __post_init__(self) -> None:
        check(self, "method", seed=SEED)
        object.__setattr__(self, "only", tuple(self.only))  # a file has a list
        if not isinstance(self.inner, LayerMethod) or self.inner.trains:
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

    def for_layer(self, name: str) -> LayerMethod:
        return super().for_layer(name) if self._rotates(name) else self.inner.for_layer(name)

    def plan(self, model: nn.Module, calibration: Calibration | None, context: Context) -> Plan:
        plan = super().plan(model, calibration, context)
        names = [*(layer.target.name for layer in plan.steps), *plan.skipped]
        for pattern in self.only:
            if not any(is_named(name, (pattern,)) for name in names):
                raise NotApplicable(
                    f"inputs of {pattern!r} cannot be rotated: no layer of this name is compressed; those"
                    f" that are have names like {names[0]!r}, see layers.exclude"
                )
        return plan

    def _rotates(self, name: str) -> bool:
        return not self.only or is_named(name, self.only)

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

    Raises:
        NotApplicable: rotations at run time are asked for, and `Hadamard` cannot be around `inner`.
    """

    name: ClassVar[str] = "residual_hadamard"

    inner: Method
    seed: int = 0
    """Seed of the random signs."""
    values: bool = False
    """Rotate the values of each head, all alike (R2)."""
    down: bool = False
    """Rotate the inputs of down at run time (R4)."""
    output: bool = False
    """Rotate the inputs of o at run time."""

    def __post_init__(self) -> None:
        check(self, "method", seed=SEED)
        _ = self.compressor  # refuses what cannot be inside

    @property
    def compressor(self) -> Method:
        only = ("down_proj",) * self.down + ("o_proj",) * self.output
        return _rotating(self.inner, self.seed, only) if only else self.inner

    def check_given(self, model: nn.Module, calibration: Calibration | None) -> None:
        """Check also that the stream can be rotated.

        Raises:
            NotApplicable: the architecture is not known, or has LayerNorm.
        """
        super().check_given(model, calibration)
        _require_rms_norm(model)
        decoder(model)

    def rewrite(self, model: nn.Module, calibration: Calibration | None, context: Context) -> None:
        """Rotate the residual stream and, if asked for, the values.

        Raises:
            NotApplicable: no Hadamard matrix of a size is known.
        """
        parts, device = decoder(model), context.device_for(model)
        embedding = parts.embedding.read(device)
        rotation = Rotation.random(embedding.shape[1], self.seed, device)
        widths = {block.head_width for block in parts.blocks} if self.values else set()
        of_heads = {width: Rotation.random(width, self.seed, device) for width in widths}
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
            if self.values:
                _rotate_values(block, of_heads[block.head_width], device)


def _rotating(method: Method, seed: int, only: tuple[str, ...]) -> Method:
    """Return a method with `Hadamard` around the method of layers that is in it."""
    inner = getattr(method, "inner", None)
    if isinstance(method, LayerMethod) or not isinstance(inner, Method):
        # Another one than of layers: `Hadamard` is there to say so.
        return Hadamard(method, seed, only)  # type: ignore[arg-type]
    return replace(method, inner=_rotating(inner, seed, only))  # type: ignore[type-var]


def _require_rms_norm(model: nn.Module) -> None:
    """Raise `NotApplicable` for a model with LayerNorm, and say what its rotation would need."""
    if any(isinstance(module, nn.LayerNorm) for module in model.modules()):
        raise NotApplicable(
            f"{type(model).__name__} is not an architecture whose residual stream can be rotated here: its"
            " LayerNorm subtracts the mean, which a rotation does not keep, and adds a bias. What is missing"
            " is to move both into the matrices around it, as SliceGPT does. Architectures that can be are"
            f" {', '.join(KNOWN)}"
        )


def _rotate_values(block: Block, rotation: Rotation, device: torch.device) -> None:
    """Rotate the values of each head: rows of v by Q, and columns of o, which read them, by Qᵀ."""
    block.output.write(rotation.apply(columns_by_head(block, device)).flatten(1))
    for parameter in with_bias(block.value):
        _rotate_outputs(parameter, rotation, device)


def _rotate_outputs(parameter: ParameterRef, rotation: Rotation, device: torch.device) -> None:
    """Replace a matrix W (…, out, in) by Q·W, or a bias b (out,) by Q·b.

    Where there are more outputs than Q has, each part of them is rotated.
    """
    values = parameter.read(device)
    outputs = values if parameter.name == "bias" else values.mT
    parts = outputs.unflatten(-1, (-1, rotation.size))
    rotated = rotation.apply(parts).flatten(-2)
    parameter.write(rotated if parameter.name == "bias" else rotated.mT.contiguous())
