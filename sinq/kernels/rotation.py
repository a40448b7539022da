"""Rotation of activations at run time: Q·x for every row of x, and back (`sinq/formats/rotation.py`).

The definition makes one small dense product for each Kronecker factor. The fast versions compute the same in
two steps: butterflies for the power of two in n = m·2^k, k additions a number instead of 2^k, and torch's
product with Paley's matrix of order m for the rest. Where n is a single factor (a power of two up to 64, or
one of Paley's orders) that product is all there is, and it is the definition's to the last digit.

Weights are rotated by the definition, once: what is stored does not depend on the kernel.
"""

from typing import Any

import torch
from torch import Tensor

from sinq.formats.rotation import Rotation
from sinq.kernels.dispatch import fast


@fast(
    cpu="sinq.kernels.cpu.rotation:rotated_rows",
    triton="sinq.kernels.triton.rotation:rotated_rows",
)
def rotated_rows(rows: Tensor, rotation: Rotation, back: bool = False) -> Tensor:
    """Return Q·x for each row x of (..., n), or Qᵀ·x on the way back, float32; no gradient flows through it.

    Args:
        rows: any floating dtype, on the device of the rotation.
    """
    return rotation.undo(rows) if back else rotation.apply(rows)


def rotated(x: Tensor, rotation: Rotation, back: bool = False) -> Tensor:
    """Return Q·x for each row x of (..., n), or Qᵀ·x on the way back, in the dtype of x.

    The gradient of a rotation is the rotation back.
    """
    if torch.compiler.is_compiling() or (x.requires_grad and torch.is_grad_enabled()):
        result: Tensor = _operator(x, rotation.signs, rotation.size, back)
        return result.to(x.dtype)
    return rotated_rows(x, rotation, back).to(x.dtype)


def _rotated_rows(x: Tensor, signs: Tensor, size: int, back: bool) -> Tensor:
    return rotated_rows(x, Rotation(signs, size), back)


_operator = torch.library.custom_op("sinq::rotated_rows", _rotated_rows, mutates_args=())
"""`rotated_rows` as one node of a compiled graph, and with a gradient."""


@_operator.register_fake
def _(x: Tensor, signs: Tensor, size: int, back: bool) -> Tensor:
    return x.new_empty(x.shape, dtype=torch.float32)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, signs, ctx.size, ctx.back = inputs
    ctx.save_for_backward(signs)
    ctx.dtype = x.dtype


def _gradient(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
    (signs,) = ctx.saved_tensors
    return _operator(gradient, signs, ctx.size, not ctx.back).to(ctx.dtype), None, None, None


_operator.register_autograd(_gradient, setup_context=_remember)
