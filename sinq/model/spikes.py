"""Neurons at the inputs of a compressed layer, and the edit that puts them there.

Salient channels fire for the format's steps, all others for one. The two populations have scales of their
own, and a token's extremes in common. The product is what the neurons do: for each step, the columns of W of
the firing channels are added (`formats/spikes.py`). Weights are dequantized for it, in float32, at each call.

Not covered: kernels that use what spikes save, so a layer that fires is slower than one that rounds; and
compilation to one graph, since the number of salient channels is content of a buffer.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sinq.common.reading import typed
from sinq.formats.base import CompressedWeight
from sinq.formats.checks import require_names, require_tensor
from sinq.formats.packing import pack, packed_bytes, unpack
from sinq.formats.spikes import NeuronFormat, SpikeTrain
from sinq.kernels.product import Choice, product
from sinq.model.edits import Edit
from sinq.model.layer_inputs import LayerInputs, Work
from sinq.model.linear import CompressedLinear

FIRING = Choice("spikes")
"""The choice of layers whose inputs fire."""


class SpikingInputs(LayerInputs):
    """Neurons of a layer's inputs (..., in_features).

    The buffer `salient` has one bit for each channel, packed, uint8.
    """

    def __init__(self, format: NeuronFormat, in_features: int) -> None:
        super().__init__()
        self.format, self.in_features = format, in_features
        self.register_buffer("salient", torch.zeros(packed_bytes(in_features, 1), dtype=torch.uint8))

    def choose(self, salient: Tensor) -> None:
        """Set the channels that fire for more than one step, bool (in_features,)."""
        present = self.get_buffer("salient")
        self.take({"salient": pack(salient.to(present.device, torch.uint8), 1)})

    def mask(self) -> Tensor:
        """Return True for each salient channel, (in_features,)."""
        return unpack(self.get_buffer("salient"), 1, (self.in_features,)).bool()

    def take(self, tensors: Mapping[str, Tensor]) -> None:
        require_names("spikes", dict(tensors), ("salient",))
        require_tensor("salient", tensors["salient"], torch.uint8, (packed_bytes(self.in_features, 1),))
        self.register_buffer("salient", tensors["salient"])

    def populations(self, x: Tensor) -> Iterator[tuple[SpikeTrain, Tensor]]:
        """Yield the spikes of inputs (..., in) and the numbers of their channels: salient ones, then others.

        A population without channels is left out.
        """
        x, mask = x.detach().float(), self.mask()
        low, high = x.aminmax(dim=-1, keepdim=True)
        low, high = low.clamp_max(0), high.clamp_min(0)
        for chosen, steps in ((mask, self.format.steps), (~mask, 1)):
            columns = chosen.nonzero().squeeze(1)
            if len(columns):
                yield self.format.charged(x[..., columns], low, high, steps), columns

    def forward(self, x: Tensor) -> Tensor:
        """Return what the spikes stand for, in the dtype of x; the gradient passes as if nothing fired."""
        fired = torch.empty_like(x, dtype=torch.float32)
        for train, columns in self.populations(x):
            fired[..., columns] = train.dequantize()
        rounded = fired.to(x.dtype)
        return x + (rounded - x).detach() if x.requires_grad else rounded

    def through(self, x: Tensor) -> Tensor:
        wide = x.float()
        low, high = wide.aminmax(dim=-1, keepdim=True)
        steps = torch.where(self.mask(), self.format.steps, 1)
        return self.format.through(wide, low.clamp_max(0), high.clamp_min(0), steps).to(x.dtype)

    def multiply(self, core: CompressedWeight, x: Tensor, bias: Tensor | None) -> Tensor:
        if not self.rounds:
            return product(core, x, bias)
        if torch.is_grad_enabled() and (x.requires_grad or any(map(_trains, core.state_dict().values()))):
            return product(core, self(x), bias)  # Σ s(t) is a rounded x, so both are the same number
        weight = core.dequantize()
        y = torch.zeros(()) if bias is None else bias.float()
        for train, columns in self.populations(x):
            y = y + train.product(weight[:, columns])
        return y.to(x.dtype)

    def choice(self, core: CompressedWeight, device: torch.device) -> Choice:
        return FIRING

    def work(self, core: CompressedWeight, x: Tensor) -> Work:
        """Return the operations of `multiply`, from the spikes that fire.

        Binary spikes take L − 1 steps for one of others.
        """
        rows, tokens = core.shape[0], x.numel() // self.in_features
        trains = [(train, len(columns)) for train, columns in self.populations(x)]
        spikes = sum(int(train.spikes.sum(dtype=torch.float64)) for train, _ in trains)
        within = self.format.levels - 1 if self.format.binary else 1
        steps = sum(len(train.spikes) * within * count * tokens for train, count in trains)
        return Work(x.numel() * rows, x.numel(), steps, spikes, spikes * rows)

    def extra_repr(self) -> str:
        return f"{self.format.label}, {int(self.mask().sum())} of {self.in_features} channels salient"


def _trains(tensor: Tensor) -> bool:
    return tensor.requires_grad


@dataclass(frozen=True)
class FireInputs(Edit):
    """Neurons at the inputs of a compressed layer."""

    name: ClassVar[str] = "fire_inputs"

    layer: str
    """Name of the layer's module."""
    format: Mapping[str, Any]
    """Options of the `NeuronFormat`."""

    def apply(self, model: nn.Module) -> None:
        name = typed(self.layer, str, "layer")
        layer = dict(model.named_modules(remove_duplicate=False)).get(name)
        if not isinstance(layer, CompressedLinear):
            raise ValueError(f"{name} is a {type(layer).__name__}; inputs of compressed layers fire")
        format = NeuronFormat.from_json(typed(self.format, Mapping, "format"))  # type: ignore[type-abstract]
        inputs = SpikingInputs(format, layer.in_features)
        layer.inputs = inputs.to(next(layer.weight.buffers()).device)
