"""Sensitivity of a model to the rounding of one of its layers: measured, not guessed.

A layer's sensitivity is the Kullback-Leibler divergence of the model's next-token distribution from the dense
model's when that one layer is rounded and all others are dense: a mean over a few tokens, in nats. It needs
no labels. Unlike any error of a weight, it shows the effect on everything downstream.

All layers are measured in one walk through the blocks. The walk carries the dense hidden states and those of
every *variant* (one layer, rounded to one bit-width). A variant starts at its block, from the dense states
before the block, so no block in front of the changed layer runs again. On the device are one block and the
hidden states of all variants: layers · tokens · hidden size numbers.

Only some bit-widths (`probes`) are run. Sensitivity is proportional to the squared error of the weight while
it is small, so one factor between them describes a layer, and each probe gives an estimate of that factor
(`predict`). Probes differ by chance, more by that of the rounding than by that of the text: on SmolLM2-135M
two probes disagree by a factor of 1.35 (one standard deviation), on the same text or another, where layers
differ by 2.2. Hence the mean over several, and some shrinkage: the easiest way to a bad allocation is to take
bits from the layers whose probes were small by chance.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sinq import SINQ, CompressedWeight, Context, LayerMethod, ScalarMethod
from sinq.formats.grid import Grid
from sinq.methods.plan import LayerPlan, Quantizer, naming
from sinq.model.blocks import find_blocks
from sinq.model.targets import Target
from sinq.model.walk import outside_blocks, walk

T = TypeVar("T")
Floats = NDArray[np.float64]
Variant = tuple[str, int]
"""The name of the one target that is rounded, and its bits."""


SMALLEST = 1e-12
"""Sensitivity (nats per token) indistinguishable from 0."""


@dataclass(frozen=True)
class Cost:
    """Bytes and errors of a target at every bit-width; keys are bits."""

    nbytes: dict[int, int]
    squared_error: dict[int, float]
    """‖W − Ŵ‖², Frobenius, over all matrices of the target."""


def predict(
    squared_error: Floats, at_probes: Floats, measured: Floats, weights: Floats, shrinkage: float
) -> Floats:
    """Predict the sensitivity of every layer at every bit-width, (layers, bit-widths), in nats per token.

    A layer's factor between squared error and sensitivity is the geometric mean over the probes. Then the
    logarithm of the sensitivity per weight is shrunk towards its median over layers.

    Args:
        squared_error: (layers, bit-widths).
        at_probes: (layers, probes), the squared error at the bit-widths measured.
        measured: (layers, probes), the sensitivity there, in nats per token.
        weights: (layers,), the number of weights.
        shrinkage: 0 takes the measurements as exact; with 1 all layers are alike.
    """
    errors = np.where(at_probes > 0, at_probes, 1.0)
    factor = np.exp(np.log(np.maximum(measured, SMALLEST) / errors).mean(1))
    per_weight = factor * np.exp(np.log(errors).mean(1)) / weights
    shrunk = factor * (np.median(per_weight) / per_weight) ** shrinkage
    return shrunk[:, None] * squared_error


def cost(layer: LayerPlan, bit_widths: Sequence[int], device: torch.device) -> Cost:
    """Return the bytes and errors of a target, rounded to every bit-width by the surrogate of its method.

    `extra_bytes` adds the bytes that the method stores beyond the surrogate's.
    """
    matrices = [matrix.to(device).float() for matrix in layer.target.matrices().values()]
    rounded = round_target(layer, bit_widths, device)
    errors = {
        bits: sum(
            (matrix - value.dequantize()).square().sum().item()
            for matrix, value in zip(matrices, values, strict=True)
        )
        for bits, values in rounded.items()
    }
    return Cost({bits: sum(value.nbytes for value in values) for bits, values in rounded.items()}, errors)


def extra_bytes(method: Quantizer, weight: Tensor) -> int:
    """Return the bytes a method stores beyond its surrogate, for a matrix (out, in) at any bit-width.

    The bytes depend on the shape only, so statistics of noise are enough.
    """
    if method.statistic is None:
        return 0
    statistic = method.statistic.of_noise((weight.shape[0], weight.shape[1]), weight.device)
    (found,) = method.quantize_together([weight], statistic)
    (substitute,) = surrogate(method).quantize_together([weight], None)
    return found.nbytes - substitute.nbytes


def surrogate(method: Quantizer) -> LayerMethod:
    """Return the method that rounds a layer alone: `method`, or SINQ on its grid if it needs statistics."""
    if isinstance(method, LayerMethod) and method.statistic is None:
        return method
    assert isinstance(method.format, Grid)  # `Mixed` takes no others
    return SINQ(method.format)


def round_target(
    layer: LayerPlan, bit_widths: Iterable[int], device: torch.device
) -> dict[int, list[CompressedWeight]]:
    """Round a target's matrices to every bit-width, by the surrogate of its method.

    Work that does not depend on the bit-width is done once.

    Raises:
        ValueError: naming the target, if its weights cannot be stored.
    """
    with naming([layer.target.name]):
        return _round_target(layer, bit_widths, device)


def _round_target(
    layer: LayerPlan, bit_widths: Iterable[int], device: torch.device
) -> dict[int, list[CompressedWeight]]:
    method = surrogate(layer.method)
    methods = {bits: method.with_grid(replace(method.grid, bits=bits)) for bits in bit_widths}
    weights = [matrix.to(device, torch.float32).contiguous() for matrix in layer.target.matrices().values()]
    if isinstance(method, ScalarMethod):
        normalized = [method.normalize(weight) for weight in weights]
        return {bits: [scalar.round(each) for each in normalized] for bits, scalar in methods.items()}  # type: ignore[attr-defined]
    return {bits: other.quantize_together(weights, None) for bits, other in methods.items()}


@torch.no_grad()
def sensitivities(
    model: nn.Module,
    plans: Sequence[LayerPlan],
    probes: Sequence[int],
    tokens: Tensor,
    context: Context,
) -> dict[Variant, float]:
    """Return the sensitivity to every variant, in nats per token.

    Parameters of the model are swapped and put back, never written to.

    Args:
        model: the dense model.
        plans: the layers to round.
        probes: bit-widths to round to.
        tokens: ids (windows, seqlen).
        context: device and progress.
    """
    blocks, device = find_blocks(model), context.device_for(model)
    variants: dict[Variant, list[Tensor]] = {}
    walked = walk(model, tokens, context, plans)
    for block in context.progress(walked, "measuring sensitivity", len(blocks)):
        inputs = [states.to(device) for states in block.inputs]
        variants = {variant: _through(block.run, states) for variant, states in variants.items()}
        variants |= _with_each(block.steps, probes, device, partial(_through, block.run, inputs))
        dense = block.advance()
    reference = [_log_probabilities(_tail(model, blocks, *pair)) for pair in zip(tokens, dense, strict=True)]
    divergences = {}
    for variant, states in context.progress(variants.items(), "comparing distributions", len(variants)):
        tails = (_tail(model, blocks, *pair) for pair in zip(tokens, states, strict=True))
        divergences[variant] = _divergence(reference, tails)

    def whole_model() -> float:
        return _divergence(reference, (_logits(model, window) for window in tokens))

    return divergences | _with_each(outside_blocks(model, plans), probes, device, whole_model)


def _with_each(
    plans: Iterable[LayerPlan], probes: Sequence[int], device: torch.device, run: Callable[[], T]
) -> dict[Variant, T]:
    """Return the result of `run` while one target is rounded, for every variant."""
    results = {}
    for layer in plans:
        for bits, values in round_target(layer, probes, device).items():
            with swapped(layer.target, values):
                results[layer.target.name, bits] = run()
    return results


def _through(run: Callable[[Tensor], Tensor], windows: Sequence[Tensor]) -> list[Tensor]:
    return [run(states) for states in windows]


@contextmanager
def swapped(target: Target, values: Sequence[CompressedWeight]) -> Iterator[None]:
    """Give a target other values for its matrices, in a new parameter, until the context ends."""
    key = target.parameter or "weight"
    dense: nn.Parameter = getattr(target.module, key)
    setattr(target.module, key, nn.Parameter(dense.detach().clone(), requires_grad=False))
    try:
        for matrix, value in zip(target.matrices().values(), values, strict=True):
            matrix.copy_(value.dequantize())
        yield
    finally:
        setattr(target.module, key, dense)


def _tail(model: nn.Module, blocks: nn.ModuleList, window: Tensor, states: Tensor) -> Tensor:
    """Return the model's logits for hidden states after the last block; every block returns these."""
    outputs = states.to(next(model.parameters()).device)
    with ExitStack() as stack:
        for block in blocks:
            block.forward = lambda *_, **__: outputs
            stack.callback(delattr, block, "forward")
        return _logits(model, window)


def _logits(model: nn.Module, window: Tensor) -> Tensor:
    """Return the logits, (seqlen, vocabulary), of one window of ids, (seqlen,)."""
    return model(window[None].to(next(model.parameters()).device), use_cache=False).logits[0]


def _log_probabilities(logits: Tensor) -> Tensor:
    return logits.float().log_softmax(-1)


def _divergence(reference: Sequence[Tensor], logits: Iterable[Tensor]) -> float:
    """Return KL(dense ‖ variant), the mean over all tokens.

    It is computed as Σ p (q/p − 1 − log(q/p)): the same sum, since p and q both sum to 1, but without
    negative terms, so that small divergences do not drown in the rounding of large terms that cancel.
    """
    total = 0.0
    for known, found in zip(reference, logits, strict=True):
        excess = _log_probabilities(found) - known
        total += (known.exp() * (excess.expm1() - excess)).sum().item()
    return total / sum(len(known) for known in reference)
