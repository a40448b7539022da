"""Scaling of prefill with the length of the text: time and peak memory, their exponents, and the crossover.

Texts of several lengths are read in one pass, by the dense model and by the compressed one in turn. The
shortest warms up; a first pass at each length measures the increase of memory; the rounds after it are timed.
The power law y = c T^e is fitted to the medians by least squares in logarithms, with Student's interval:

    e ± t_{n−2} √( Σ residuals² / ((n − 2) Σ (ln T − mean)²) )

A transformer is no power law: linear layers grow with T, attention with T². So the e of time lies between 1
and 2, its interval is as wide as the curve is bent, and `last_exponent`, between the two longest lengths,
says where it is going. Short texts tell of the linear layers, not of attention.

The crossover is the length from which the compressed model stays at or below the dense one, interpolated in
logarithms between two measured lengths. There is no extrapolation: where they do not cross, the row says
which of them is below. On a CPU, memory is the process's resident set, whose steps blur what short texts
take.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import exp, log, sqrt
from statistics import fmean, median
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from experiments.common.intervals import t_quantile
from experiments.common.meters import peak_memory, seconds
from experiments.data.text import windows
from experiments.evaluation.base import TRIAL_TOKENS, Evaluation, EvaluationContext, Measurement, tried
from experiments.evaluation.generation import prefill
from sinq.common.options import check, several, whole

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FEWEST_LENGTHS = 3
"""Lengths without which a fit has no residual."""
Curve = dict[int, float]
"""Value by length in tokens."""


@dataclass(frozen=True)
class Scaling(Evaluation):
    """Growth of prefill's time and memory with the length of the text."""

    name: ClassVar[str] = "scaling"

    lengths: tuple[int, ...] = (512, 1024, 2048, 4096, 8192)
    """Tokens of the texts, ascending; at most the model's context."""
    rounds: int = 3
    """Number of timed rounds."""

    def __post_init__(self) -> None:
        check(self, "evaluation.scaling", lengths=several(whole(1), FEWEST_LENGTHS), rounds=whole(1))
        object.__setattr__(self, "lengths", tuple(self.lengths))
        if any(a >= b for a, b in pairwise(self.lengths)):
            raise ValueError(
                f"evaluation.scaling.lengths={list(self.lengths)} is not possible; lengths must ascend"
            )

    def check(self, context: EvaluationContext) -> None:
        if self.lengths[-1] > context.loaded.context:
            raise ValueError(
                f"evaluation.scaling.lengths={list(self.lengths)} do not fit the model's context of"
                f" {context.loaded.context}; leave out the longer ones"
            )
        prompt = self._prompt(context, self.lengths[-1])[:, :TRIAL_TOKENS]
        with tried(self.name, context):
            prefill(context.loaded.model, prompt)

    def _prompt(self, context: EvaluationContext, length: int) -> Tensor:
        return windows(context.tokens, length, 1).to(context.device)

    def measure(self, context: EvaluationContext) -> Measurement:
        """Return exponents of time and memory, and crossovers; samples by length as text."""
        models = {"dense": context.loaded.model}
        if not context.is_dense:
            models["compressed"] = context.model
        prompts = {length: self._prompt(context, length) for length in self.lengths}
        memory: dict[str, Curve] = {name: {} for name in models}
        times: dict[str, dict[int, list[float]]] = {
            name: {length: [] for length in self.lengths} for name in models
        }
        for model in models.values():  # kernels are compiled here, not within the first peak
            prefill(model, prompts[self.lengths[0]])
        for number in context.progress(range(self.rounds + 1), "scaling", self.rounds + 1):
            for length, prompt in prompts.items():
                for name, model in models.items():
                    if number == 0:
                        memory[name][length], source = _increase(model, prompt, context.device)
                    else:
                        times[name][length].append(_seconds(model, prompt, context.device))
        medians = {name: {length: median(found[length]) for length in found} for name, found in times.items()}
        metrics = {"prefill": _summary(medians), "memory": _summary(memory) | {"source": source}}
        samples = {"seconds": _as_text(times), "increase_bytes": _as_text(memory)}
        return Measurement(metrics | {"lengths": list(self.lengths), "rounds": self.rounds}, samples)


def _increase(model: "PreTrainedModel", prompt: Tensor, device: torch.device) -> tuple[float, str]:
    with peak_memory(device) as peak:
        prefill(model, prompt)
    return float(peak.increase_bytes), peak.source


def _seconds(model: "PreTrainedModel", prompt: Tensor, device: torch.device) -> float:
    return seconds(lambda: prefill(model, prompt), device)


def _as_text(curves: dict[str, dict[int, Any]]) -> dict[str, dict[str, Any]]:
    return {name: {str(length): value for length, value in curve.items()} for name, curve in curves.items()}


def _summary(curves: dict[str, Curve]) -> dict[str, Any]:
    """Return the exponents of one quantity, those of the dense model as `dense_…`, and the crossover."""
    metrics: dict[str, Any] = {}
    for name, curve in curves.items():
        before = "dense_" if name == "dense" else ""
        metrics |= {f"{before}{key}": value for key, value in exponents(curve).items()}
    if "compressed" in curves:
        metrics |= crossover(curves["compressed"], curves["dense"])
    return metrics


def exponents(curve: Curve) -> dict[str, float]:
    """Return the fitted exponent with its 95 % interval, and that between the two longest lengths.

    Values of 0, such as an increase of memory too small to be seen, have no logarithm and are left out; empty
    if fewer than `FEWEST_LENGTHS` are left.
    """
    points = [(log(length), log(value)) for length, value in curve.items() if value > 0]
    if len(points) < FEWEST_LENGTHS:
        return {}
    slope, half = fitted(points)
    (x, y), (last_x, last_y) = points[-2:]
    return {
        "exponent": slope,
        "exponent_low": slope - half,
        "exponent_high": slope + half,
        "last_exponent": (last_y - y) / (last_x - x),
    }


def fitted(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Return the least-squares slope through points, and the half width of its 95 % interval."""
    mean_x, mean_y = (fmean(side) for side in zip(*points, strict=True))
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    slope = sum((x - mean_x) * (y - mean_y) for x, y in points) / spread
    squares = sum((y - mean_y - slope * (x - mean_x)) ** 2 for x, y in points)
    degrees = len(points) - 2
    return slope, t_quantile(degrees) * sqrt(squares / (degrees * spread))


def crossover(curve: Curve, dense: Curve) -> dict[str, Any]:
    """Return the length from which a curve stays at or below the dense one's, and in words where it is below.

    The length is left out where the curves do not cross, or end with the dense one below.
    """
    above = [length for length in curve if curve[length] > dense[length]]
    lengths = list(curve)
    if not above:
        return {"below_dense": "at every length"}
    if above[-1] == lengths[-1]:
        return {"below_dense": "at no length" if len(above) == len(lengths) else "not at the longest length"}
    a, b = above[-1], lengths[lengths.index(above[-1]) + 1]
    if curve[b] <= 0 or dense[a] <= 0:
        return {"below_dense": f"from {b} tokens"}
    gap_a, gap_b = log(curve[a] / dense[a]), log(curve[b] / dense[b])
    share = gap_a / (gap_a - gap_b)
    tokens = exp(log(a) + share * (log(b) - log(a)))
    return {"below_dense": f"from {b} tokens", "crossover_tokens": tokens}
