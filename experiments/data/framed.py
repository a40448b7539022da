"""Windows for encoders: between the tokens that begin and end their inputs, [CLS] and [SEP].

A tokenizer puts the two around a whole text. Encoders were trained with them around each input, so they are
taken from the text and put around each window. A tokenizer without the pair leaves windows as they are.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Frame = tuple[int, int] | None
"""Ids of the first and the last token of an input; None where there are none."""


def frame_of(tokenizer: "PreTrainedTokenizerBase") -> Frame:
    """Return the tokens around an input."""
    first, last = tokenizer.cls_token_id, tokenizer.sep_token_id
    return None if first is None or last is None else (int(first), int(last))


def without_frame(tokens: Tensor, frame: Frame) -> Tensor:
    """Return the tokens of a text, (tokens,), without those that the tokenizer put around it."""
    if frame is None or not len(tokens):
        return tokens
    start, stop = int(tokens[0]) == frame[0], len(tokens) - (int(tokens[-1]) == frame[1])
    return tokens[start:stop]


def with_frame(windows: Tensor, frame: Frame) -> Tensor:
    """Return windows (n, seqlen) with the frame around each, (n, seqlen + 2)."""
    if frame is None:
        return windows
    first, last = (torch.full_like(windows[:, :1], token) for token in frame)
    return torch.cat([first, windows, last], dim=1)
