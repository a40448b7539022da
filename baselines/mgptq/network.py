"""A graph neural network that deals out bits to columns, trained on the output error of the layer it is for (MG-PTQ, arXiv 2501.18154).

    Z1 = relu(Â X Θ1),    Z2 = relu(Â Z1 Θ2) + Z1,    logits = Z2 Θ3        one row per column, one logit per width

Two rounds of messages along the edges of `column_graph.py`; with the identity for Â it is a perceptron on each column alone.

What is trained on. Let E_b = W − Q_b(W) be the error of rounding everything to b bits, and y (in, widths) pick a width for each column:
E(y) = Σ_b E_b diag(y_b). The loss is

    tr(E(y) H E(y)ᵀ) / L₀ + λ (mean bits − budget)²        L₀: the first term before training

Forward, y is the one-hot argmax of p = softmax(logits/τ); backward it is p (straight-through), and τ falls from step to step. E(y) is
linear in y, so no gradient passes through a rounding. The cross terms of H make the loss inseparable: it is they that edges can help with.
Not in the loss: that GPTQ will make up for errors afterwards.
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True)
class Training:
    """How the network is trained. Every default is a choice of ours or of our source's; the paper's are not published there."""

    steps: int = 150
    learning_rate: float = 5e-3
    """Of Adam."""
    budget_weight: float = 10.0
    """λ"""
    temperature: tuple[float, float] = (1.0, 0.1)
    """τ at the first and the last step; geometric in between."""
    hidden: int = 64
    rows: int | None = 128
    """Random rows of the matrix the error is measured on; None for all. Steps take time in proportion."""

    def __post_init__(self) -> None:
        for option in ("steps", "hidden", "rows"):
            if (value := getattr(self, option)) is not None and value < 1:
                raise ValueError(f"training.{option}={value} is not possible; it must be ≥ 1")
        if not self.learning_rate > 0:
            raise ValueError(
                f"training.learning_rate={self.learning_rate} is not possible; it must be above 0"
            )
        if self.budget_weight < 0:
            raise ValueError(f"training.budget_weight={self.budget_weight} is not possible; it must be ≥ 0")
        if len(self.temperature) != 2 or not min(self.temperature) > 0:
            raise ValueError(
                f"training.temperature={self.temperature} is not possible; it must be two numbers above 0"
            )

    def temperature_at(self, step: int) -> float:
        """τ of a step, from 0."""
        first, last = self.temperature
        return float(first * (last / first) ** (step / max(1, self.steps - 1)))


@dataclass(frozen=True, eq=False)
class ColumnGNN:
    """The network's parameters."""

    first: Tensor
    """Θ1, (features, hidden)"""
    second: Tensor
    """Θ2, (hidden, hidden)"""
    last: Tensor
    """Θ3, (hidden, widths)"""

    @classmethod
    def random(
        cls, features: int, hidden: int, widths: int, generator: torch.Generator, device: torch.device
    ) -> Self:
        """Glorot's normal distribution, the same on any device."""
        shapes = ((features, hidden), (hidden, hidden), (hidden, widths))
        drawn = (torch.randn(shape, generator=generator) * (2 / sum(shape)) ** 0.5 for shape in shapes)
        return cls(*(values.to(device).requires_grad_() for values in drawn))

    def parameters(self) -> list[Tensor]:
        return [self.first, self.second, self.last]

    def logits(self, adjacency: Tensor | None, features: Tensor) -> Tensor:
        """(in, widths), from Â (in, in), None for the identity, and features (in, features)."""
        return self.from_messages(adjacency, _messages(adjacency, features))

    def from_messages(self, adjacency: Tensor | None, messages: Tensor) -> Tensor:
        """As `logits`, from Â X, which is the same at every step."""
        inner = torch.relu(messages @ self.first)
        return (torch.relu(_messages(adjacency, inner) @ self.second) + inner) @ self.last


def _messages(adjacency: Tensor | None, values: Tensor) -> Tensor:
    return values if adjacency is None else adjacency @ values


@dataclass(frozen=True, eq=False)
class Task:
    """What a network is trained for."""

    errors: Tensor
    """E_b of every width, float32 (widths, rows, in)."""
    hessian: Tensor
    """float32 (in, in)"""
    widths: Tensor
    """Bits, float32 (widths,), ascending."""
    budget: float
    """Mean bits."""

    def loss(self, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """tr(E(y) H E(y)ᵀ) and its gradient by y = `chosen`, (in, widths)."""
        error = (self.errors * chosen.T[:, None]).sum(0)
        weighted = error @ self.hessian
        return (weighted * error).sum(), 2 * (self.errors * weighted).sum(1).T


def trained_logits(
    task: Task, adjacency: Tensor | None, features: Tensor, options: Training, generator: torch.Generator
) -> tuple[Tensor, list[float]]:
    """Logits (in, widths) of a network trained for one layer, and its loss at every step."""
    network = ColumnGNN.random(
        features.shape[1], options.hidden, len(task.widths), generator, features.device
    )
    messages, losses, unit = _messages(adjacency, features), [], None
    with torch.enable_grad():
        optimizer = torch.optim.Adam(network.parameters(), lr=options.learning_rate)
        for step in range(options.steps):
            logits = network.from_messages(adjacency, messages)
            soft = torch.softmax(logits / options.temperature_at(step), dim=1)
            hard = torch.nn.functional.one_hot(soft.argmax(1), len(task.widths)).to(soft)
            error, slope = task.loss(hard)
            unit = error.clamp_min(torch.finfo(torch.float32).tiny) if unit is None else unit
            excess = hard @ task.widths
            excess = excess.mean() - task.budget
            losses.append((error / unit + options.budget_weight * excess**2).item())
            slope = slope / unit + 2 * options.budget_weight * excess * task.widths / len(soft)
            optimizer.zero_grad()
            (slope * soft).sum().backward()
            optimizer.step()
        return network.from_messages(adjacency, messages).detach(), losses
