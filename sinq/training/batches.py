"""Batches as a function of the step: nothing to save, and a training that goes on sees the same windows."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Batches = Callable[[int], Sequence[Tensor]]
"""Step, from 0 → the parts of its batch, of which each goes through the model at once."""
STRIDE = 1_000_003
"""Distance between the seeds of two runs, above any number of steps or epochs."""


def seed_of(seed: int, index: int) -> int:
    """Return the seed of a step or an epoch, which differs from those of all others and other seeds."""
    return seed * STRIDE + index


@dataclass(frozen=True, eq=False)
class Windows:
    """Batches of windows of text: each epoch has every window once, in a random order of its own.

    Raises:
        ValueError: there are fewer windows than a batch has.
    """

    tokens: Tensor
    """Ids (windows, seqlen)."""
    batch: int
    """Windows of a step."""
    at_once: int
    """Windows of a part, which divides `batch`."""
    seed: int

    def __post_init__(self) -> None:
        if len(self.tokens) < self.batch:
            raise ValueError(
                f"the text has {len(self.tokens)} windows of {self.tokens.shape[1]} tokens, too few to train"
                f" in batches of {self.batch}; use a smaller training.batch, or"
                f" calibration.samples={self.batch} or more"
            )

    def __call__(self, step: int) -> list[Tensor]:
        """Return the parts of a step's batch, (at_once, seqlen) each."""
        indices = [self._window(step * self.batch + index) for index in range(self.batch)]
        return list(self.tokens[indices].split(self.at_once))

    def _window(self, drawn: int) -> int:
        """Return the index of the window that is drawn after `drawn` others."""
        epoch, position = divmod(drawn, len(self.tokens))
        generator = torch.Generator().manual_seed(seed_of(self.seed, epoch))
        return int(torch.randperm(len(self.tokens), generator=generator)[position])
