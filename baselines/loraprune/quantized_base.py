"""A quantized base for the training: the frozen weights of a copy of the model, compressed by another method.

The adapters are trained on what the quantized weights say, and merged with these: the weights of the result
are Ŵ + s·B·A, dense. So the base is a way to train (the paper's 8-bit base), and `then` decides what is
stored. The dense model stays in memory beside the copy, so memory is saved only where gradients and
activations are; the row has the peak.
"""

from collections.abc import Sequence
from dataclasses import replace

from torch import nn

from sinq import Calibration, CompressionReport, Context, LayerMethod
from sinq.model.sharing import sparing_clone
from sinq.model.targets import HEAD, linear_places


def quantized_base(
    model: nn.Module,
    layers: Sequence[str],
    method: LayerMethod,
    calibration: Calibration | None,
    context: Context,
) -> tuple[nn.Module, CompressionReport]:
    """Return a copy of a model with compressed layers, which shares all other tensors, and the report.

    Args:
        layers: names of the layers to compress; others stay dense, whatever `context` says.
        calibration: text, for methods that need it.

    Raises:
        ValueError: a layer does not fit the method.
    """
    clone, wanted = sparing_clone(model), set(layers)
    others = tuple(each.name for each in linear_places(model) if each.name not in wanted)
    chosen = replace(context.layers, exclude=(HEAD, *others))
    report = method.compress(clone, calibration, replace(context, layers=chosen, states=None))
    return clone, report


def bits_per_weight(report: CompressionReport) -> float:
    """Return the mean number of bits that a weight of the base takes."""
    return 8 * sum(part.nbytes for part in report.parts) / sum(part.parameters for part in report.parts)
