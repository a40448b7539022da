"""Compressed weights for the fused experts of a mixture.

`CompressedExperts` replaces one fused 3-D parameter (transformers ≥ 5 keeps all experts of a layer in one
tensor). Model code reads that parameter as an attribute, so two hooks on its owner set that attribute to
the dequantized tensor during each forward pass. This works with any experts implementation, and only one
layer's experts are dense at a time.
"""

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn

from sinq.formats.base import CompressedWeight
from sinq.kernels.product import Choice
from sinq.model.linear import CompressedLinear, WeightStore


class CompressedExperts(nn.ModuleList):
    """The matrices of a fused expert parameter, one `WeightStore` each.

    Args:
        weights: one value (out, in) per expert.
        transposed: True if the model's parameter is (experts, in, out), False if it is (experts, out, in).
        dtype: of the dequantized parameter.
    """

    choice = Choice(
        refusals=("fused experts are dequantized for the model's code, which reads them as one parameter",)
    )
    """The same for all: this module computes no product, the code of the model does."""
    kernel = choice.kernel

    def __init__(self, weights: list[CompressedWeight], transposed: bool, dtype: torch.dtype) -> None:
        super().__init__([WeightStore(weight) for weight in weights])
        self.transposed, self.dtype = transposed, dtype

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        # A cast of the model changes the dtype of the dequantized parameter.
        self.dtype = fn(torch.zeros(1, dtype=self.dtype)).dtype
        return self

    def stores(self) -> list[WeightStore]:
        """Return the stores, one per expert."""
        return [store for store in self if isinstance(store, WeightStore)]

    def dense(self) -> Tensor:
        """Return the 3-D parameter in the layout of the model's code."""
        matrices = torch.stack([store.value.dequantize(self.dtype) for store in self.stores()])
        return matrices.transpose(1, 2) if self.transposed else matrices

    def install(self, owner: nn.Module, parameter: str) -> None:
        """Replace the parameter `owner.<parameter>` by this module, and hook its owner."""
        if not any(isinstance(child, CompressedExperts) for child in owner.children()):
            owner.register_forward_pre_hook(_show_dense)
            owner.register_forward_hook(_hide_dense, always_call=True)
        delattr(owner, parameter)
        owner.register_module(parameter, self)


def choices(model: nn.Module) -> list[Choice]:
    """Return the kernel choice of each compressed layer of a model, in the order of its modules."""
    return [
        module.choice
        for module in model.modules()
        if isinstance(module, CompressedLinear | CompressedExperts)
    ]


def _show_dense(owner: nn.Module, args: Any) -> None:
    for name, child in owner.named_children():
        if isinstance(child, CompressedExperts):
            owner.__dict__[name] = child.dense()  # looked up before the module of that name


def _hide_dense(owner: nn.Module, args: Any, output: Any) -> None:
    for name, child in owner.named_children():
        if isinstance(child, CompressedExperts):
            owner.__dict__.pop(name, None)
