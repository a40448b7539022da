"""Compiled prefill and decode: what is left of a latency without Python between operators.

An eager step through a small model measures transformers' Python as much as the model. Here the model's
forward is compiled (`torch.compile`, one graph: an operator that breaks it is an error), with a cache of
fixed size, for the prompt's shape and for one token. Dense and compressed models are treated alike. Products
of compressed layers are operators of their own (`kernels/`), which the compiler calls and does not look into.

Compiling takes up to minutes; its seconds are in the row, apart. torch keeps what it generated on disk.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from experiments.common.meters import seconds
from experiments.evaluation.generation import cache_names, last_logits, most_probable
from sinq.common.library_errors import library_errors, reason

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class CompiledModel:
    """A compiled model with a cache for a prompt, int64 (1, tokens), and some tokens after it.

    Raises:
        ValueError: the model takes no cache of fixed size, or cannot be compiled to one graph.
    """

    def __init__(self, model: "PreTrainedModel", prompt: Tensor, tokens: int, device: torch.device) -> None:
        from transformers import StaticCache

        self._prompt, self._tokens, self._device = prompt, tokens, device
        # Each shape is compiled for itself: prefill and decode have other best codes.
        self._forward: Any = torch.compile(model.forward, fullgraph=True, dynamic=False)
        try:
            self._cache = StaticCache(config=model.config, max_cache_len=prompt.shape[1] + tokens)
            self._options = {cache_names(model)[0]: self._cache} | last_logits(model)
            self.compile_seconds = seconds(self._twice, device)
        except library_errors() as error:
            raise ValueError(
                f"evaluation.latency.compiled=true cannot be had of {type(model).__name__}: {reason(error)};"
                " use evaluation.latency.compiled=false"
            ) from error

    @torch.inference_mode()
    def phase_seconds(self) -> tuple[float, float]:
        """Return the seconds of prefill, and of decoding all tokens."""
        self._cache.reset()
        state = {}

        def read() -> None:
            state["next"] = self._step(self._prompt, 0)

        first = seconds(read, self._device)
        return first, seconds(lambda: self._decode(state["next"]), self._device)

    @torch.inference_mode()
    def _twice(self) -> None:
        """Run both phases twice: the first compiles, the second may again for a cache that has tokens."""
        for _ in range(2):
            self._cache.reset()
            self._decode(self._step(self._prompt, 0))

    def _step(self, ids: Tensor, position: int) -> Tensor:
        """Return the next token (1, 1) after tokens that begin at a position."""
        positions = torch.arange(position, position + ids.shape[1], device=ids.device)[None]
        output = self._forward(input_ids=ids, position_ids=positions, use_cache=True, **self._options)
        return most_probable(output.logits[:, -1:])

    def _decode(self, token: Tensor) -> Tensor:
        start = self._prompt.shape[1]
        for position in range(start, start + self._tokens):
            token = self._step(token, position)
        return token
