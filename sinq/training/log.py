"""Log of a training: what each step did, and what all of them cost."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor

NAMES = ("losses", "gradient_norms", "tokens", "seconds")
MEASURE = "measure/"
"""Beginning of the names of measures among tensors."""


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
    measures: dict[str, list[float]] = field(default_factory=dict)
    """Other numbers of each step, by name, that the training's `measures` gave."""

    @property
    def steps(self) -> int:
        return len(self.losses)

    def add(
        self, loss: float, norm: float, tokens: int, seconds: float, measures: Mapping[str, float] = {}
    ) -> None:
        """Append a step."""
        for name, value in zip(NAMES, (loss, norm, tokens, seconds), strict=True):
            getattr(self, name).append(value)
        for name, value in measures.items():
            self.measures.setdefault(name, []).append(value)

    def as_row(self) -> dict[str, Any]:
        """Return the cost in total, and means of loss and measures in the first and last tenth of steps."""
        tenth = max(1, self.steps // 10)
        row: dict[str, Any] = {
            "steps": self.steps,
            "tokens": sum(self.tokens),
            "seconds": sum(self.seconds),
        }
        for name, values in {"loss": self.losses, **self.measures}.items():
            row[f"{name}_first"] = sum(values[:tenth]) / tenth
            row[f"{name}_last"] = sum(values[-tenth:]) / tenth
        return row

    @property
    def summary(self) -> str:
        """The cost in total, for people."""
        row = self.as_row()
        return f"{row['steps']} steps, {row['tokens']:,} tokens, {row['seconds']:.0f} s"

    def tensors(self) -> dict[str, Tensor]:
        """Return the log as tensors, which `from_tensors` reads."""
        lists = {name: getattr(self, name) for name in NAMES}
        lists |= {f"{MEASURE}{name}": values for name, values in self.measures.items()}
        return {name: torch.tensor(values, dtype=torch.float64) for name, values in lists.items()}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Self:
        """Return the log that `tensors` wrote."""
        losses, norms, tokens, seconds = (tensors[name].tolist() for name in NAMES)
        measures = {
            name.removeprefix(MEASURE): tensor.tolist()
            for name, tensor in tensors.items()
            if name.startswith(MEASURE)
        }
        return cls(losses, norms, [int(count) for count in tokens], seconds, measures)
