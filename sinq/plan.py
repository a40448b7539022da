"""What will be done to each layer, decided and checked before any work: a list of steps, or an error that says what to change."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn

from sinq.calibration import Calibration
from sinq.errors import NotApplicable
from sinq.grid import SMALLEST_GROUP, Grid
from sinq.layers import Layers, OnMisfit, Target, find_targets
from sinq.statistics import Origin, Statistic
from sinq.tensor import CompressedWeight


class Quantizer(Protocol):
    """What the loop needs of a method; `LayerMethod` is it."""

    @property
    def grid(self) -> Grid: ...
    @property
    def statistic(self) -> type[Statistic] | None: ...
    @property
    def true_sequential(self) -> bool: ...
    def quantize_together(self, weights: Sequence[Tensor], statistic: Any) -> list[CompressedWeight]: ...
    def with_grid(self, grid: Grid) -> Self: ...


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
        NotApplicable: statistics are needed and cannot be had.
        ValueError: a group size does not divide layers; a weight is not finite (on the meta device, where a model has none, not checked).
    """
    targets = find_targets(model, layers.exclude)
    if method.statistic is not None:
        _require_calibration(method, calibration, targets)
    misfits = [t for t in targets if not method.grid.fits(t.shape)]
    if misfits and layers.on_misfit is OnMisfit.error:
        raise ValueError(_explain_misfits(method, misfits))
    for target in targets:
        for name, matrix in target.matrices().items():
            if not matrix.is_meta:
                require_finite(name, matrix)
    steps, skipped = [], []
    for target in targets:
        if method.grid.fits(target.shape):
            steps.append(Step(target, method, {}))
        elif layers.on_misfit is OnMisfit.skip:
            skipped.append(target.name)
        else:
            steps.append(_shrink(method, target))
    steps = [_with_bits(step, bits[step.target.name]) if step.target.name in bits else step for step in steps]
    if not steps:
        raise ValueError(
            f"group_size={method.grid.group_size} fits none of the {len(skipped)} layers, so on_misfit=skip leaves nothing to compress"
        )
    return steps, tuple(skipped)


def _with_bits(step: Step, bits: int) -> Step:
    method = step.method.with_grid(replace(step.method.grid, bits=bits))
    return Step(step.target, method, step.notes | {f"{bits}_bits": 1.0})


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


def _explain_misfits(method: Quantizer, misfits: list[Target]) -> str:
    by_sizes: dict[str, list[Target]] = {}
    for target in misfits:
        sizes = [str(size) for size in method.grid.fitting_sizes(target.shape) if size <= 512]
        by_sizes.setdefault(", ".join(sizes) or "no size", []).append(target)
    parts = [f"{len(like)} like {like[0].name} ({like[0].shape[0]}×{like[0].shape[1]}) take {sizes}" for sizes, like in by_sizes.items()]
    summary = f"group_size={method.grid.group_size} does not divide {len(misfits)} layers: {'; '.join(parts)}"
    return f"{summary}. Choose another, or on_misfit=shrink|skip"


def _shrink(method: Quantizer, target: Target) -> Step:
    grid = method.grid.shrunk(target.shape)
    if grid is None:
        wanted = f"no group size from {SMALLEST_GROUP} to {method.grid.group_size}"
        raise ValueError(f"{wanted} divides {target.name} ({target.shape[0]}×{target.shape[1]}); use on_misfit=skip or layers.exclude")
    return Step(target, method.with_grid(grid), {"shrunk_group_size": float(grid.group_size)})


def require_finite(name: str, matrix: Tensor) -> None:
    """Raises `ValueError` naming the layer if a matrix has NaN or Inf."""
    if not torch.isfinite(matrix).all():
        raise ValueError(f"layer {name} has NaN or Inf in its weight; repair the checkpoint or add the layer to layers.exclude")
