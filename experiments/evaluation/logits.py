"""Log-probabilities of a model at every position of a window, a few positions at a time.

A window's logits are never all in memory (for 2,048 positions and 150,000 words they would be 1.2 GB): the
body runs once, the head in chunks of positions. That is right only where the model's logits are its head
applied to its last hidden state. So it is checked on a few tokens first, and models that do more
(soft-capping, scaling) run whole.
"""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel

POSITIONS_AT_ONCE = 128
"""Few enough that arrays of so many by 50,000 words are reused by the allocator, not mapped anew."""
PROBE_TOKENS = 8

Sink = Callable[[Tensor], None]
"""Function called with values of the next positions, (positions, …), in order; may overwrite them."""


def ignore(values: Tensor) -> None:
    """Do nothing."""


@torch.inference_mode()
def read_window(
    model: "PreTrainedModel", ids: Tensor, chunked: bool, keep: Sink = ignore
) -> Iterator[Tensor]:
    """Yield the log-probabilities of the next token after each token of a window but the last.

    Each item is float32 (positions, vocabulary) for consecutive positions, seqlen − 1 in all. The caller may
    overwrite them.

    Args:
        model: any causal language model.
        ids: the window, int64 (1, seqlen).
        chunked: apply the head by itself to chunks of positions; valid only if `head_is_plain`.
        keep: called once with what the head is applied to, (positions, hidden size), where `chunked`.
    """
    if chunked:
        states = _body(model, ids)[0, :-1]
        keep(states)
        yield from of_states(model, states)
    else:
        for logits in model(input_ids=ids, use_cache=False).logits[0, :-1].split(POSITIONS_AT_ONCE):
            yield logits.float().log_softmax(-1)


@torch.inference_mode()
def of_states(model: "PreTrainedModel", states: Tensor) -> Iterator[Tensor]:
    """Yield the log-probabilities, float32 (positions, vocabulary), that the head makes of hidden states."""
    head: Any = model.get_output_embeddings()
    for some in states.split(POSITIONS_AT_ONCE):
        yield head(some).float().log_softmax(-1)


@torch.inference_mode()
def head_is_plain(model: "PreTrainedModel", window: Tensor) -> bool:
    """Return whether a model's logits are its output embedding applied to its body's last hidden state.

    The check runs the model on the first tokens of `window`, int64 (1, seqlen).
    """
    ids, head = window[:, :PROBE_TOKENS], model.get_output_embeddings()
    if head is None or _body_of(model) is None:
        return False
    whole = model(input_ids=ids, use_cache=False).logits
    states = _body(model, ids)
    if states.shape[:-1] != whole.shape[:-1] or states.shape[-1] != head.weight.shape[-1]:
        return False
    return torch.allclose(head(states), whole, rtol=1e-3, atol=1e-3)


def _body_of(model: "PreTrainedModel") -> "PreTrainedModel | None":
    """Return the model without its head, or None; some call themselves their base model (Llama-4)."""
    from transformers import PreTrainedModel

    base: Any = model.base_model
    if base is not model:
        return base
    return next((child for child in model.children() if isinstance(child, PreTrainedModel)), None)


def _body(model: "PreTrainedModel", ids: Tensor) -> Tensor:
    body: Any = _body_of(model)
    return body(input_ids=ids, use_cache=False)[0]
