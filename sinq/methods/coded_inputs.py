"""Rounding of inputs to codes, as a method inside meets it: before its weights are stored, and after.

Numbers that a method inside has settled, and perhaps trained, are kept by layer, so that the method around
does not look for them again.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from sinq.formats.activations import ActivationFormat
from sinq.methods.searched_scales import search_block
from sinq.model.activations import ActivationQuantizer
from sinq.model.layer_inputs import LayerInputs
from sinq.model.linear import CompressedLinear
from sinq.model.rounded_inputs import watching_extremes
from sinq.model.targets import Target
from sinq.model.walk import BlockView


class CodedInputs:
    """The `PlannedInputs` of a format."""

    def __init__(self, format: ActivationFormat) -> None:
        self.format = format
        self.kept: dict[str, dict[str, Tensor]] = {}
        """Scale and zero of layers that are settled, by name."""

    @property
    def static(self) -> bool:
        return self.format.static

    def of_block(
        self, layers: Sequence[Target], run: Callable[[], None], device: torch.device
    ) -> dict[nn.Module, LayerInputs]:
        return {layer.module: ActivationQuantizer(self.format) for layer in layers}

    @contextmanager
    def attached(self, block: BlockView, layers: Mapping[str, CompressedLinear]) -> Iterator[None]:
        made = {name: ActivationQuantizer(self.format).to(block.device) for name in layers}
        try:
            for name, layer in layers.items():
                layer.inputs = made[name]
            if self.static:
                with watching_extremes(made):
                    block.pass_inputs()
                search_block(block, list(made.values()), self.format.search_windows)
            yield
            for name, inputs in made.items():
                self.kept[name] = {key: number.cpu() for key, number in inputs.state_dict().items()}
        finally:
            for layer in layers.values():
                layer.inputs = None
