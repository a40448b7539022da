"""Mixed precision: more bits for the layers that need them, fewer for the others, at a given size.

    measure      the sensitivity of the model to rounding one layer alone, and the bytes of every layer at
                 every bit-width (`sensitivity.py`)
    allocate     the bit-widths with the least predicted sensitivity within the budget (`knapsack.py`)
    compress     every layer with its bits, by any layer method

The procedure is that of HAWQ-V2 (arXiv 1911.03852) with another measure: not a trace of curvatures but the
divergence of the model's next-token distribution. The budget counts real bytes, scales and zeros included.

Assumption: sensitivities add over layers. On SmolLM2-135M the divergence of the whole model is within 8 % of
the sum at 4.5 bits per weight; at 3.5, where layers begin to make each other worse, a mixed model is up to
20 % above it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from baselines.mixed.knapsack import Budget, allocate, check_range
from baselines.mixed.sensitivity import cost, extra_bytes, predict, sensitivities
from sinq import Calibration, CompressionReport, Context, LayerMethod, Method, NotApplicable
from sinq.common.errors import PASS_CALIBRATION
from sinq.common.options import check, number, one_of, several, whole
from sinq.common.timing import timed
from sinq.formats.grid import BITS, Grid
from sinq.methods.plan import LayerPlan, naming


@dataclass(frozen=True)
class Mixed(Method):
    """Bits per layer within a budget of bytes, from measured sensitivities, around any layer method.

    The bits of `inner` are replaced in every layer.

    Raises:
        ValueError: an option is out of its range, or the grid's levels lack one of the bit-widths.
    """

    name: ClassVar[str] = "mixed"
    sets_options: ClassVar[frozenset[str]] = frozenset({"bits"})

    inner: LayerMethod
    budget: Budget = field(default_factory=Budget)
    bits: tuple[int, ...] = BITS
    """Bit-widths to choose from."""
    probes: tuple[int, ...] = (2, 3, 4)
    """Bit-widths at which sensitivity is measured (one pass each) to predict it at all bit-widths."""
    tokens: int = 128
    """Calibration tokens on which sensitivity is measured: the first tokens of the first windows."""
    shrinkage: float = 0.3
    """Share of the way from a layer's sensitivity per weight to the median, in logarithms.

    0 takes the measurements as exact, 1 makes all layers alike.
    """

    def __post_init__(self) -> None:
        widths = several(one_of(*BITS))
        check(self, bits=widths, probes=widths, tokens=whole(1), shrinkage=number(least=0, most=1))
        inner = type(self.inner).__name__
        if not isinstance(self.inner, LayerMethod):
            raise ValueError(
                f"inner={inner} is not possible; it must be a method that works one layer at a time"
            )
        if not isinstance(self.inner.format, Grid):
            raise ValueError(
                f"inner={inner} is not possible; it must be a method whose grid can have other bits"
            )
        usual = 4 if 4 in self.bits else self.bits[0]  # one value: the bits of `inner` decide nothing
        object.__setattr__(self, "inner", self.inner.with_grid(replace(self.inner.grid, bits=usual)))
        for bits in (*self.bits, *self.probes):  # a grid refuses bits that its levels do not have
            self.inner.with_grid(replace(self.inner.grid, bits=bits))

    @property
    def needs_calibration(self) -> bool:
        return True

    def compress(
        self,
        model: nn.Module,
        calibration: Calibration | None = None,
        context: Context = Context(),
    ) -> CompressionReport:
        self.check_given(model, calibration)
        if calibration is None:
            raise NotApplicable(
                "Mixed needs calibration text, to measure what each layer's rounding does;"
                f" {PASS_CALIBRATION}"
            )
        plan = self.inner.plan(model, calibration, context)
        self.check_running(model, calibration)
        with timed(context.device_for(model)) as clock:
            chosen = self.choose(model, plan.steps, calibration, context)
        report = self.inner.carry_out(plan.with_bits(chosen), model, calibration, context)
        seconds = report.seconds_statistics + clock.seconds
        return replace(report, seconds_statistics=seconds, method=f"Mixed({self.inner.label})")

    def choose(
        self,
        model: nn.Module,
        plans: Sequence[LayerPlan],
        calibration: Calibration,
        context: Context,
    ) -> dict[str, int]:
        """Return the bits of every target, by name.

        Raises:
            NotApplicable: the budget is outside the range of the bit-widths.
        """
        device = context.device_for(model)
        bit_widths, probes = sorted(set(self.bits)), sorted(set(self.probes))
        costs = [
            cost(layer, sorted({*bit_widths, *probes}), device)
            for layer in context.progress(plans, "pricing layers", len(plans))
        ]
        nbytes = np.array([[layer_cost.nbytes[bits] for bits in bit_widths] for layer_cost in costs])
        nbytes = nbytes + _extra_bytes(plans, device)[:, None]
        weights = np.array([layer.target.numel for layer in plans])
        check_range(self.budget, nbytes, int(weights.sum()))
        measured = sensitivities(model, plans, probes, _first(calibration.tokens, self.tokens), context)
        predicted = predict(
            np.array([[layer_cost.squared_error[bits] for bits in bit_widths] for layer_cost in costs]),
            np.array([[layer_cost.squared_error[bits] for bits in probes] for layer_cost in costs]),
            np.array([[measured[layer.target.name, bits] for bits in probes] for layer in plans]),
            weights,
            self.shrinkage,
        )
        chosen = allocate(nbytes, predicted, self.budget.nbytes(int(weights.sum())))
        return {layer.target.name: bit_widths[index] for layer, index in zip(plans, chosen, strict=True)}


def _first(windows: Tensor, tokens: int) -> Tensor:
    """Return the beginnings of the first windows, as few as have so many tokens together, or of all."""
    count = -(-tokens // windows.shape[1])
    return windows[:count, :tokens]


def _extra_bytes(plans: Sequence[LayerPlan], device: torch.device) -> np.ndarray:
    """Return the bytes of each target beyond its surrogate's, (targets,).

    They are measured on the first matrix of each shape and grid.
    """
    known: dict[object, int] = {}
    extra = []
    for layer in plans:
        matrices = list(layer.target.matrices().values())
        kind = (layer.target.shape, layer.method.format)
        if kind not in known:
            with naming([layer.target.name]):
                known[kind] = extra_bytes(layer.method, matrices[0].to(device, torch.float32).contiguous())
        extra.append(len(matrices) * known[kind])
    return np.array(extra)
