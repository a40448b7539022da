"""Trainable numbers of a compressed block: numbers stored beside codes, and parameters of one dimension.

Static scales and zeros of rounded inputs are among them.

Each is a float32 leaf for the optimizer. `TrainedNumbers.computing` lets the block compute with given
numbers, and `TrainedNumbers.store` puts them into the block. Tensors the block had before are never written
to: a dense model may share them.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from torch import Tensor, nn

from sinq.formats.rounding import round_through
from sinq.model.activations import LARGEST_ZERO, ActivationQuantizer
from sinq.model.linear import WeightStore


class Owner(Protocol):
    """A module that has numbers to train."""

    stored: dict[str, Tensor]
    """Numbers of the module before training, by name."""

    def compute_with(self, numbers: dict[str, Tensor]) -> None:
        """Let the module compute in float32 with these numbers, so that gradients reach them."""

    def restore(self) -> None:
        """Undo `compute_with`."""

    def store(self, numbers: dict[str, Tensor]) -> None:
        """Put numbers, in the dtypes of `stored`, into the module."""


class ValueNumbers:
    """Scales, zeros, codebooks and other tunable tensors of a compressed weight; not its codes."""

    def __init__(self, module: WeightStore) -> None:
        self._module, self._value = module, module.value
        tensors = self._value.state_dict()
        self.stored = {name: tensors[name] for name in self._value.tunable()}

    def compute_with(self, numbers: dict[str, Tensor]) -> None:
        # Numbers that require a gradient are being trained: they may diverge, and then are not kept.
        trained = {name: n if n.requires_grad else n.detach().requires_grad_() for name, n in numbers.items()}
        self._module.hold(self._value.with_tensors(trained))

    def restore(self) -> None:
        self._module.hold(self._value)

    def store(self, numbers: dict[str, Tensor]) -> None:
        self._module.hold(self._value.with_tensors(numbers))


class InputNumbers:
    """Static scale of a layer's rounded inputs, and its zero, which is rounded wherever it is used."""

    def __init__(self, module: ActivationQuantizer) -> None:
        self._module = module
        self.stored: dict[str, Tensor] = dict(module.named_buffers())

    def compute_with(self, numbers: dict[str, Tensor]) -> None:
        for name, number in self._whole(numbers).items():
            self._module.register_buffer(name, number)

    def restore(self) -> None:
        for name, number in self.stored.items():
            self._module.register_buffer(name, number)

    def store(self, numbers: dict[str, Tensor]) -> None:
        self._module.take(self._whole(numbers))

    @staticmethod
    def _whole(numbers: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the numbers with a zero that is a signed byte; the gradient passes."""
        if "zero" not in numbers:
            return numbers
        return numbers | {"zero": round_through(numbers["zero"]).clamp(-LARGEST_ZERO, LARGEST_ZERO - 1)}


class ParameterNumbers:
    """Gains and biases of an ordinary module: its parameters of one dimension.

    The module's other parameters only change their dtype while it computes.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._all = {name: p for name, p in module.named_parameters(recurse=False) if p.is_floating_point()}
        self.stored: dict[str, Tensor] = {name: p for name, p in self._all.items() if p.ndim == 1}

    def compute_with(self, numbers: dict[str, Tensor]) -> None:
        for name, parameter in self._all.items():
            wide = numbers.get(name, parameter.detach().float())
            # A plain tensor: gradients would stop at a Parameter.
            self._module._parameters[name] = wide  # type: ignore[assignment]

    def restore(self) -> None:
        self._module._parameters.update(self._all)

    def store(self, numbers: dict[str, Tensor]) -> None:
        for name, number in numbers.items():
            self._module._parameters[name] = nn.Parameter(number, requires_grad=False)


class TrainedNumbers:
    """All trained numbers of a block, in a fixed order."""

    def __init__(self, block: nn.Module) -> None:
        modules = list(block.modules())
        self._owners: list[Owner] = [ValueNumbers(m) for m in modules if isinstance(m, WeightStore)]
        self._owners += [ParameterNumbers(m) for m in modules if not isinstance(m, WeightStore)]
        self._owners += [InputNumbers(m) for m in modules if isinstance(m, ActivationQuantizer)]
        self._stored = [number for owner in self._owners for number in owner.stored.values()]
        self.leaves = [number.detach().float().clone().requires_grad_() for number in self._stored]

    def rounded(self) -> list[Tensor]:
        """Return copies of the leaves, rounded to the dtypes they are stored in."""
        pairs = zip(self.leaves, self._stored, strict=True)
        return [leaf.detach().to(stored.dtype, copy=True) for leaf, stored in pairs]

    @contextmanager
    def computing(self, numbers: Sequence[Tensor]) -> Iterator[None]:
        """Let the block compute in float32 with these numbers, ordered as `leaves`, within the context."""
        try:
            for owner, named in self._by_owner(numbers):
                owner.compute_with(named)
            yield
        finally:
            for owner in self._owners:
                owner.restore()

    def store(self, numbers: Sequence[Tensor]) -> None:
        """Put numbers, rounded to the dtypes they are stored in, into the block."""
        for owner, named in self._by_owner(numbers):
            owner.store(named)

    def _by_owner(self, numbers: Sequence[Tensor]) -> Iterator[tuple[Owner, dict[str, Tensor]]]:
        """Yield each owner with its numbers by name."""
        remaining = iter(numbers)
        for owner in self._owners:
            yield owner, {name: next(remaining) for name in owner.stored}
