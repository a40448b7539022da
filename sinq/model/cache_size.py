"""Bytes that attention keeps of a token, counted on the tensors of a real cache."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sinq.common.errors import NotApplicable
from sinq.model.attention import kept_layers
from sinq.model.key_value_layer import KeyValueLayer

COUNTED_TOKENS = 512
"""Length of the text; fewer where the model has fewer positions."""


def cache_nbytes_per_token(model: Any, stored: torch.dtype) -> float | None:
    """Return what the second half of a text adds to the cache, in bytes per token; None if it never grows.

    A prefix and a dense window, which do not grow, are thus not counted.

    Args:
        stored: number format of the checkpoint, in which dense keys and values are counted.
    """
    positions = getattr(model.config, "max_position_embeddings", None) or COUNTED_TOKENS
    length = min(COUNTED_TOKENS, positions // 2)
    try:
        whole, half = (
            kept_layers(model, torch.zeros(1, count, dtype=torch.long)) for count in (length, length // 2)
        )
    except NotApplicable:
        return None
    if any(getattr(layer, "is_sliding", True) for layer in whole):
        return None
    added = sum(_nbytes(_tensors(layer), model.dtype, stored) for layer in whole)
    added -= sum(_nbytes(_tensors(layer), model.dtype, stored) for layer in half)
    return added / (length - length // 2)


def _tensors(layer: Any) -> Sequence[Tensor]:
    return layer.tensors() if isinstance(layer, KeyValueLayer) else (layer.keys, layer.values)


def _nbytes(tensors: Sequence[Tensor], dense: torch.dtype, stored: torch.dtype) -> int:
    return sum(
        tensor.numel() * (stored if tensor.dtype == dense else tensor.dtype).itemsize for tensor in tensors
    )
