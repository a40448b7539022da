"""Rounding that can be trained through: the gradient passes `round` as if it were not there.

All else is differentiated as it is: the ends of a range move its scale, and what is cut moves nothing.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

from sinq import ActivationFormat


def round_through(x: Tensor) -> Tensor:
    """Return x rounded to whole numbers, with the gradient of x."""
    return x + (x.round() - x).detach()


def rounded_inputs(x: Tensor, format: ActivationFormat) -> Tensor:
    """Return inputs of a layer (..., in_features) after rounding, in their dtype; scales are dynamic.

    The values are those of `ActivationQuantizer`, whose gradient ignores that a scale follows its inputs.
    """
    wide = x.float()
    scale, zero = format.scales(*format.extremes(wide))
    half = 2 ** (format.bits - 1)
    codes = round_through(format.grouped(wide) / scale + zero).clamp(-half, half - 1)
    return ((codes - zero) * scale).reshape(x.shape).to(x.dtype)


@contextmanager
def rounding_inputs(modules: Sequence[nn.Module], format: ActivationFormat | None) -> Iterator[None]:
    """Round what goes into some modules within the context; None rounds nothing."""
    with ExitStack() as stack:
        for module in modules:
            if format is None:
                continue
            hook = partial(_rounded_arguments, format)
            stack.callback(module.register_forward_pre_hook(hook).remove)
        yield


def _rounded_arguments(format: ActivationFormat, _: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return rounded_inputs(args[0], format), *args[1:]
