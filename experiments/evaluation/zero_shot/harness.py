"""lm-eval around a model in memory.

Importing this module takes lm-eval's ten seconds, so it is imported where it is used.

lm-eval finds its batch size by running out of memory, which on a CPU ends the process. Here it follows from a
budget for the largest tensors, the logits: three float32 tensors (batch, tokens, vocabulary) at the length of
the task's longest item.
"""

import copy
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lm_eval import evaluator
from lm_eval.models.huggingface import HFLM
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from experiments.evaluation.zero_shot.tasks import Loaded, quiet, reproducible

CPU_BUDGET = 2**30
"""Bytes for the logits of a batch on a CPU; on a GPU the budget is a quarter of the free memory."""
LARGEST_BATCH = 64
RESAMPLES = 100
"""Bootstraps of lm-eval's standard errors where there is no formula (there is one for accuracies)."""


class Harness(HFLM):
    """A model with lm-eval's interface. The model and the tokenizer are not changed."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        batch_size: int | None,
    ) -> None:
        self.used = batch_size
        """The latest batch size."""
        with _not_tied_again(model):  # HFLM would tie weights; a compressed output head has nothing to tie
            super().__init__(
                pretrained=model,
                tokenizer=copy.deepcopy(tokenizer),  # HFLM sets the padding token
                max_length=max_length,
                batch_size=batch_size or "auto",
            )

    def _detect_batch_size(self, requests: Any = None, pos: int = 0) -> int:
        length = self.max_length
        if requests:
            length = min(length, len(requests[pos][1]) + len(requests[pos][2]))
        vocabulary = self.model.config.get_text_config().vocab_size
        self.used = batch_that_fits(budget(self.device), length, vocabulary)
        return self.used


def batch_that_fits(budget_bytes: int, length: int, vocabulary: int) -> int:
    """Return the number of items of `length` tokens whose logits fit the budget; at least 1."""
    return max(1, min(LARGEST_BATCH, budget_bytes // (3 * 4 * length * vocabulary)))


def budget(device: torch.device) -> int:
    """Return the bytes for the logits of a batch."""
    return torch.cuda.mem_get_info(device)[0] // 4 if device.type == "cuda" else CPU_BUDGET


@contextmanager
def _not_tied_again(model: PreTrainedModel) -> Iterator[None]:
    """Disable `model.tie_weights` during a block."""
    vars(model)["tie_weights"] = lambda *_, **__: None
    try:
        yield
    finally:
        del vars(model)["tie_weights"]


def ask(harness: Harness, loaded: Loaded, limit: int | None) -> dict[str, Any]:
    """Return lm-eval's results: "results" by task, "samples" by task, and more."""
    with quiet(), reproducible(), _in_this_process():
        return evaluator.evaluate(harness, loaded, limit=limit, bootstrap_iters=RESAMPLES)


@contextmanager
def _in_this_process() -> Iterator[None]:
    """Stop lm-eval's bootstrap from forking, with the model and torch's threads, during a block."""
    name = "DISABLE_MULTIPROC"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
