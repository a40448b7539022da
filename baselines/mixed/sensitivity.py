"""How much a model suffers when one of its layers is rounded: measured, not guessed.

A layer's damage is the Kullback-Leibler divergence of the model's next-token distribution from the dense model's when that one layer
is rounded and all others are dense: a mean over a few tokens, in nats. No labels are needed, and it sees what no error of a
weight does: whether anything downstream cares.

All layers are measured in one walk through the blocks. Beside the dense hidden states go those of every *variant* (one layer, rounded
to one width); variants are born at their block, from the dense states before it, so no block in front of the changed one runs again.
On the device are one block and the hidden states of all variants: layers · tokens · hidden size numbers.

Only some widths (`probes`) are run. Damage is proportional to the squared error of the weight while it is small, so the one factor between
them says all there is to know of a layer, and each probe gives an estimate of it (`predict`). Probes differ by chance, and by that of the
rounding more than that of the text: on SmolLM2-135M two of them disagree by a factor of 1.35 (one standard deviation), on the same
text or another, where layers differ by 2.2. Hence the mean over several, and some shrinkage: the cheapest way to a bad allocation is to
take bits from the layers that were lucky.
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
from sinq.methods.plan import LayerPlan, Quantizer
from sinq.model.blocks import find_blocks
from sinq.model.targets import Target
from sinq.model.walk import outside_blocks, walk

T = TypeVar("T")
Floats = NDArray[np.float64]
Variant = tuple[str, int]
"""The name of the one target that is rounded, and its bits."""


SMALLEST = 1e-12
"""A damage (nats per token) not to be told from 0."""


@dataclass(frozen=True)
class Price:
    """What a target costs at every width; keys are bits."""

    nbytes: dict[int, int]
    squared_error: dict[int, float]
    """‖W − Ŵ‖², Frobenius, over all matrices of the target."""


def predict(
    squared_error: Floats, at_probes: Floats, measured: Floats, weights: Floats, shrinkage: float
) -> Floats:
    """Damage of every layer at every width, (layers, widths), in nats per token.

    A layer's factor between squared error and damage is the geometric mean over the probes; then the logarithm of the damage per weight is
    drawn towards its median over layers.

    Args:
        squared_error: (layers, widths).
        at_probes: (layers, probes), the squared error at the widths measured.
        measured: (layers, probes), the damage there, in nats per token.
        weights: (layers,), how many.
        shrinkage: 0 takes the measurements as they are; with 1 all layers are alike.
    """
    errors = np.where(at_probes > 0, at_probes, 1.0)
    factor = np.exp(np.log(np.maximum(measured, SMALLEST) / errors).mean(1))
    per_weight = factor * np.exp(np.log(errors).mean(1)) / weights
    shrunk = factor * (np.median(per_weight) / per_weight) ** shrinkage
    return shrunk[:, None] * squared_error


def price(step: LayerPlan, widths: Sequence[int], place: torch.device) -> Price:
    """Bytes and errors of a target, rounded to every width; bytes are those of the step's method, errors those of its proxy."""
    matrices = [matrix.to(place).float() for matrix in step.target.matrices().values()]
    rounded = round_target(step, widths, place)
    errors = {
        bits: sum(
            (matrix - value.dequantize()).square().sum().item()
            for matrix, value in zip(matrices, values, strict=True)
        )
        for bits, values in rounded.items()
    }
    return Price({bits: sum(value.nbytes for value in values) for bits, values in rounded.items()}, errors)


def extra_bytes(method: Quantizer, weight: Tensor) -> int:
    """Bytes a method that needs statistics stores beyond its proxy, for a matrix like this (out, in) at any width.

    What it stores hangs on the shape, so statistics of noise will do.
    """
    if method.statistic is None:
        return 0
    statistic = method.statistic.of_noise((weight.shape[0], weight.shape[1]), weight.device)
    (found,), (stand_in,) = (
        method.quantize_together([weight], statistic),
        proxy(method).quantize_together([weight], None),
    )
    return found.nbytes - stand_in.nbytes


def proxy(method: Quantizer) -> LayerMethod:
    """What stands in for a method where a layer is rounded alone: itself, or SINQ on its grid if it needs statistics."""
    if isinstance(method, LayerMethod) and method.statistic is None:
        return method
    assert isinstance(method.format, Grid)  # `Mixed` takes no others
    return SINQ(method.format)


def round_target(
    step: LayerPlan, widths: Iterable[int], place: torch.device
) -> dict[int, list[CompressedWeight]]:
    """A target's matrices at every width, by the proxy of the step's method. What does not depend on the width is done once."""
    method = proxy(step.method)
    at = {bits: method.with_grid(replace(method.grid, bits=bits)) for bits in widths}
    weights = [matrix.to(place, torch.float32).contiguous() for matrix in step.target.matrices().values()]
    if isinstance(method, ScalarMethod):
        normalized = [method.normalize(weight) for weight in weights]
        return {bits: [scalar.round(each) for each in normalized] for bits, scalar in at.items()}  # type: ignore[attr-defined]
    return {bits: other.quantize_together(weights, None) for bits, other in at.items()}


@torch.no_grad()
def damages(
    model: nn.Module,
    steps: Sequence[LayerPlan],
    probes: Sequence[int],
    tokens: Tensor,
    context: Context,
) -> dict[Variant, float]:
    """Return the damage of every variant, in nats per token.

    Parameters of the model are swapped and put back, never written to.

    Args:
        probes: widths to round to, in bits.
        tokens: ids (windows, seqlen).
    """
    blocks, device = find_blocks(model), context.device_for(model)
    variants: dict[Variant, list[Tensor]] = {}
    walked = walk(model, tokens, context, steps)
    for block in context.progress(walked, "measuring sensitivity", len(blocks)):
        inputs = [states.to(device) for states in block.inputs]
        variants = {variant: _through(block.run, states) for variant, states in variants.items()}
        variants |= _with_each(block.steps, probes, device, partial(_through, block.run, inputs))
        dense = block.advance()
    reference = [_log_probabilities(_tail(model, blocks, *pair)) for pair in zip(tokens, dense, strict=True)]
    found = {}
    for variant, states in context.progress(variants.items(), "comparing distributions", len(variants)):
        found[variant] = _divergence(
            reference, (_tail(model, blocks, *pair) for pair in zip(tokens, states, strict=True))
        )
    alone = outside_blocks(model, steps)
    return found | _with_each(
        alone, probes, device, lambda: _divergence(reference, (_logits(model, window) for window in tokens))
    )


def _with_each(
    steps: Iterable[LayerPlan], probes: Sequence[int], place: torch.device, run: Callable[[], T]
) -> dict[Variant, T]:
    """What `run` gives while one target is rounded, for every variant."""
    results = {}
    for step in steps:
        for bits, values in round_target(step, probes, place).items():
            with swapped(step.target, values):
                results[step.target.name, bits] = run()
    return results


def _through(run: Callable[[Tensor], Tensor], windows: Sequence[Tensor]) -> list[Tensor]:
    return [run(states) for states in windows]


@contextmanager
def swapped(target: Target, values: Sequence[CompressedWeight]) -> Iterator[None]:
    """A target with other values for its matrices, for a while, in a parameter of its own."""
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
    """Logits of the model if its last block gave `states`: its blocks are made to do so, and the rest is the model's own."""
    home = states.to(next(model.parameters()).device)
    with ExitStack() as stack:
        for block in blocks:
            block.forward = lambda *_, **__: home
            stack.callback(delattr, block, "forward")
        return _logits(model, window)


def _logits(model: nn.Module, window: Tensor) -> Tensor:
    """(seqlen, vocabulary) of one window of ids, (seqlen,)."""
    return model(window[None].to(next(model.parameters()).device), use_cache=False).logits[0]


def _log_probabilities(logits: Tensor) -> Tensor:
    return logits.float().log_softmax(-1)


def _divergence(reference: Sequence[Tensor], logits: Iterable[Tensor]) -> float:
    """KL(dense ‖ variant), the mean over all tokens.

    As Σ p (q/p − 1 − log(q/p)): the same sum, since p and q both sum to 1, but none of its terms is negative, so that small
    divergences do not drown in the rounding of large terms that cancel.
    """
    total = 0.0
    for known, found in zip(reference, logits, strict=True):
        excess = _log_probabilities(found) - known
        total += (known.exp() * (excess.expm1() - excess)).sum().item()
    return total / sum(len(known) for known in reference)
