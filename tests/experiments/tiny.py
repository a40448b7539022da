"""A tokenizer, and a subject of evaluations, small enough for every test of the harness."""

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from experiments.evaluation import Subject
from experiments.models import LoadedModel
from sinq import CompressionReport
from sinq.progress import silent
from tests.conftest import tiny_model, tiny_tokens


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token per letter."""
    vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2} | {chr(32 + k): 3 + k for k in range(93)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<pad>")


def subject(architecture: str = "llama", windows: int = 4, compressed: torch.nn.Module | None = None) -> Subject:
    """A tiny model as evaluations get it."""
    loaded = LoadedModel(tiny_model(architecture), tiny_tokenizer(), torch.float32)
    model = compressed if compressed is not None else loaded.model
    return Subject(model, loaded, tiny_tokens(windows, 64).reshape(-1), CompressionReport(), torch.device("cpu"), silent)  # type: ignore[arg-type]
