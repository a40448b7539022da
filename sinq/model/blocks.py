"""Execution of a model block by block: decoder blocks, their arguments, and hidden states between them.

Assumptions about a model: its blocks are its largest `ModuleList`; each maps hidden states (first argument)
to hidden states (its output, or the first of a tuple); and its other arguments depend on the length of the
window but not on its text.

Hidden states of all windows are in a temporary file, so memory does not grow with their number. (If the
system keeps its temporary folder in memory, point TMPDIR elsewhere.)
"""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and keyword arguments of a block besides its hidden states."""


class BlockFunction(Protocol):
    """A block as a function of hidden states; inputs are cast to `dtype`, unless it is None."""

    def __call__(self, states: Tensor, dtype: torch.dtype | None = None) -> Tensor: ...


def find_blocks(model: nn.Module) -> nn.ModuleList:
    """Return the decoder blocks: the `ModuleList` with the most parameters.

    Raises:
        ValueError: the model has no `ModuleList`.
    """
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    if not lists:
        raise ValueError(f"{type(model).__name__} has no ModuleList of blocks; calibrated methods need one")
    return max(lists, key=lambda blocks: sum(parameter.numel() for parameter in blocks.parameters()))


class HiddenStates:
    """Tensors of one shape and dtype, in order, on disk."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as this object
        self._count = 0

    def append(self, states: Tensor) -> None:
        """Add one tensor, from any device."""
        self._shape, self._dtype = states.shape, states.dtype
        self._file.write(states.detach().cpu().contiguous().view(torch.uint8).numpy().data)
        self._count += 1

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Tensor:
        if not 0 <= index < self._count:
            raise IndexError(index)
        size = self._shape.numel() * self._dtype.itemsize
        self._file.seek(index * size)
        return torch.frombuffer(bytearray(self._file.read(size)), dtype=self._dtype).reshape(self._shape)

    def __iter__(self) -> Iterator[Tensor]:
        return (self[index] for index in range(self._count))

    def through(self, run: Callable[[Tensor], Tensor]) -> "HiddenStates":
        """Return the outputs of a block for each tensor, in order."""
        outputs = HiddenStates()
        for states in self:
            outputs.append(run(states))
        return outputs

    def close(self) -> None:
        """Free the disk space; nothing can be read afterwards."""
        self._file.close()


def enter(model: nn.Module, blocks: nn.ModuleList, tokens: Tensor) -> tuple[HiddenStates, list[Arguments]]:
    """Return the hidden states of every window before the first block, and each block's other arguments.

    The model runs with blocks that only pass their input on, so this costs an embedding look-up.

    Args:
        tokens: ids (windows, seqlen).
    """
    arguments: list[Arguments] = [((), {}) for _ in blocks]
    hidden = HiddenStates()

    def pass_on(index: int) -> Any:
        def forward(states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            arguments[index] = args, kwargs
            if index == 0:
                hidden.append(states)
            return states

        return forward

    with ExitStack() as stack:
        for index, block in enumerate(blocks):
            block.forward = pass_on(index)
            stack.callback(delattr, block, "forward")
        for window in tokens:
            run_model(model.base_model, window)
    return hidden, arguments


def run_model(model: Any, window: Tensor) -> None:
    """Run a model on one window of token ids, (seqlen,), on the device of the model."""
    model(window[None].to(next(model.parameters()).device), use_cache=False)


@contextmanager
def block_at(block: nn.Module, arguments: Arguments, device: torch.device) -> Iterator[BlockFunction]:
    """Move a block to a device, yield it as a function of hidden states, and move it back at the end."""
    home = next(block.parameters()).device
    tensors = [*block.parameters(), *block.buffers()]
    by_dtype: dict[torch.dtype | None, Arguments] = {None: _moved(arguments, device, None)}

    def run(states: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        if dtype not in by_dtype:
            by_dtype[dtype] = _moved(arguments, device, dtype)
        args, kwargs = by_dtype[dtype]
        output = block(states.to(device, dtype), *args, **kwargs)
        return output[0] if isinstance(output, tuple) else output

    block.to(device)
    try:
        yield run
    finally:
        block.to(home)
        for tensor in tensors:  # a replaced tensor may be shared with a dense copy of the model
            tensor.data = tensor.data.to(home)


def _moved(value: Any, device: torch.device, dtype: torch.dtype | None) -> Any:
    if isinstance(value, Tensor):
        return value.to(device, dtype if value.is_floating_point() else None)
    if isinstance(value, dict):
        return {key: _moved(item, device, dtype) for key, item in value.items()}
    return tuple(_moved(item, device, dtype) for item in value) if isinstance(value, tuple) else value
