"""Plan of a compression, decided and checked before any work.

It lists the layers to compress with their methods. Where there is none, the error says what to change.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol, Self

from torch import Tensor, nn

from sinq.calibration.data import Calibration
from sinq.calibration.statistics import Statistic
from sinq.common.errors import PASS_CALIBRATION, NotApplicable
from sinq.formats.base import CompressedWeight, Format, Incompatibility
from sinq.methods.report import Decision
from sinq.model.targets import Layers, OnMisfit, Target, select
from sinq.model.unfit import unusable_kind

LARGEST_WEIGHT = 2.0**50
"""Largest magnitude of a weight that methods are given."""
SMALLEST_WEIGHT = 2.0**-118
"""Smallest magnitude of a matrix's largest weight, unless all are 0."""
WITHOUT = "; use on_misfit=skip or layers.exclude"


class Quantizer(Protocol):
    """The part of a method that works on matrices, which `LayerMethod` provides."""

    @property
    def format(self) -> Format: ...
    @property
    def statistic(self) -> type[Statistic] | None: ...
    def quantize_together(self, weights: Sequence[Tensor], statistic: Any) -> list[CompressedWeight]: ...
    def with_format(self, format: Any) -> Self: ...
    def incompatibility(self, shape: tuple[int, int]) -> Incompatibility | None: ...
    def shrunk(self, shape: tuple[int, int]) -> Self | None: ...
    def warming_up(self) -> Self: ...
    def for_layer(self, name: str) -> "Quantizer": ...


@dataclass(frozen=True)
class LayerPlan:
    """A target, the method as it fits that target, and the decisions taken for it."""

    target: Target
    method: Quantizer
    decisions: tuple[Decision, ...] = ()

    def with_bits(self, bits: int) -> "LayerPlan":
        """Return this plan with another number of bits in its grid."""
        method = self.method.with_format(replace(self.method.format, bits=bits))  # type: ignore[type-var]
        return LayerPlan(self.target, method, (*self.decisions, Decision("bits", bits, chosen=True)))


@dataclass(frozen=True)
class Plan:
    """Layers to compress and layers left dense."""

    steps: tuple[LayerPlan, ...] = ()
    """Plans of the layers, in the order of the model's modules."""
    skipped: tuple[str, ...] = ()
    """Names of the layers left dense because the format does not fit them."""
    left_dense: Mapping[str, str] = field(default_factory=dict)
    """Reasons why other layers stay dense, by name (`model/unfit.py`)."""
    together: tuple[tuple[str, ...], ...] = ()
    """Names of layers that a method without statistics compresses together, so that they share numbers."""

    def groups(self) -> list[list[LayerPlan]]:
        """Return the plans of layers that are compressed together, in the order of each first one."""
        first = {name: names[0] for names in self.together for name in names}
        groups: dict[str, list[LayerPlan]] = {}
        for step in self.steps:
            groups.setdefault(first.get(step.target.name, step.target.name), []).append(step)
        return list(groups.values())

    def with_bits(self, bits: Mapping[str, int]) -> "Plan":
        """Return this plan with other numbers of bits for the named targets."""
        plans = (
            layer.with_bits(bits[layer.target.name]) if layer.target.name in bits else layer
            for layer in self.steps
        )
        return replace(self, steps=tuple(plans))


def plan_layers(model: nn.Module, method: Quantizer, calibration: Calibration | None, layers: Layers) -> Plan:
    """Choose the layers to compress, and the method for each.

    Raises:
        NotApplicable: statistics are needed and cannot be had, or the format does not fit layers.
        ValueError: a weight cannot be computed with (not checked on the meta device, where a model has no
            weights).
    """
    selection = select(model, layers)
    targets = selection.targets
    _require_statistic(method, calibration, targets)
    methods = {target.name: method.for_layer(target.name) for target in targets}
    incompatible: dict[str, Incompatibility] = {}
    for target in targets:
        if incompatibility := methods[target.name].incompatibility(target.shape):
            incompatible[target.name] = incompatibility
    if incompatible and layers.on_misfit is OnMisfit.error:
        misfits = [target for target in targets if target.name in incompatible]
        shrinkable = all(methods[target.name].shrunk(target.shape) for target in misfits)
        remedy = ". Choose another, or on_misfit=shrink|skip" if shrinkable else WITHOUT
        raise NotApplicable(f"{_explain(targets, incompatible)}{remedy}")
    for target in targets:
        for name, matrix in target.matrices().items():
            if not matrix.is_meta:
                require_usable(name, matrix)
    plans, skipped = [], []
    for target in targets:
        if target.name not in incompatible:
            plans.append(LayerPlan(target, methods[target.name]))
        elif layers.on_misfit is OnMisfit.skip:
            skipped.append(target.name)
        else:
            plans.append(_shrink(methods[target.name], target, incompatible[target.name]))
    if not plans:
        raise NotApplicable(f"on_misfit=skip leaves nothing to compress: {_explain(targets, incompatible)}")
    return Plan(tuple(plans), tuple(skipped), selection.left_dense)


def _require_statistic(method: Quantizer, calibration: Calibration | None, targets: Sequence[Target]) -> None:
    """Raise `NotApplicable` if the method's statistic lacks text, or cannot be taken of these layers."""
    if method.statistic is None:
        return
    name, needed = type(method).__name__, method.statistic.described()
    if calibration is None:
        raise NotApplicable(f"{name} needs calibration text: it works from the {needed}; {PASS_CALIBRATION}")
    if reason := method.statistic.refusal(targets):
        raise NotApplicable(f"{name} needs the {needed}, {reason}")


def _explain(targets: Sequence[Target], incompatible: Mapping[str, Incompatibility]) -> str:
    """Describe the layers that do not fit, by reason and by the values they would accept."""
    found: dict[str, dict[str, list[Target]]] = {}
    for target in targets:
        if incompatibility := incompatible.get(target.name):
            by_accepted = found.setdefault(incompatibility.reason, {})
            by_accepted.setdefault(incompatibility.accepted, []).append(target)
    return "; ".join(_explain_reason(reason, by_accepted) for reason, by_accepted in found.items())


def _explain_reason(reason: str, by_accepted: Mapping[str, list[Target]]) -> str:
    parts = [
        f"{len(alike)} like {alike[0].name} ({alike[0].shape[0]}×{alike[0].shape[1]}) {accepted}"
        for accepted, alike in by_accepted.items()
    ]
    return f"{reason} {sum(len(alike) for alike in by_accepted.values())} layers: {'; '.join(parts)}"


def _shrink(method: Quantizer, target: Target, incompatibility: Incompatibility) -> LayerPlan:
    """Plan a layer in a smaller format that fits it, and note the changed fields as decisions."""
    smaller = method.shrunk(target.shape)
    if smaller is None:
        raise NotApplicable(f"{_explain([target], {target.name: incompatibility})}{WITHOUT}")
    before = _options(asdict(method.format))  # type: ignore[call-overload]
    after = _options(asdict(smaller.format))  # type: ignore[call-overload]
    changed = {name: value for name, value in after.items() if value != before[name]}
    decisions = tuple(Decision(f"shrunk_{name}", value, chosen=True) for name, value in changed.items())
    return LayerPlan(target, smaller, decisions)


def _options(format: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a format, with those of a format inside it, by their own names."""
    found: dict[str, Any] = {}
    for name, value in format.items():
        found |= _options(value) if isinstance(value, Mapping) else {name: value}
    return found


def require_usable(name: str, matrix: Tensor) -> None:
    """Raise `ValueError`, naming the layer, if the weights of a matrix cannot be computed with."""
    if fault := weight_fault(matrix):
        raise ValueError(
            f"layer {name} has {fault}; repair the checkpoint or add the layer to layers.exclude"
        )


def require_usable_weights(model: nn.Module) -> None:
    """Raise `ValueError`, naming the parameter, if a model has weights that cannot be computed with."""
    for name, parameter in model.named_parameters():
        if kind := unusable_kind(parameter):
            raise ValueError(f"{name} is {kind}, and only dense floating-point weights can be computed with")
        if fault := weight_fault(parameter):
            raise ValueError(f"{name} has {fault}; repair the checkpoint")


def weight_fault(matrix: Tensor) -> str | None:
    """Return what is wrong with the weights of a tensor, for a message; None where nothing is.

    Methods work in float32, and sum squares: between the limits neither overflows, and no scale is denormal.
    """
    largest = max(map(abs, map(float, matrix.detach().aminmax()))) if matrix.numel() else 0.0
    if not math.isfinite(largest):
        return "NaN or Inf in its weight"
    if largest > LARGEST_WEIGHT:
        return f"a weight of magnitude {largest:.3g}, and at most {LARGEST_WEIGHT:.3g} is possible"
    if 0 < largest < SMALLEST_WEIGHT:
        return f"no weight above {largest:.3g}, and {SMALLEST_WEIGHT:.3g} is the least that is possible"
    return None


@contextmanager
def naming(layers: Sequence[str]) -> Iterator[None]:
    """Name the layers in a `ValueError` that is raised within the context."""
    try:
        yield
    except ValueError as error:
        kind = NotApplicable if isinstance(error, NotApplicable) else ValueError
        raise kind(f"layer {', '.join(layers)}: {error}") from error
