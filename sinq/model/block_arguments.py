"""The arguments of decoder blocks besides their hidden states, for every window.

Most models give every block the same ones for every window of a length: a mask, positions. These are held
once. What differs between windows (Gemma-3n's embeddings of each layer) is kept on disk.

Blocks of a window may also share something that they write to and read: keys and values that later layers
reuse, a cache, an output of one block that a later one is given (ZAYA's routers). Together this is the
window's *state*. It is on disk too, so that each run of a block reads a fresh copy; `keep` stores the copy
that a block has written to, and the next block then sees it (`step`).
"""

import io
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

Key = int | tuple[int, int]
"""An object of a window's state: the number of a shared object, or (block, position in its output)."""
State = dict[Key, Any]
READ_ONLY = (bool, int, float, str, torch.dtype, torch.device, type(None), Tensor, nn.Module)
"""Types of arguments that no block writes to, besides tuples."""


@dataclass(frozen=True)
class Held:
    """A stand-in for an object of the window's state."""

    key: Key


@dataclass(frozen=True)
class Call:
    """Arguments of a block besides its hidden states: these are the first one, or the one of a name."""

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    name: str | None = None

    def run(self, block: nn.Module, states: Tensor) -> Any:
        """Return what a block returns for hidden states."""
        if self.name is None:
            return block(states, *self.args, **self.kwargs)
        return block(**{self.name: states}, **self.kwargs)


def split_call(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Tensor, Call]:
    """Return the hidden states that a block is called with, and the other arguments."""
    if args:
        return args[0], Call(args[1:], kwargs)
    name = next(key for key, value in kwargs.items() if isinstance(value, Tensor))
    return kwargs[name], Call((), {key: value for key, value in kwargs.items() if key != name}, name)


def hidden_states(output: Any) -> Tensor:
    """Return the hidden states in what a block returns: all of it, or the first of several things."""
    return output if isinstance(output, Tensor) else output[0]


class Records:
    """Objects in order, on disk. Each reading makes a new object."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as this object
        self._ends = [0]

    def append(self, value: Any) -> int:
        """Add an object, and return its index."""
        content = io.BytesIO()
        torch.save(_compact(value), content)
        self._file.seek(self._ends[-1])
        self._file.write(content.getbuffer())
        self._ends.append(self._file.tell())
        return len(self._ends) - 2

    def read(self, index: int, device: torch.device) -> Any:
        """Return a new object like the one added, its tensors on a device."""
        start, end = self._ends[index : index + 2]
        self._file.seek(start)
        content = io.BytesIO(self._file.read(end - start))
        # Not from elsewhere: this process wrote it to a file without a name.
        return torch.load(content, map_location=device, weights_only=False)


class BlockArguments:
    """The arguments of every block in every window: `add` collects them, `call` returns them."""

    def __init__(self) -> None:
        self._common: list[Call] = []
        self._differing: dict[tuple[int, int], int] = {}
        self._calls, self._state, self._kept = Records(), Records(), Records()
        self._keys: set[Key] = set()

    def add(self, calls: Sequence[Call], given: Mapping[int, Key]) -> None:
        """Add the calls of all blocks in the next window.

        Args:
            given: key of each object, by `id`, that a block returned besides its hidden states.
        """
        keys, state = dict(given), State()
        held = [_each(call, lambda value: _hold(value, keys, state)) for call in calls]
        self._common = self._common or held
        same: dict[tuple[int, int], bool] = {}
        window = self._state.append({key: value for key, value in state.items() if isinstance(key, int)})
        for block, (call, common) in enumerate(zip(held, self._common, strict=True)):
            if not _equal(call, common, same):
                self._differing[block, window] = self._calls.append(call)
        self._keys |= state.keys()

    def call(
        self,
        block: int,
        window: int,
        device: torch.device,
        dtype: torch.dtype | None,
        common: dict[torch.dtype | None, Call],
    ) -> tuple[Call, State]:
        """Return the arguments of a block in a window, and the copy of the window's state that is in them.

        Args:
            dtype: of the floating-point arguments, or None to leave them.
            common: a cache of the caller, for this block and device.
        """
        if (number := self._differing.get((block, window))) is not None:
            call = _moved(self._calls.read(number, device), device, dtype)
        else:
            if dtype not in common:
                common[dtype] = _moved(self._common[block], device, dtype)
            call = common[dtype]
        if not self._keys:
            return call, {}
        state = self._state.read(window, device)
        return _each(call, lambda value: _fill(value, state, device, dtype)), state

    def keep(self, block: int, window: int, state: State, output: Any) -> None:
        """Store what a block wrote to the state, and what it returned for later blocks. Windows in order."""
        if self._keys:
            returned = {
                key: output[key[1]] for key in self._keys if isinstance(key, tuple) and key[0] == block
            }
            kept = self._kept.append({**state, **returned})
            assert kept == window

    def step(self) -> None:
        """Let blocks read what `keep` has stored for all windows."""
        self._state, self._kept = self._kept, Records()


def _each(value: Any, change: Callable[[Any], Any]) -> Any:
    """Return a call or tuple with `change` applied to everything in it that is neither."""
    if isinstance(value, Call):
        kwargs = {key: _each(item, change) for key, item in value.kwargs.items()}
        return replace(value, args=_each(value.args, change), kwargs=kwargs)
    if type(value) is tuple:
        return tuple(_each(item, change) for item in value)
    return change(value)


def _hold(value: Any, keys: dict[int, Key], state: State) -> Any:
    """Put what blocks may write to, and what a block returned, into the state; return its stand-in."""
    if id(value) not in keys:
        if isinstance(value, READ_ONLY):
            return value
        keys[id(value)] = len(keys)
    state[keys[id(value)]] = value
    return Held(keys[id(value)])


def _fill(value: Any, state: State, device: torch.device, dtype: torch.dtype | None) -> Any:
    if not isinstance(value, Held):
        return value
    return state[value.key] if dtype is None else _moved(state[value.key], device, dtype)


def _equal(one: Any, other: Any, same: dict[tuple[int, int], bool]) -> bool:
    """Compare arguments; `same` remembers tensors compared before, since blocks share them."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        pair = id(one), id(other)
        if pair not in same:
            same[pair] = one is other or (one.dtype == other.dtype and torch.equal(one, other))
        return same[pair]
    if type(one) is not type(other):
        return False
    if isinstance(one, Call):
        parts = one.args, tuple(one.kwargs), tuple(one.kwargs.values()), one.name
        return _equal(
            parts, (other.args, tuple(other.kwargs), tuple(other.kwargs.values()), other.name), same
        )
    if isinstance(one, tuple):
        return len(one) == len(other) and all(map(lambda a, b: _equal(a, b, same), one, other))
    return bool(one is other or one == other)


def _moved(value: Any, device: torch.device, dtype: torch.dtype | None) -> Any:
    """Return arguments on a device, floating-point tensors in a dtype unless it is None."""
    if isinstance(value, Tensor):
        return value.to(device, dtype if value.is_floating_point() else None)
    if isinstance(value, dict):
        return {key: _moved(item, device, dtype) for key, item in value.items()}
    if type(value) is list:
        return [_moved(item, device, dtype) for item in value]
    if isinstance(value, Call) or type(value) is tuple:
        return _each(value, lambda item: _moved(item, device, dtype))
    return value


def _compact(value: Any) -> Any:
    """Return a value whose tensors are not views of larger ones, which would be stored whole."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if type(value) in (dict, list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        compacted = {key: _compact(item) for key, item in items}
        return compacted if isinstance(value, dict) else list(compacted.values())
    return _each(value, _compact) if isinstance(value, Call) or type(value) is tuple else value
