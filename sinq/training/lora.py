"""LoRA (arXiv 2106.09685): a trained product of two thin matrices beside each frozen weight, then merged.

    y = W x + b + s · B (A x),    s = alpha / rank,    A (rank, in), B (out, rank)

A starts uniform in ±1/√in and B at 0, so that training starts at the model as it is. A and B are float32,
whatever the model's number format. The frozen layer may be dense, a `Conv1D`, or compressed: it is called,
and never differentiated by its weight.

Adapters are put in for the time of a training only, and leave the model as it was, or merged into new
weights: a tensor that the model had before is never written to. Dropout is that of LoRA's inputs; the
model's modules stay in evaluation mode, so an architecture's own dropout does not act.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, linear

from sinq.common.options import check, number, whole
from sinq.model.conv1d import is_conv1d
from sinq.model.linear import CompressedLinear
from sinq.model.modes import evaluating


@dataclass(frozen=True)
class LoRA:
    """Options of adapters; the defaults are LoRAPrune's."""

    rank: int = 8
    alpha: float = 16.0
    """Numerator of the scale s = alpha / rank."""
    dropout: float = 0.05
    """Probability that an input of A is dropped in training."""

    def __post_init__(self) -> None:
        check(
            self,
            "lora",
            rank=whole(1),
            alpha=number(above=0),
            dropout=number(least=0, below=1),
        )

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


class LoRALinear(nn.Module):
    """A frozen linear layer, (..., in) → (..., out), with an adapter beside it.

    Args:
        generator: draws the first A, on the CPU, so that it is the same on any device.
    """

    input_mask: Tensor | None
    """Zeros for inputs that are left out, (in,); None for no mask."""

    def __init__(self, base: nn.Module, options: LoRA, generator: torch.Generator) -> None:
        super().__init__()
        self.base, self.options = base, options
        rows, columns = dense_weight(base).shape
        device = next(iter([*base.parameters(), *base.buffers()])).device
        first = (2 * torch.rand(options.rank, columns, generator=generator) - 1) / columns**0.5
        self.a = nn.Parameter(first.to(device))
        self.b = nn.Parameter(torch.zeros(rows, options.rank, device=device))
        self.register_buffer("input_mask", None)

    def forward(self, x: Tensor) -> Tensor:
        if self.input_mask is not None:
            x = x * self.input_mask.to(x.dtype)
        y: Tensor = self.base(x)
        thin = linear(dropout(x, self.options.dropout, self.training).to(self.a.dtype), self.a)
        return y + (self.options.scale * linear(thin, self.b)).to(y.dtype)

    @torch.no_grad()
    def effective(self) -> Tensor:
        """Return W + s·B·A, float32 (out, in)."""
        return dense_weight(self.base).float() + self.options.scale * self.b @ self.a

    def differentiate_base(self) -> None:
        """Let a dense base have a gradient by its weight, for those who read it; it is not trained."""
        weight: Any = self.base.weight
        weight.requires_grad_(True)

    def base_gradient(self) -> Tensor:
        """Return the gradient by the weight of a dense base (out, in), and forget it."""
        weight: Any = self.base.weight
        gradient, weight.grad = weight.grad, None
        return gradient.T if is_conv1d(self.base) else gradient


def dense_weight(layer: Any) -> Tensor:
    """Return the weight (out, in) of a linear layer; that of a compressed one is decoded."""
    if isinstance(layer, CompressedLinear):
        return layer.weight.dense()
    weight: Tensor = layer.weight.detach()
    return weight.T if is_conv1d(layer) else weight


@contextmanager
def adapted(
    model: nn.Module, layers: Sequence[str], options: LoRA, seed: int
) -> Iterator[Mapping[str, LoRALinear]]:
    """Put adapters beside linear layers of a model within the context; yield them by the layers' names.

    Parameters of A and B alone require a gradient. At the end each layer is as it was.

    Args:
        layers: names of the layers' modules.
        seed: seed of the first A.
    """
    generator = torch.Generator().manual_seed(seed)
    kept = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    frozen = {name: model.get_submodule(name) for name in layers}
    adapters = {name: LoRALinear(layer, options, generator) for name, layer in frozen.items()}
    try:
        with evaluating(model):
            for parameter, _ in kept:
                parameter.requires_grad_(False)
            for name, adapter in adapters.items():
                model.set_submodule(name, adapter.train())
                adapter.base.eval()
            yield adapters
    finally:
        for name, layer in frozen.items():
            model.set_submodule(name, layer)
        for parameter, required in kept:
            parameter.requires_grad_(required)


def trained(adapters: Mapping[str, LoRALinear]) -> dict[str, nn.Parameter]:
    """Return A and B of all adapters by name."""
    pairs = [(name, adapter) for name, adapter in adapters.items()]
    return {f"{name}.{kind}": getattr(each, kind) for name, each in pairs for kind in ("a", "b")}


def merge(model: nn.Module, adapters: Mapping[str, LoRALinear]) -> None:
    """Replace the weight of each adapted dense layer by W + s·B·A, in the weight's dtype.

    It is called after `adapted`.
    """
    for name, adapter in adapters.items():
        layer: Any = model.get_submodule(name)
        weight = adapter.effective()
        stored = (weight.T if is_conv1d(layer) else weight).to(layer.weight.dtype).contiguous()
        layer.weight = nn.Parameter(stored, requires_grad=False)
