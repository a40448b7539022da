"""Log of a training: what each step did, and what all of them cost."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor

NAMES = ("losses", "gradient_norms", "tokens", "seconds")


@dataclass
class TrainingLog:
    """Numbers of each finished step."""

    losses: list[float] = field(default_factory=list)
    """Mean loss of the step's batch, before its update."""
    gradient_norms: list[float] = field(default_factory=list)
    """Norm of all gradients together before it was clipped."""
    tokens: list[int] = field(default_factory=list)
    """Elements of the step's batch: tokens, where it holds ids."""
    seconds: list[float] = field(default_factory=list)
    """Wall-clock seconds, without saving states."""

    @property
    def steps(self) -> int:
        return len(self.losses)

    def add(self, loss: float, norm: float, tokens: int, seconds: float) -> None:
        """Append a step."""
        for name, value in zip(NAMES, (loss, norm, tokens, seconds), strict=True):
            getattr(self, name).append(value)

    def as_row(self) -> dict[str, Any]:
        """Return the cost in total, and the mean loss of the first and the last tenth of the steps."""
        tenth = max(1, self.steps // 10)
        return {
            "steps": self.steps,
            "tokens": sum(self.tokens),
            "seconds": sum(self.seconds),
            "loss_first": sum(self.losses[:tenth]) / tenth,
            "loss_last": sum(self.losses[-tenth:]) / tenth,
        }

    @property
    def summary(self) -> str:
        """The cost in total, for people."""
        row = self.as_row()
        return f"{row['steps']} steps, {row['tokens']:,} tokens, {row['seconds']:.0f} s"

    def tensors(self) -> dict[str, Tensor]:
        """Return the log as tensors, which `from_tensors` reads."""
        return {name: torch.tensor(getattr(self, name), dtype=torch.float64) for name in NAMES}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Self:
        """Return the log that `tensors` wrote."""
        losses, norms, tokens, seconds = (tensors[name].tolist() for name in NAMES)
        return cls(losses, norms, [int(count) for count in tokens], seconds)
