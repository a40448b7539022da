"""Base of evaluations: frozen dataclasses of options that turn a model into metrics and raw samples."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, is_dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from experiments.common.meters import Peak
from experiments.data.bos import Bos, bos_id, with_bos, without_bos
from experiments.data.text import windows
from experiments.models.source import LoadedModel
from sinq import CompressionReport
from sinq.common.named import Named
from sinq.common.options import check
from sinq.common.progress import Progress
from sinq.model.language_model import Predicts

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TRIAL_TOKENS = 8
SUITABLE = {Predicts.next_token: "default", Predicts.masked_tokens: "encoder"}
"""Choice of evaluations for each kind of model."""
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EvaluationContext:
    """A compressed model, the dense model it is measured against, and the text it is measured on."""

    model: "PreTrainedModel"
    """The compressed model, or the dense model itself when there is no compression."""
    loaded: LoadedModel
    """The dense model, its tokenizer and facts."""
    tokens: Tensor
    """The evaluation text, int64 (tokens,)."""
    report: CompressionReport
    device: torch.device
    progress: Progress
    quantize_peak: Peak | None = None
    """Peak memory during compression; None for a dense model."""

    @property
    def is_dense(self) -> bool:
        return self.model is self.loaded.model

    def windows(self, option: str, seqlen: int, limit: int | None, bos: Bos = Bos.first) -> Tensor:
        """Return the windows (n, seqlen) to measure: at most the context long, and at most all of the text.

        A window that is shorter than asked for, and fewer of them, are a line of the log; rows have the
        numbers.

        Args:
            option: the name of the evaluation's options, for messages.

        Raises:
            ValueError: the text is shorter than one window, or there is no BOS.
        """
        length = min(seqlen, self.loaded.context)
        if bos is Bos.first:
            chosen = windows(self.tokens, length, limit)
        else:
            first = bos_id(self.loaded.tokenizer, f"{option}.bos")
            chosen = with_bos(windows(without_bos(self.tokens, first), length - 1, limit), first)
        if length < seqlen:
            log.info("%s: windows of %d tokens, the model's context, not %d", option, length, seqlen)
        if limit is not None and len(chosen) < limit:
            log.info("%s: the text has %d windows of %d tokens, not %d", option, len(chosen), length, limit)
        return chosen


@contextmanager
def tried(name: str, context: EvaluationContext) -> Iterator[None]:
    """Turn an error of the dense model's code, within the context, into one that names the evaluation.

    `Evaluation.check` makes the evaluation's calls in it on `TRIAL_TOKENS` tokens.

    Raises:
        ValueError: the model's code raised an error.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, TypeError, ValueError, AttributeError, LookupError) as error:
        reason = (str(error).strip().splitlines() or [""])[0]
        raise ValueError(
            f"evaluation.{name} cannot be made of {type(context.loaded.model).__name__}:"
            f" {type(error).__name__}: {reason}. Leave it out (~evaluation.{name})"
        ) from error


@dataclass(frozen=True)
class Measurement:
    """Result of an evaluation."""

    metrics: dict[str, Any]
    """Named numbers and facts, nested."""
    samples: dict[str, Any] = field(default_factory=dict)
    """Raw measurements, kept in the row."""


class Evaluation(Named, ABC):
    """A measurement of a model.

    Raises:
        ValueError: an option is not finite, or not of its type.
    """

    predicts: ClassVar[Predicts | None] = Predicts.next_token
    """Kind of the models that are measured; None for all."""

    def __post_init__(self) -> None:
        if is_dataclass(self):
            check(self, f"evaluation.{self.name}")

    def require_fitting(self, context: EvaluationContext) -> None:
        """Raise `ValueError` if the model is of another kind than the evaluation measures."""
        found = context.loaded.predicts
        if self.predicts is not None and self.predicts is not found:
            kind = type(context.loaded.model).__name__
            raise ValueError(
                f"evaluation.{self.name} needs a model that predicts {self.predicts.value}, and {kind}"
                f" predicts {found.value}; use evaluation={SUITABLE[found]}, or leave it out"
                f" (~evaluation.{self.name})"
            )

    def content(self) -> dict[str, Any]:
        """Return hashes of everything the numbers depend on besides the options; part of a run's identity.

        Raises:
            ValueError: the content cannot be read.
        """
        return {}

    def check(self, context: EvaluationContext) -> None:
        """Raise `ValueError` before any long work if the model cannot be measured with these options."""

    @abstractmethod
    def measure(self, context: EvaluationContext) -> Measurement:
        """Return the metrics and samples of `context.model`."""

    def against_dense(self, compressed: Measurement, dense: Measurement) -> dict[str, Any]:
        """Return metrics of a compressed model that need the dense model's measurement too."""
        return {}
