"""Rounding of inputs to codes, with scales that are found from them or given.

The definition takes a pass over x for each step: extremes, division, rounding, clamping, bytes. The fast
version takes what shares a scale while it lies in cache.
"""

from torch import Tensor

from sinq.formats.activations import ActivationFormat, Per, QuantizedActivations
from sinq.kernels.dispatch import fast


def _scales_within_a_token(
    x: Tensor, format: ActivationFormat, scale: Tensor | None = None, zero: Tensor | None = None
) -> bool:
    return format.per is Per.token or scale is not None


@fast(cpu="sinq.kernels.cpu.activations:quantize", covers=_scales_within_a_token)
def quantize(
    x: Tensor, format: ActivationFormat, scale: Tensor | None = None, zero: Tensor | None = None
) -> QuantizedActivations:
    """Return x (..., in_features) with the nearest codes.

    Args:
        scale, zero: numbers of a static format; None to find them.
    """
    if scale is None or zero is None:
        scale, zero = format.scales(*format.extremes(x))
    return format.quantize(x, scale, zero)
