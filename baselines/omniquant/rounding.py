"""Rounding of what goes into a block's layers while it is trained, as will be done once it is stored."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from torch import nn

from sinq.model.layer_inputs import LayerInputs


@contextmanager
def rounding_inputs(inputs: Mapping[nn.Module, LayerInputs]) -> Iterator[None]:
    """Round what goes into some modules within the context, so that gradients pass."""
    with ExitStack() as stack:
        for module, rounding in inputs.items():
            hook = partial(_rounded_arguments, rounding)
            stack.callback(module.register_forward_pre_hook(hook).remove)
        yield


def _rounded_arguments(inputs: LayerInputs, _: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return inputs.through(args[0]), *args[1:]
