"""How a compression is carried out: nothing here changes what a method does to a matrix."""

from dataclasses import dataclass, field

import torch
from torch import nn

from sinq.common.progress import Progress, silent
from sinq.model.targets import Layers


@dataclass(frozen=True)
class Context:
    """The layers to work on, the device to work on, and who is told how far the work is."""

    layers: Layers = field(default_factory=Layers)
    """All but the output head by default."""
    device: torch.device | str | None = None
    """Holds one layer or block at a time; by default the model stays where it is."""
    progress: Progress = silent
    """Wraps an iterable to show how far it is."""

    def device_for(self, model: nn.Module) -> torch.device:
        """Return the device, or where `model` is if none was named."""
        return next(model.parameters()).device if self.device is None else torch.device(self.device)
