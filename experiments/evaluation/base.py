"""What an evaluation is: a frozen dataclass of options that turns a subject into metrics and the raw samples behind them."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from experiments.common.meters import Peak
from experiments.models.source import LoadedModel
from sinq import CompressionReport
from sinq.common.named import Named
from sinq.common.progress import Progress


@dataclass(frozen=True)
class EvaluationContext:
    """A compressed model and what it is measured against and on."""

    model: PreTrainedModel
    """Compressed, or the dense model itself when there is no compression."""
    loaded: LoadedModel
    """The dense model, its tokenizer and facts."""
    tokens: Tensor
    """The evaluation text, int64 (tokens,)."""
    report: CompressionReport
    device: torch.device
    progress: Progress
    quantize_peak: Peak | None = None
    """Peak memory while it was compressed."""

    @property
    def is_dense(self) -> bool:
        return self.model is self.loaded.model


@dataclass(frozen=True)
class Measurement:
    """metrics: named numbers and facts, nested; samples: raw measurements, kept in the row."""

    metrics: dict[str, Any]
    samples: dict[str, Any] = field(default_factory=dict)


class Evaluation(Named, ABC):
    """Something that can be measured of a model."""

    def content(self) -> dict[str, Any]:
        """What the numbers depend on beside the options, by content: part of a run's identity. Raises `ValueError` if it cannot be had."""
        return {}

    def check(self, subject: EvaluationContext) -> None:
        """Raise `ValueError` before any long work if `subject` cannot be measured with these options."""

    @abstractmethod
    def measure(self, subject: EvaluationContext) -> Measurement:
        """Measure."""

    def against_dense(self, own: Measurement, dense: Measurement) -> dict[str, Any]:
        """Metrics that a compressed model has only beside the dense one's measurement."""
        return {}
