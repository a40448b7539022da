"""Calibration: the windows of text that methods with a statistic may look at. Always from a text's calibration part."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from experiments.models import LoadedModel
from experiments.text import Text, tokenize


class Calibration(ABC):
    """Where a method's statistics come from."""

    @abstractmethod
    def windows(self, loaded: LoadedModel) -> Tensor | None:
        """Token ids (samples, seqlen), or None."""

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """What decides the statistics."""


@dataclass(frozen=True)
class NoCalibration(Calibration):
    """None: methods that need statistics refuse to run."""

    def windows(self, loaded: LoadedModel) -> None:
        return None

    def identity(self) -> dict[str, Any]:
        return {}


@dataclass(frozen=True)
class CalibrationText(Calibration):
    """Windows at random places of a text's calibration part."""

    text: Text
    samples: int = 128
    """Number of windows."""
    seqlen: int = 2048
    """Tokens of a window."""
    seed: int = 0

    def __post_init__(self) -> None:
        for option in ("samples", "seqlen"):
            if getattr(self, option) < 1:
                raise ValueError(f"calibration.{option}={getattr(self, option)} is not possible; it must be ≥ 1")

    def windows(self, loaded: LoadedModel) -> Tensor:
        tokens = tokenize(self.text.calibration(), loaded.tokenizer, loaded.tokenizer_hash)
        seqlen = min(self.seqlen, loaded.context)
        if len(tokens) < seqlen:
            raise ValueError(f"the calibration text has {len(tokens)} tokens, fewer than calibration.seqlen={seqlen}")
        starts = torch.randint(len(tokens) - seqlen + 1, (self.samples,), generator=torch.Generator().manual_seed(self.seed))
        return torch.stack([tokens[start : start + seqlen] for start in starts.tolist()])

    def identity(self) -> dict[str, Any]:
        return {"text": self.text.identity("calibration"), "samples": self.samples, "seqlen": self.seqlen, "seed": self.seed}
