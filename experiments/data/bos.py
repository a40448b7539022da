"""The token of beginning (BOS) in windows of a text.

By default (`first`) a text is tokenised with the tokenizer's defaults: BOS stands once before the text, or
not at all, and most windows begin in the middle of the text without one. That is the published protocol of
perplexity. Some models (Gemma) were trained with BOS before every text, and their perplexity without it is
many times higher. With `each`, every window is BOS and then the next tokens of the text.
"""

import enum
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IN_NEED = ("gemma",)
"""Parts of the names of architectures that are known to need BOS in every window."""


class Bos(enum.Enum):
    """Windows that begin with BOS: the first of a text (where the tokenizer adds it), or each."""

    first = "first"
    each = "each"


def bos_id(tokenizer: "PreTrainedTokenizerBase", option: str) -> int:
    """Return the id of a tokenizer's BOS.

    Raises:
        ValueError: it has none.
    """
    found = tokenizer.bos_token_id
    if found is None:
        raise ValueError(
            f"{option}=each is not possible: the model's tokenizer has no BOS; use {option}=first"
        )
    return int(found)


def without_bos(tokens: Tensor, bos: int) -> Tensor:
    """Return the tokens of a text, (tokens,), without a BOS that the tokenizer put before them."""
    return tokens[1:] if len(tokens) and int(tokens[0]) == bos else tokens


def with_bos(windows: Tensor, bos: int) -> Tensor:
    """Return windows (n, seqlen) with BOS before each, (n, seqlen + 1)."""
    return torch.cat([torch.full_like(windows[:, :1], bos), windows], dim=1)


def advice(architecture: str, bos: Bos, option: str) -> str | None:
    """Return a note where a model is known to need BOS in every window and is not given it, else None."""
    if bos is Bos.each or not any(name in architecture for name in IN_NEED):
        return None
    return f"{architecture} models expect BOS before every window: numbers are far better with {option}=each"
