"""Circumstances of a compression: how it is carried out, and what is done to the model around it."""

from dataclasses import dataclass, field

import torch
from torch import nn

from sinq.common.progress import Progress, silent
from sinq.common.tensor_store import TensorStore
from sinq.formats.activations import ActivationFormat
from sinq.model.targets import Layers


@dataclass(frozen=True)
class Context:
    """The layers to compress, the device to compute on, the display of progress, and rounding around it."""

    layers: Layers = field(default_factory=Layers)
    """By default all but the output head."""
    device: torch.device | str | None = None
    """Device that holds one layer or block at a time; by default the model's device."""
    progress: Progress = silent
    """Function that wraps an iterable to show its progress."""
    states: TensorStore | None = None
    """Store of the states of unfinished training, from which a killed process goes on; None for no store."""
    inputs: ActivationFormat | None = None
    """Format to which a method around this one will round the inputs of compressed layers; None where they
    stay as they are. Methods that train do so with rounded inputs; others need not know."""

    def device_for(self, model: nn.Module) -> torch.device:
        """Return the device, or that of `model` if it is None."""
        return next(model.parameters()).device if self.device is None else torch.device(self.device)
