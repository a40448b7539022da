"""Every prediction of the dense model, exactly, in little space: its last hidden states.

The log-probabilities of 16 windows of 2,048 tokens over SmolLM2's 49,152 words take 6 GB. They are the head
applied to the last hidden states, and those take 75 MB. So the dense model's pass keeps the states in a file
of the cache, and each compressed model's pass applies the dense head to them: a fifth of SmolLM2's work for a
token, a few per cent of a larger model's. A few positions are in memory at a time (`POSITIONS_AT_ONCE`, four
arrays of positions × vocabulary).

Models whose logits are more than their head (`head_is_plain`) have no such file: the dense model runs beside
the compressed one, window by window.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, Self

import numpy as np
import torch
from torch import Tensor

from experiments.common.cache import Entry
from experiments.evaluation.base import EvaluationContext
from experiments.evaluation.divergence import entry_of
from experiments.evaluation.logits import Sink, of_states, read_window

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FORMAT = 1
"""Version of the file's layout; raise it with every change, so that old files are not read."""


@dataclass(frozen=True)
class DensePredictions:
    """Log-probabilities of the dense model on evaluation windows."""

    model: "PreTrainedModel"
    entry: Entry
    shape: tuple[int, int, int]
    """Windows, positions of each (all tokens but the last), size of a state that the head takes."""
    plain: bool
    """True where the model's logits are its head applied to the states, so that the file serves."""

    @classmethod
    def of(cls, context: EvaluationContext, windows: Tensor, plain: bool) -> Self:
        """Return the predictions on these windows, int64 (n, seqlen)."""
        model: Any = context.loaded.model
        width = model.get_output_embeddings().weight.shape[-1] if plain else 0
        shape = (len(windows), windows.shape[1] - 1, width)
        return cls(model, entry_of(context, windows, ".states.npy", states=FORMAT), shape, plain)

    @property
    def exist(self) -> bool:
        """True if nothing has to be run before `window`."""
        return not self.plain or self.entry.intact

    @contextmanager
    def create(self) -> Iterator[Sink]:
        """Yield a function that appends hidden states (positions, size); the file exists after the block."""
        header = {"descr": "<f4", "fortran_order": False, "shape": self.shape}
        with self.entry.create() as file:
            np.lib.format.write_array_header_1_0(file, header)
            yield lambda states: _append(file, states)

    def window(self, number: int, ids: Tensor) -> Iterator[Tensor]:
        """Yield log-probabilities, float32 (positions, vocabulary), of one window, as `read_window` does.

        Args:
            number: of the window.
            ids: the window, int64 (1, seqlen).
        """
        if not self.plain:
            yield from read_window(self.model, ids, chunked=False)
            return
        stored = torch.from_numpy(np.load(self.entry.path, mmap_mode="r")[number].copy())
        yield from of_states(self.model, stored.to(ids.device, self.model.dtype))


def _append(file: IO[bytes], states: Tensor) -> None:
    file.write(states.float().cpu().numpy().tobytes())
