"""Greedy generation in two phases: prefill reads the prompt, then decode writes one token after another."""

import inspect
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from experiments.common.meters import seconds

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@torch.inference_mode()
def prefill(model: "PreTrainedModel", prompt: Tensor) -> Any:
    """Return the model's output after a prompt, int64 (batch, tokens).

    It has the logits of the last token, and the cache of keys and values.
    """
    return model(input_ids=prompt, use_cache=True, logits_to_keep=1)


@torch.inference_mode()
def decode(model: "PreTrainedModel", output: Any, tokens: int) -> Any:
    """Decode `tokens` steps from the output of `prefill`; return the last output.

    The input of each step is the most probable token of the previous output.
    """
    for _ in range(tokens):
        chosen = output.logits[:, -1:].argmax(-1)
        output = model(input_ids=chosen, **_cache(model, output), use_cache=True, logits_to_keep=1)
    return output


def _cache(model: "PreTrainedModel", output: Any) -> dict[str, Any]:
    """Return an output's cache as argument; transformers renamed it from `past_key_values` to `cache`."""
    kept = output["cache"] if "cache" in output else output["past_key_values"]
    name = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
    return {name: kept}


def phase_seconds(
    model: "PreTrainedModel", prompt: Tensor, tokens: int, device: torch.device
) -> tuple[float, float]:
    """Return the seconds of prefill, and of decoding `tokens`."""
    state = {}

    def read() -> None:
        state["output"] = prefill(model, prompt)

    first = seconds(read, device)
    return first, seconds(lambda: decode(model, state["output"], tokens), device)
