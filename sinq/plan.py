"""What will be done to each layer, decided and checked before any work: a list of steps, or an error that says what to change."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn

from sinq.calibration import Calibration
from sinq.errors import NotApplicable
from sinq.format import Format, Misfit
from sinq.layers import Layers, OnMisfit, Target, find_targets
from sinq.statistics import Origin, Statistic
from sinq.tensor import CompressedWeight
from sinq.tuning import BlockTuning


class Quantizer(Protocol):
    """What the loop needs of a method; `LayerMethod` is it."""

    @property
    def format(self) -> Format: ...
    @property
    def statistic(self) -> type[Statistic] | None: ...
    @property
    def true_sequential(self) -> bool: ...
    @property
    def tuning(self) -> BlockTuning | None: ...
    def quantize_together(self, weights: Sequence[Tensor], statistic: Any) -> list[CompressedWeight]: ...
    def with_format(self, format: Any) -> Self: ...
    def warming_up(self) -> Self: ...


@dataclass(frozen=True)
class Step:
    """A target, the method as it fits that target, and what was decided for it."""

    target: Target
    method: Quantizer
    notes: dict[str, float]


def plan(
    model: nn.Module, method: Quantizer, calibration: Calibration | None, layers: Layers, bits: Mapping[str, int]
) -> tuple[list[Step], tuple[str, ...]]:
    """Which layers are compressed and how; names of the layers left dense because the grid does not fit.

    Args:
        bits: of the grid, for the targets named.

    Raises:
        NotApplicable: statistics are needed and cannot be had, blocks are to be tuned behind a dense model, or the format does not fit
            layers.
        ValueError: a weight is not finite (on the meta device, where a model has none, not checked).
    """
    targets = find_targets(model, layers.exclude)
    if method.statistic is not None:
        _require_calibration(method, calibration, targets)
    if method.tuning is not None and calibration is not None and not calibration.sequential:
        _refuse_tuning(method)
    misfits = {t.name: misfit for t in targets if (misfit := method.format.misfit(t.shape))}
    if misfits and layers.on_misfit is OnMisfit.error:
        raise NotApplicable(f"{_explain(targets, misfits)}. Choose another, or on_misfit=shrink|skip")
    for target in targets:
        for name, matrix in target.matrices().items():
            if not matrix.is_meta:
                require_finite(name, matrix)
    steps, skipped = [], []
    for target in targets:
        if target.name not in misfits:
            steps.append(Step(target, method, {}))
        elif layers.on_misfit is OnMisfit.skip:
            skipped.append(target.name)
        else:
            steps.append(_shrink(method, target, misfits[target.name]))
    steps = [_with_bits(step, bits[step.target.name]) if step.target.name in bits else step for step in steps]
    if not steps:
        raise NotApplicable(f"on_misfit=skip leaves nothing to compress: {_explain(targets, misfits)}")
    return steps, tuple(skipped)


def _with_bits(step: Step, bits: int) -> Step:
    method = step.method.with_format(replace(step.method.format, bits=bits))  # type: ignore[type-var]
    return Step(step.target, method, step.notes | {f"{bits}_bits": 1.0})


def _refuse_tuning(method: Quantizer) -> None:
    raise NotApplicable(
        f"{type(method).__name__} tunes each block on inputs that went through the compressed blocks before it, which"
        " calibration.sequential=false never makes; use calibration.sequential=true, or method.tuning=null for no tuning"
    )


def _require_calibration(method: Quantizer, calibration: Calibration | None, targets: list[Target]) -> None:
    assert method.statistic is not None
    name, origin = type(method).__name__, method.statistic.origin
    needed = f"{method.statistic.__name__} {origin.value}"
    if calibration is None:
        raise NotApplicable(f"{name} needs calibration text: it works from the {needed}. Try calibration=wikitext2 or sotu")
    experts = [t.name for t in targets if t.parameter is not None]
    if experts and origin is Origin.inputs:
        hidden = f"which fused experts ({experts[0]}, …) do not show; add them to layers.exclude"
        raise NotApplicable(f"{name} needs the {needed}, {hidden}")
    if origin is Origin.loss and any(t.tensor.dtype == torch.float16 for t in targets):
        raise NotApplicable(f"{name} needs the {needed}, which float16 is too narrow for; use model.dtype=float32 or bfloat16")


def _explain(targets: list[Target], misfits: Mapping[str, Misfit]) -> str:
    """Layers that do not fit, by reason and by what they would take."""
    found: dict[str, dict[str, list[Target]]] = {}
    for target in targets:
        if misfit := misfits.get(target.name):
            found.setdefault(misfit.why, {}).setdefault(misfit.fitting, []).append(target)
    return "; ".join(_reason(why, alike) for why, alike in found.items())


def _reason(why: str, alike: Mapping[str, list[Target]]) -> str:
    parts = [f"{len(same)} like {same[0].name} ({same[0].shape[0]}×{same[0].shape[1]}) {fitting}" for fitting, same in alike.items()]
    return f"{why} {sum(len(same) for same in alike.values())} layers: {'; '.join(parts)}"


def _shrink(method: Quantizer, target: Target, misfit: Misfit) -> Step:
    smaller = method.format.shrunk(target.shape)
    if smaller is None:
        raise NotApplicable(f"{_explain([target], {target.name: misfit})}; use on_misfit=skip or layers.exclude")
    before: Any = method.format
    changed = {name: value for name, value in asdict(smaller).items() if value != getattr(before, name)}  # type: ignore[call-overload]
    return Step(target, method.with_format(smaller), {f"shrunk_{name}": float(value) for name, value in changed.items()})


def require_finite(name: str, matrix: Tensor) -> None:
    """Raises `ValueError` naming the layer if a matrix has NaN or Inf."""
    if not torch.isfinite(matrix).all():
        raise ValueError(f"layer {name} has NaN or Inf in its weight; repair the checkpoint or add the layer to layers.exclude")
