"""Relative error of each layer's output on held-out text: ‖X(W − Ŵ)ᵀ‖ / ‖XWᵀ‖ (Frobenius).

X are the inputs of the layer in the dense model. Perplexity says how good a model is; the layer errors say
where it is bad. The text is the evaluation text, which no calibration has seen, so they expose a method that
overfits its calibration tokens. The dense model runs once, and hooks add up squares: no activations are kept,
and one layer's dense weights are in memory at a time.

Not every compressed layer can be compared. A method may change the inputs of a layer together with its weight
(a rotation, a scale moved into the layer before); then Ŵ does not stand for W, and the error on dense inputs
has no meaning. The rule: a layer is compared if ‖W − Ŵ‖ / ‖W‖ with the dense model's W equals the error that
the method reported for the matrix it compressed. Fused experts are not compared either: their module chooses
the tokens of each expert. Layers left out are counted in the row, with the reason.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import isclose
from statistics import fmean, median
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from experiments.evaluation.base import TRIAL_TOKENS, Evaluation, EvaluationContext, Measurement, tried
from sinq import CompressedLinear, PartReport
from sinq.common.options import check, whole
from sinq.model.language_model import Predicts
from sinq.model.targets import Target, linear_places

TOLERANCE = 1e-4
"""Relative tolerance between a weight's error and the reported one: orders of sums and devices differ."""


@dataclass
class _Pair:
    """A dense layer, its compressed counterpart, and sums of squares of their outputs."""

    dense: Target
    compressed: CompressedLinear
    squares: Tensor = field(default_factory=lambda: torch.zeros(2, dtype=torch.float64))
    """Sums of squares of the difference, and of the dense output without its bias."""

    def see(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        """Add up the squares of one forward pass; a forward hook of the dense layer."""
        x = inputs[0].reshape(-1, inputs[0].shape[-1]).float()
        weight, approximation = _weights(self)
        bias = getattr(module, "bias", None)
        plain = output.float() if bias is None else output.float() - bias.float()
        self.squares += torch.stack([_squares(x @ (weight - approximation).T), _squares(plain)]).cpu()

    @property
    def error(self) -> float:
        return (self.squares[0] / self.squares[1]).sqrt().item()


@dataclass(frozen=True)
class LayerError(Evaluation):
    """Relative output error of every compressed linear layer."""

    name: ClassVar[str] = "layer_error"
    predicts: ClassVar[Predicts | None] = None

    windows: int | None = 1
    """Number of windows, from the start of the text; null for all."""
    seqlen: int = 512
    """Tokens of a window; at most the model's context."""

    def __post_init__(self) -> None:
        check(self, "evaluation.layer_error", windows=whole(1), seqlen=whole(1))

    def check(self, context: EvaluationContext) -> None:
        first = self._windows(context)[:1, :TRIAL_TOKENS].to(context.device)
        with tried(self.name, context), torch.inference_mode():
            context.loaded.model.base_model(input_ids=first, use_cache=False)

    def _windows(self, context: EvaluationContext) -> Tensor:
        return context.windows("evaluation.layer_error", self.seqlen, self.windows)

    @torch.inference_mode()
    def measure(self, context: EvaluationContext) -> Measurement:
        """Return the summary and the error of each layer; nothing for a dense model."""
        if context.is_dense:
            return Measurement({})
        chosen = self._windows(context)
        pairs, left_out = _pair(context)
        if pairs:
            with _hooks(list(pairs.values())):
                for window in context.progress(chosen, "layer errors", len(chosen)):
                    context.loaded.model.base_model(
                        input_ids=window[None].to(context.device), use_cache=False
                    )
        errors = {name: pair.error for name, pair in pairs.items() if pair.squares[1] > 0}
        left_out["output is zero"] += len(pairs) - len(errors)
        count, seqlen = chosen.shape
        metrics = _summary(errors, +left_out) | {"tokens": chosen.numel(), "windows": count, "seqlen": seqlen}
        return Measurement(metrics, {"relative_error": errors})


def _pair(context: EvaluationContext) -> tuple[dict[str, _Pair], "Counter[str]"]:
    """Return the layers that can be compared, and the number of others by reason."""
    dense_layers = {target.name: target for target in linear_places(context.loaded.model)}
    modules = dict(context.model.named_modules())
    pairs, left_out = {}, Counter[str]()
    for layer in context.report.parts:
        module, dense = modules.get(layer.name), dense_layers.get(layer.name)
        if not isinstance(module, CompressedLinear) or dense is None:
            left_out["not one linear layer"] += 1
        elif not _stands_for_the_dense_weight(pair := _Pair(dense, module), layer):
            left_out["weight transformed"] += 1
        else:
            pairs[layer.name] = pair
    return pairs, left_out


def _stands_for_the_dense_weight(pair: _Pair, layer: PartReport) -> bool:
    """Return whether the error against the dense weight equals the reported one."""
    weight, approximation = _weights(pair)
    if weight.shape != approximation.shape or layer.relative_error is None:
        return False
    error = torch.linalg.vector_norm(weight - approximation).item()
    norm = torch.linalg.vector_norm(weight).item()
    return isclose(error, layer.relative_error * norm, rel_tol=TOLERANCE, abs_tol=1e-6 * norm)


def _weights(pair: _Pair) -> tuple[Tensor, Tensor]:
    """Return W and Ŵ, float32 (out, in)."""
    (weight,) = pair.dense.matrices().values()
    return weight.float(), pair.compressed.weight.value.dequantize(torch.float32)


@contextmanager
def _hooks(pairs: list[_Pair]) -> Iterator[None]:
    handles = [pair.dense.module.register_forward_hook(pair.see) for pair in pairs]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _squares(x: Tensor) -> Tensor:
    return x.double().square().sum()


def _summary(errors: dict[str, float], left_out: "Counter[str]") -> dict[str, Any]:
    metrics: dict[str, Any] = {"layers": len(errors), "not_comparable": dict(left_out)}
    if errors:
        worst = max(errors, key=errors.__getitem__)
        metrics |= {
            "mean": fmean(errors.values()),
            "median": median(errors.values()),
            "max": errors[worst],
            "worst": worst,
        }
    return metrics
