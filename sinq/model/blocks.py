"""Execution of a model block by block: decoder blocks, and hidden states between them.

Assumptions about a model: its blocks are its largest `ModuleList`, and run once each, in order; each maps
hidden states (first argument) to hidden states (its output, or the first of several), which nothing changes
on the way to the next block. `stand_ins.probe` checks this on a few tokens, and refuses a model that differs.
The other arguments of a block may be anything (`block_arguments.py`).

Hidden states of all windows are in a temporary file, so memory does not grow with their number. (If the
system keeps its temporary folder in memory, point TMPDIR elsewhere.)
"""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from sinq.common.library_errors import reason
from sinq.model.block_arguments import BlockArguments, Call, hidden_states
from sinq.model.modes import evaluating
from sinq.model.preconditions import require_language_model

TRIED_TOKENS = 8
FOREIGN_ERRORS = (RuntimeError, TypeError, ValueError, AttributeError, LookupError)
"""Errors that a model's own code raises where it cannot work with what it is given."""


class BlockFunction(Protocol):
    """A block as a function of the hidden states of one window.

    Inputs are cast to `dtype`, unless it is None. With `keep`, the next block sees what this one wrote to the
    arguments that they share.
    """

    def __call__(
        self, states: Tensor, window: int, dtype: torch.dtype | None = None, keep: bool = False
    ) -> Tensor: ...


def find_blocks(model: nn.Module) -> nn.ModuleList:
    """Return the decoder blocks: the `ModuleList` with the most parameters in the part that reads text.

    Raises:
        ValueError: the model has no `ModuleList`.
    """
    part: Any = getattr(model, "get_decoder", lambda: None)() or model  # a vision tower may be larger
    lists = _module_lists(part) or _module_lists(model)
    if not lists:
        raise ValueError(f"{type(model).__name__} has no ModuleList of blocks; calibrated methods need one")
    return max(lists, key=lambda blocks: sum(parameter.numel() for parameter in blocks.parameters()))


def _module_lists(model: nn.Module) -> list[nn.ModuleList]:
    return [module for module in model.modules() if isinstance(module, nn.ModuleList)]


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

    def through(self, run: Callable[[Tensor, int], Tensor]) -> "HiddenStates":
        """Return the outputs of a block, given each tensor and its index, in order."""
        outputs = HiddenStates()
        for window, states in enumerate(self):
            outputs.append(run(states, window))
        return outputs

    def close(self) -> None:
        """Free the disk space; nothing can be read afterwards."""
        self._file.close()


def run_model(model: Any, window: Tensor) -> None:
    """Run a model on one window of token ids, (seqlen,), on the device of the model, in evaluation mode."""
    require_language_model(model)
    with evaluating(model):
        model(window[None].to(next(model.parameters()).device), use_cache=False)


@torch.no_grad()
def require_running(model: nn.Module, tokens: Tensor) -> None:
    """Raise `ValueError` if a model cannot be run on the first of the tokens, ids (windows, seqlen).

    It is called before anything is done to the model, so the error is that of the model's own code, say of
    layers in number formats that cannot be multiplied. Ids that the model does not have are refused too.
    """
    require_language_model(model)
    _require_known(model, tokens)
    try:
        run_model(model, tokens[0, :TRIED_TOKENS])
    except torch.OutOfMemoryError:
        raise
    except FOREIGN_ERRORS as error:
        raise ValueError(
            f"{type(model).__name__} cannot be run on the calibration text, before it is compressed:"
            f" {reason(error)}; repair the model, or use a method without calibration"
        ) from error


def _require_known(model: Any, tokens: Tensor) -> None:
    embedding = model.get_input_embeddings()
    known = embedding.num_embeddings if isinstance(embedding, nn.Embedding) else None
    lowest, highest = int(tokens.min()), int(tokens.max())
    if lowest < 0 or (known is not None and highest >= known):
        raise ValueError(
            f"token {lowest if lowest < 0 else highest} of the calibration text is not one of the"
            f" {known or ''} that {type(model).__name__} knows; tokenize the text with the model's tokenizer"
        )


@contextmanager
def block_at(
    block: nn.Module, index: int, arguments: BlockArguments, device: torch.device
) -> Iterator[BlockFunction]:
    """Move a block to a device, yield it as a function of hidden states, and move it back at the end."""
    home = next(block.parameters()).device
    tensors = [*block.parameters(), *block.buffers()]
    common: dict[torch.dtype | None, Call] = {}

    def run(states: Tensor, window: int, dtype: torch.dtype | None = None, keep: bool = False) -> Tensor:
        call, state = arguments.call(index, window, device, dtype, common)
        output = call.run(block, states.to(device, dtype))
        if keep:
            arguments.keep(index, window, state, output)
        return hidden_states(output)

    block.to(device)
    try:
        yield run
    finally:
        block.to(home)
        for tensor in tensors:  # a replaced tensor may be shared with a dense copy of the model
            tensor.data = tensor.data.to(home)
