"""Refusal of metrics that are not finite: NaN is no measurement, and an infinite perplexity no number.

Such a metric makes the run fail, with the reason in its row: a finished row is a measurement.
"""

from collections.abc import Iterator, Mapping
from math import isfinite
from typing import Any

import torch

from experiments.evaluation import EvaluationContext


class NotFiniteError(ValueError):
    """A metric is NaN or infinite; the message names it, the model and what to try."""


def check(evaluation: str, metrics: Mapping[str, Any], context: EvaluationContext) -> None:
    """Raise `NotFiniteError` if a metric is not finite.

    Args:
        evaluation: the name of the evaluation, for the message.
        metrics: numbers and facts, nested.
        context: the model that was measured.
    """
    wrong = [f"{name} is {value}" for name, value in _numbers(metrics) if not isfinite(value)]
    if wrong:
        model = "dense model" if context.is_dense else "compressed model"
        nll = metrics.get("nll")
        known = f" (nll is {nll:.4g})" if isinstance(nll, float) and isfinite(nll) else ""
        raise NotFiniteError(
            f"{evaluation} of the {model}: {', '.join(wrong[:3])}{known}; {_advice(context)}"
        )


def _advice(context: EvaluationContext) -> str:
    if context.loaded.model.dtype == torch.float16:
        return "float16 ends at 65504, which activations may pass: try model.dtype=bfloat16 or float32"
    if context.is_dense:
        return "the model's weights or activations are out of range: check the checkpoint"
    return "try more bits, or a smaller group_size; python -m experiments.results lists failed runs"


def _numbers(metrics: Any, path: str = "") -> Iterator[tuple[str, float]]:
    if isinstance(metrics, Mapping):
        for key, value in metrics.items():
            yield from _numbers(value, f"{path}.{key}" if path else str(key))
    elif isinstance(metrics, float):
        yield path, metrics
