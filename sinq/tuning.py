"""Tuning a block after its layers are compressed: codes stay, the numbers beside them move.

A compressed block still has numbers that are not codes: codebooks and scales of its layers, gains of its norms, biases. They are
trained by Adam until the block's output is near that of the *dense* block on the same inputs, and these inputs went through the
compressed blocks before it (AQLM, arXiv 2401.06118; the last step of most methods below 3 bits).

    minimize  mean (block_q(X) − block_fp(X))²      over all tensors that `CompressedWeight.tunable` names, and parameters of one dimension

Training is in float32, one window at a time, gradients summed over a batch. The last windows are held out: after each epoch the loss on
them is measured on numbers *as they are stored* (rounded back to their own dtype), and what was best there is kept. The start counts as a
candidate, so on held-out windows a block is never worse than before; with one window nothing is held out and the trained one is measured.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sinq.blocks import HiddenStates, Run
from sinq.linear import WeightStore


@dataclass(frozen=True, eq=False)
class Finished:
    """A block whose layers are all compressed."""

    block: nn.Module
    run: Run
    inputs: HiddenStates
    """Of every window, behind the compressed blocks before."""
    targets: HiddenStates
    """What the dense block made of them."""


@dataclass(frozen=True)
class Tuned:
    """What tuning did: mean squared errors on the windows held out, and the epoch that was kept (0: the start)."""

    before: float
    after: float
    epoch: int


@dataclass(frozen=True)
class BlockTuning:
    """Options of tuning. Defaults are those of AQLM's published recipe, but for the batch, which there is 32 windows of 4,096 tokens."""

    epochs: int = 10
    """At most so many passes over the windows."""
    patience: int = 3
    """Passes without a better loss on the windows held out, after which it stops."""
    batch: int = 4
    """Windows of a step."""
    learning_rate: float = 1e-5
    betas: tuple[float, float] = (0.9, 0.95)
    validation: float = 0.125
    """Share of the windows that is held out; at least one window is, and at least one is not."""
    seed: int = 0
    """Of the order of windows."""

    def __post_init__(self) -> None:
        for option in ("epochs", "patience", "batch"):
            if getattr(self, option) < 1:
                raise ValueError(f"tuning.{option}={getattr(self, option)} is not possible; it must be ≥ 1")
        if self.learning_rate <= 0:
            raise ValueError(f"tuning.learning_rate={self.learning_rate} is not possible; it must be above 0")
        if not 0 < self.validation < 1:
            raise ValueError(f"tuning.validation={self.validation} is not possible; it must be between 0 and 1")

    def tune(self, it: Finished) -> Tuned:
        """Train the numbers of a block in place (its values and parameters are replaced; none is written to)."""
        count, numbers = len(it.inputs), _Numbers(it.block)
        held = min(max(1, round(self.validation * count)), count - 1)
        training, held_out = range(count - held), range(count - held, count) if held else range(count)
        generator = torch.Generator().manual_seed(self.seed)
        optimizer = torch.optim.Adam(numbers.leaves, self.learning_rate, self.betas)
        best, kept, before = numbers.copy(), 0, numbers.loss(it, held_out)
        after = before
        for epoch in range(1, self.epochs + 1):
            order = [training[k] for k in torch.randperm(len(training), generator=generator).tolist()]
            for start in range(0, len(order), self.batch):
                numbers.step(it, order[start : start + self.batch], optimizer)
            loss = numbers.loss(it, held_out)
            if loss < after:
                best, kept, after = numbers.copy(), epoch, loss
            elif epoch - kept >= self.patience:
                break
        numbers.put(best)
        return Tuned(before, after, kept)


class _Numbers:
    """The numbers of a block that are trained, as float32 leaves, and the places they come from."""

    def __init__(self, block: nn.Module) -> None:
        self.stores = [module for module in block.modules() if isinstance(module, WeightStore)]
        self.values = [store.value for store in self.stores]
        modules = [module for module in block.modules() if not isinstance(module, WeightStore)]
        self.parameters = [(m, name, p) for m in modules for name, p in m.named_parameters(recurse=False) if p.is_floating_point()]
        self.places: list[tuple[Any, str, Tensor]] = [
            (k, name, value.state_dict()[name]) for k, value in enumerate(self.values) for name in value.tunable()
        ]
        self.places += [(module, name, p) for module, name, p in self.parameters if p.ndim == 1]
        self.leaves = [stored.detach().float().clone().requires_grad_() for _, _, stored in self.places]

    def copy(self) -> list[Tensor]:
        """The numbers, rounded to how they are stored; a copy also where that is float32, since the optimizer writes to the leaves."""
        return [leaf.detach().to(stored.dtype, copy=True) for leaf, (_, _, stored) in zip(self.leaves, self.places, strict=True)]

    def loss(self, it: Finished, windows: range) -> float:
        """Mean squared error of windows, of the block as it would be stored."""
        with torch.no_grad(), self._inside([number.float() for number in self.copy()]):
            return sum(_error(it, index).item() for index in windows) / len(windows)

    def step(self, it: Finished, windows: list[int], optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        with torch.enable_grad(), self._inside(self.leaves):
            for index in windows:
                (_error(it, index) / len(windows)).backward()
        optimizer.step()

    def put(self, numbers: list[Tensor]) -> None:
        """Numbers, in the dtypes they are stored in, become the block's."""
        self._set(numbers, keep=True)

    @contextmanager
    def _inside(self, numbers: list[Tensor]) -> Iterator[None]:
        """The block computes in float32, with these numbers."""
        for module, name, parameter in self.parameters:
            if parameter.dtype != torch.float32:
                module._parameters[name] = nn.Parameter(parameter.float(), requires_grad=False)
        self._set(numbers, keep=False)
        try:
            yield
        finally:
            for module, name, parameter in self.parameters:
                module._parameters[name] = parameter
            for store, value in zip(self.stores, self.values, strict=True):
                store.value = value

    def _set(self, numbers: list[Tensor], keep: bool) -> None:
        changed: list[dict[str, Tensor]] = [{} for _ in self.values]
        for (owner, name, _), number in zip(self.places, numbers, strict=True):
            if isinstance(owner, int):
                changed[owner][name] = number
            elif keep:
                owner._parameters[name] = nn.Parameter(number, requires_grad=False)
            else:
                owner._parameters[name] = number  # a plain tensor, so that gradients reach the leaf
        for store, value, tensors in zip(self.stores, self.values, changed, strict=True):
            store.hold(value.with_tensors(tensors)) if keep else setattr(store, "value", value.with_tensors(tensors))


def _error(it: Finished, index: int) -> Tensor:
    output = it.run(it.inputs[index], torch.float32)
    return torch.nn.functional.mse_loss(output, it.targets[index].to(output))
