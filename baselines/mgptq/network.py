"""Graph neural network that allocates bits to a layer's columns (MG-PTQ, arXiv 2501.18154).

It is trained on the output error of that layer.

    Z1 = relu(Â X Θ1),    Z2 = relu(Â Z1 Θ2) + Z1,    logits = Z2 Θ3

with one row per column and one logit per bit-width. Two rounds of messages pass along the edges of
`graph.py`; with the identity for Â the network is a perceptron on each column alone.

Training objective: let E_b = W − Q_b(W) be the error of rounding everything to b bits, and let y (in,
bit-widths) pick a bit-width for each column: E(y) = Σ_b E_b diag(y_b). The loss is

    tr(E(y) H E(y)ᵀ) / L₀ + λ (mean bits − budget)²        L₀: the first term before training

Forward, y is the one-hot argmax of p = softmax(logits/τ); backward it is p (straight-through), and τ falls
from step to step. E(y) is linear in y, so no gradient passes through a rounding. The cross terms of H make
the loss inseparable: only with them can edges help.

Not in the loss: GPTQ's later compensation of errors.
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from sinq.common.options import check, number, several, whole


@dataclass(frozen=True)
class Training:
    """Options of training. Every default is our choice or our source's; the paper's are not published there.

    Raises:
        ValueError: an option is out of its range.
    """

    steps: int = 150
    learning_rate: float = 5e-3
    """Learning rate of Adam."""
    budget_weight: float = 10.0
    """λ, the weight of the budget in the loss."""
    temperature: tuple[float, float] = (1.0, 0.1)
    """τ at the first and the last step; geometric in between."""
    hidden: int = 64
    rows: int | None = 128
    """Random rows of the matrix used for the error; None for all. A step's time is proportional to them."""

    def __post_init__(self) -> None:
        check(
            self,
            "training",
            steps=whole(1),
            learning_rate=number(above=0, most=10),
            budget_weight=number(least=0, most=1e9),
            temperature=several(number(least=1e-6, most=1e6), length=2),
            hidden=whole(1, 65_536),
            rows=whole(1),
        )

    def temperature_at(self, step: int) -> float:
        """Return τ of a step, counted from 0."""
        first, last = self.temperature
        return float(first * (last / first) ** (step / max(1, self.steps - 1)))


@dataclass(frozen=True, eq=False)
class ColumnGNN:
    """Parameters of the network."""

    first: Tensor
    """Θ1, (features, hidden)."""
    second: Tensor
    """Θ2, (hidden, hidden)."""
    last: Tensor
    """Θ3, (hidden, bit-widths)."""

    @classmethod
    def random(
        cls, features: int, hidden: int, widths: int, generator: torch.Generator, device: torch.device
    ) -> Self:
        """Draw parameters from Glorot's normal distribution, the same on any device."""
        shapes = ((features, hidden), (hidden, hidden), (hidden, widths))
        drawn = (torch.randn(shape, generator=generator) * (2 / sum(shape)) ** 0.5 for shape in shapes)
        return cls(*(values.to(device).requires_grad_() for values in drawn))

    def parameters(self) -> list[Tensor]:
        return [self.first, self.second, self.last]

    def logits(self, adjacency: Tensor | None, features: Tensor) -> Tensor:
        """Return the logits, (in, bit-widths).

        Args:
            adjacency: Â, (in, in); None for the identity.
            features: (in, features).
        """
        return self.from_messages(adjacency, _messages(adjacency, features))

    def from_messages(self, adjacency: Tensor | None, messages: Tensor) -> Tensor:
        """Return the logits from the messages Â X, which are the same at every step."""
        inner = torch.relu(messages @ self.first)
        return (torch.relu(_messages(adjacency, inner) @ self.second) + inner) @ self.last


def _messages(adjacency: Tensor | None, values: Tensor) -> Tensor:
    return values if adjacency is None else adjacency @ values


@dataclass(frozen=True, eq=False)
class Task:
    """Training objective of one layer's network."""

    errors: Tensor
    """E_b of every bit-width, float32 (bit-widths, rows, in)."""
    hessian: Tensor
    """H, float32 (in, in)."""
    widths: Tensor
    """Bit-widths, float32 (bit-widths,), ascending."""
    budget: float
    """Mean bits."""

    def loss(self, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """Return tr(E(y) H E(y)ᵀ) and its gradient with respect to y = `chosen`, (in, bit-widths)."""
        error = (self.errors * chosen.T[:, None]).sum(0)
        weighted = error @ self.hessian
        return (weighted * error).sum(), 2 * (self.errors * weighted).sum(1).T


def trained_logits(
    task: Task, adjacency: Tensor | None, features: Tensor, options: Training, generator: torch.Generator
) -> tuple[Tensor, list[float]]:
    """Train a network for one layer; return its logits (in, bit-widths) and the loss at every step.

    Args:
        task: the layer's errors, Hessian and budget.
        adjacency: Â, float32 (in, in); None for the identity.
        features: float32 (in, features).
        options: options of training.
        generator: draws the initial parameters.
    """
    count = len(task.widths)
    network = ColumnGNN.random(features.shape[1], options.hidden, count, generator, features.device)
    messages, losses, unit = _messages(adjacency, features), [], None
    with torch.enable_grad():
        optimizer = torch.optim.Adam(network.parameters(), lr=options.learning_rate)
        for step in range(options.steps):
            logits = network.from_messages(adjacency, messages)
            soft = torch.softmax(logits / options.temperature_at(step), dim=1)
            hard = torch.nn.functional.one_hot(soft.argmax(1), count).to(soft)
            error, slope = task.loss(hard)
            unit = error.clamp_min(torch.finfo(torch.float32).tiny) if unit is None else unit
            excess = (hard @ task.widths).mean() - task.budget
            losses.append((error / unit + options.budget_weight * excess**2).item())
            slope = slope / unit + 2 * options.budget_weight * excess * task.widths / len(soft)
            optimizer.zero_grad()
            (slope * soft).sum().backward()
            optimizer.step()
        return network.from_messages(adjacency, messages).detach(), losses
