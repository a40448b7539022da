"""State of a generation between two tokens: of constant size, however long the text is."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from experiments.models.sdgm.atoms import Oscillators


def tail(tensor: Tensor, length: int) -> Tensor:
    """Return a copy of the last positions of a tensor (batch, tokens, …), at most `length`."""
    return tensor[:, max(0, tensor.shape[1] - length) :].clone()


@dataclass
class LayerState:
    """State of a block."""

    inputs: Tensor | None = None
    """The last kernel − 1 inputs (batch, …, width) of the convolution."""
    oscillators: Oscillators | None = None
    """Atoms at the next position; None where the last call was of several tokens."""


@dataclass
class SDGMState:
    """State of a model between two calls: it is handed on as `cache`."""

    layers: list[LayerState]
    position: int = 0
    """Position of the next token."""
    hidden: Tensor | None = None
    """Normed hidden states of the last window − 1 tokens (batch, …, width), to which the head can point."""
    ids: Tensor | None = None
    """Their ids (batch, …)."""
    is_compileable: bool = field(default=False, init=False)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return the number of tokens read, as transformers asks for it."""
        return self.position

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Put the texts of a beam search into another order."""
        if self.hidden is not None and self.ids is not None:
            self.hidden, self.ids = self.hidden[beam_idx], self.ids[beam_idx]
        for layer in self.layers:
            if layer.inputs is not None:
                layer.inputs = layer.inputs[beam_idx]


def joined(before: Tensor | None, now: Tensor) -> Tensor:
    """Return the kept positions followed by new ones, along the tokens."""
    return now if before is None else torch.cat([before, now], dim=1)
