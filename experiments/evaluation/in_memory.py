"""Perplexity of a model in memory, by the protocol and the arithmetic of a row's `evaluation.perplexity`.

from experiments import perplexity

SINQ(Grid(bits=4)).compress(model)
perplexity(model, tokenizer, text, windows=16)
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import nn

from experiments.data.text import Document, Text
from experiments.evaluation.base import EvaluationContext
from experiments.evaluation.perplexity import Perplexity
from experiments.models.source import LoadedModel
from sinq import CompressionReport
from sinq.common.progress import silent

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def perplexity(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    text: str | Text,
    windows: int | None = 16,
    seqlen: int = 2048,
) -> float:
    """Return the perplexity of a text under a model, dense or compressed.

    The model runs in evaluation mode, on its device. Windows do not overlap; the first ones are read.

    Args:
        text: the text itself, or a named one, of which the evaluation part is read: `WikiText2()`.
        windows: number of windows; None for all.
        seqlen: tokens of a window; at most the model's context.

    Raises:
        ValueError: the text is shorter than one window, or a number is out of its range.
    """
    document = text.evaluation() if isinstance(text, Text) else Document(text, "in memory")
    tokens = torch.tensor(document.ids(tokenizer), dtype=torch.int64)
    loaded = LoadedModel(model, tokenizer, model.dtype)
    context = EvaluationContext(model, loaded, tokens, CompressionReport(), model.device, silent)
    evaluation = Perplexity(windows=windows, seqlen=seqlen, top_k=None)
    with _evaluating(model):
        evaluation.require_fitting(context)
        evaluation.check(context)
        value: float = evaluation.measure(context).metrics["value"]
    return value


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode, and restore the mode of each of its modules."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
