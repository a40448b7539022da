"""A subject of evaluations, small enough for every test of the harness."""

from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from experiments.evaluation import EvaluationContext
from experiments.models.source import LoadedModel
from sinq import CompressionReport
from sinq.common.progress import silent
from tests.conftest import tiny_model, tiny_tokenizer, tiny_tokens


def subject(
    architecture: str = "llama",
    windows: int = 4,
    compressed: torch.nn.Module | None = None,
    report: CompressionReport | None = None,
) -> EvaluationContext:
    """A tiny model as evaluations get it."""
    loaded = LoadedModel(tiny_model(architecture), tiny_tokenizer(), torch.float32)
    model = compressed if compressed is not None else loaded.model
    tokens = tiny_tokens(windows, 64).reshape(-1)
    report = report or CompressionReport()
    return EvaluationContext(model, loaded, tokens, report, torch.device("cpu"), silent)  # type: ignore[arg-type]


class Capped(nn.Module):
    """A tiny Llama that soft-caps its logits, like Gemma 2: more than its head on its last hidden state."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = tiny_model("llama")
        self.inner.lm_head.weight *= 30
        self.base_model, self.config, self.dtype = self.inner.base_model, self.inner.config, self.inner.dtype

    def get_output_embeddings(self) -> Any:
        return self.inner.get_output_embeddings()

    def forward(self, input_ids: torch.Tensor, use_cache: bool = False) -> Any:
        return SimpleNamespace(logits=3 * torch.tanh(self.inner(input_ids).logits / 3))
