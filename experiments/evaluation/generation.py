"""Generation in two phases: prefill reads the prompt, then decode writes one token after another.

A model hands its cache from step to step under a name of its own (`CACHES`). One that hands on none reads the
whole sequence at every step (openai-gpt; RecurrentGemma, which keeps its state inside).
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from experiments.common.meters import seconds

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CACHES = ("cache", "past_key_values", "cache_params", "state", "mems")
"""Names of caches in outputs, and of the arguments that take them."""


@dataclass(frozen=True)
class Step:
    """A model's output after a sequence of tokens."""

    tokens: Tensor
    """int64 (batch, tokens): all tokens read so far."""
    logits: Tensor
    """(batch, tokens, vocabulary); the last position counts."""
    cache: dict[str, Any]
    """The cache by its name; empty where the model hands on none."""


@torch.inference_mode()
def prefill(model: "PreTrainedModel", prompt: Tensor) -> Step:
    """Return the step after a prompt, int64 (batch, tokens)."""
    output = call(model, prompt)
    return Step(prompt, output.logits, _cache(model, output))


def most_probable(logits: Tensor) -> Tensor:
    """Return the most probable token of each text, (batch, 1), from logits (batch, 1, vocabulary)."""
    return logits.argmax(-1)


@torch.inference_mode()
def decode(
    model: "PreTrainedModel", step: Step, tokens: int, choose: Callable[[Tensor], Tensor] = most_probable
) -> Step:
    """Decode `tokens` steps from the output of `prefill`; return the last.

    The input of each step is the token that `choose` takes from the last logits of the previous output.
    """
    for _ in range(tokens):
        chosen = choose(step.logits[:, -1:])
        sequence = torch.cat([step.tokens, chosen], dim=1)
        output = call(model, chosen if step.cache else sequence, **step.cache)
        step = Step(sequence, output.logits, _cache(model, output))
    return step


def call(model: "PreTrainedModel", ids: Tensor, **options: Any) -> Any:
    """Return the output of a model that may use its cache, for the last position if it can tell."""
    return model(input_ids=ids, use_cache=True, **options, **last_logits(model))


def last_logits(model: "PreTrainedModel") -> dict[str, int]:
    """Return the options of a model's forward that ask for the logits of the last position alone."""
    return {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}


def _cache(model: "PreTrainedModel", output: Any) -> dict[str, Any]:
    held = {name: getattr(output, name, None) for name in cache_names(model)}
    return next(({name: cache} for name, cache in held.items() if cache is not None), {})


def cache_names(model: "PreTrainedModel") -> list[str]:
    """Return the names of `CACHES` that a model takes; transformers renames `past_key_values` to `cache`."""
    taken = inspect.signature(model.forward).parameters
    return [name for name in CACHES if name in taken]


def phase_seconds(
    model: "PreTrainedModel", prompt: Tensor, tokens: int, device: torch.device
) -> tuple[float, float]:
    """Return the seconds of prefill, and of decoding `tokens`."""
    state = {}

    def read() -> None:
        state["step"] = prefill(model, prompt)

    first = seconds(read, device)
    return first, seconds(lambda: decode(model, state["step"], tokens), device)
