"""Attention maps of a trained model, true and estimated, small enough to be kept in a row.

A map of one attention is the mean over its heads on one window of text, in `BINS` × `BINS` cells: the share
of attention that queries of a row give to keys of a column. Of the first, the middle and the last attention.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from baselines.sea.lessons import Pair
from sinq.model.modes import evaluating

BINS = 24
DIGITS = 4


@torch.no_grad()
def attention_maps(
    model: nn.Module, teacher: nn.Module, attentions: Sequence[Pair], names: Sequence[str], window: Tensor
) -> dict[str, Any]:
    """Return names of attentions, and lists of rows of their true and their estimated map.

    Args:
        attentions: those of teacher and model, from `lessons`.
        names: of their modules.
        window: ids (tokens,).
    """
    chosen = sorted({0, len(names) // 2, len(names) - 1})
    for index in chosen:
        attentions[index][1].draws = True
    _run(teacher, window)
    for noted, taught in attentions:
        taught.notes = noted.notes
    _run(model, window)
    maps = [attentions[index][1].maps for index in chosen]
    return {
        "layers": [names[index] for index in chosen],
        "true": [_rows(true) for true, _ in maps],
        "estimated": [_rows(estimated) for _, estimated in maps],
    }


def _run(model: Any, window: Tensor) -> None:
    with evaluating(model):
        model(window[None].to(next(model.parameters()).device), use_cache=False)


def _rows(attention: Tensor) -> list[list[float]]:
    cells = binned(attention, min(BINS, attention.shape[-1])).double()
    return [[round(value, DIGITS) for value in row] for row in cells.tolist()]


def binned(attention: Tensor, bins: int) -> Tensor:
    """Return the shares that groups of queries give to groups of keys, (bins, bins), of a map (T, T)."""
    tokens = len(attention)
    index = torch.arange(tokens, device=attention.device) * bins // tokens
    member = torch.nn.functional.one_hot(index, bins).to(attention.dtype)
    return member.T @ attention @ member / member.sum(0)[:, None]
