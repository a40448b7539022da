"""Other tensors in place of a block's parameters, while it is trained.

What is trained is often not a parameter itself: a rounded weight is a function of its clipping, a folded one
of the scales folded into it. The block then computes with such functions, and gradients pass through them.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn

from sinq.model.decoder import ParameterRef


@contextmanager
def computing_with(block: nn.Module, tensors: Mapping[ParameterRef, Tensor]) -> Iterator[None]:
    """Let a block compute in float32 within the context, with tensors in place of some of its parameters.

    Args:
        tensors: float32, each of the shape of its parameter; gradients reach what they were made of.
    """
    before = [(module, dict(module._parameters)) for module in block.modules()]
    try:
        for module, parameters in before:
            for name, parameter in parameters.items():
                if parameter is not None and parameter.is_floating_point():
                    # A plain tensor: gradients would stop at a Parameter.
                    wide = tensors.get(ParameterRef(module, name), parameter.detach().float())
                    module._parameters[name] = wide  # type: ignore[assignment]
        yield
    finally:
        for module, parameters in before:
            module._parameters.update(parameters)
