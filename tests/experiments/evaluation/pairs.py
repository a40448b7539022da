"""A dense and a compressed model, and their distance by definition in float64."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from experiments.evaluation import EvaluationContext
from experiments.models.source import sparing_clone
from sinq import SINQ, Grid, find_targets
from tests.experiments.tiny import subject

VOCABULARY, SEQLEN = 96, 32


def pair(architecture: str = "llama") -> tuple[EvaluationContext, EvaluationContext]:
    """A dense model whose predictions are far from uniform, and it in 3 bits."""
    dense = subject(architecture)
    for target in find_targets(dense.model):
        getattr(target.module, target.parameter or "weight").mul_(6)
    dense.model.get_output_embeddings().weight.mul_(6)
    model: Any = sparing_clone(dense.model)
    return dense, replace(dense, model=model, report=SINQ(Grid(bits=3, group_size=32)).compress(model))


def predictions(model: Any, given: EvaluationContext) -> Tensor:
    """Log-probabilities (windows, positions, vocabulary), float64."""
    windows = given.tokens[: 3 * SEQLEN].reshape(3, SEQLEN)
    return torch.stack(
        [model(window[None], use_cache=False).logits[0, :-1].double().log_softmax(-1) for window in windows]
    )


def exact(given: EvaluationContext) -> tuple[Tensor, Tensor]:
    """KL and flips of every position, (windows, positions), by definition."""
    dense, compressed = predictions(given.loaded.model, given), predictions(given.model, given)
    return (dense.exp() * (dense - compressed)).sum(-1), dense.argmax(-1) != compressed.argmax(-1)


def dense_runs(given: EvaluationContext) -> list[torch.Size]:
    """Shapes of what the dense model's body will be run on."""
    seen: list[torch.Size] = []
    given.loaded.model.base_model.register_forward_pre_hook(
        lambda module, args, options: seen.append(options["input_ids"].shape), with_kwargs=True
    )
    return seen
