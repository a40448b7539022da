"""Calibration: the windows of text for methods that need statistics, always from a text's calibration part.

`sequential=false` takes all statistics from the dense model. Then they depend only on the model and these
windows, and are kept in the cache (`statistics/`, four bytes for each entry of a Hessian: 400 MB for the
embedded model) for every run that needs the same.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from safetensors.torch import load_file
from safetensors.torch import save as as_bytes
from torch import Tensor

from experiments.common.cache import Entry, key
from experiments.data.text import Text, tokenize
from experiments.models.source import LoadedModel
from sinq import Calibration
from sinq.common.named import Named, described

FORMAT = 1
"""Version of what is stored of a statistic; raise it with every change, so that old files are not read."""


class CalibrationSource(Named, ABC):
    """Source of a method's statistics."""

    @abstractmethod
    def load(self, loaded: LoadedModel) -> Calibration | None:
        """Return the calibration for `Method.compress`, or None."""

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """Return the facts that decide the statistics, as plain JSON values."""


@dataclass(frozen=True)
class NoCalibration(CalibrationSource):
    """No calibration: methods that need statistics refuse to run."""

    name: ClassVar[str] = "none"

    def load(self, loaded: LoadedModel) -> None:
        return None

    def identity(self) -> dict[str, Any]:
        return {}


@dataclass(frozen=True)
class CalibrationText(CalibrationSource):
    """Windows at random positions of a text's calibration part."""

    name: ClassVar[str] = "text"

    text: Text
    samples: int = 128
    """Number of windows."""
    seqlen: int = 2048
    """Tokens of a window; at most the model's context."""
    seed: int = 0
    sequential: bool = True
    """Take each block's statistics behind the compressed previous blocks.

    False: take them from the dense model, and keep them in the cache.
    """

    def __post_init__(self) -> None:
        for option in ("samples", "seqlen"):
            if getattr(self, option) < 1:
                raise ValueError(
                    f"calibration.{option}={getattr(self, option)} is not possible; it must be ≥ 1"
                )

    def load(self, loaded: LoadedModel) -> Calibration:
        """Return the windows, with a store of statistics if these are the dense model's.

        Raises:
            ValueError: the text is shorter than one window.
        """
        text = tokenize(self.text.calibration(), loaded.tokenizer, loaded.tokenizer_hash)
        tokens = self._windows(text, loaded.context)
        store = None if self.sequential else StatisticsFolder(_made_from(loaded, tokens))
        return Calibration(tokens, self.sequential, store)

    def _windows(self, tokens: Tensor, context: int) -> Tensor:
        """Return windows (samples, seqlen) at random positions of the text."""
        seqlen = min(self.seqlen, context)
        if len(tokens) < seqlen:
            raise ValueError(
                f"the calibration text has {len(tokens)} tokens, fewer than calibration.seqlen={seqlen}"
            )
        generator = torch.Generator().manual_seed(self.seed)
        starts = torch.randint(len(tokens) - seqlen + 1, (self.samples,), generator=generator)
        return torch.stack([tokens[start : start + seqlen] for start in starts.tolist()])

    def identity(self) -> dict[str, Any]:
        return described(self) | {"text": self.text.identity("calibration")}


@dataclass(frozen=True)
class StatisticsFolder:
    """A `sinq.calibration.data.StatisticStore`: one safetensors file in the cache for each statistic."""

    made_from: str
    """Folder of these statistics in the cache's folder of statistics."""

    def _entry(self, name: object) -> Entry:
        return Entry(f"statistics/{self.made_from}", f"{name}.safetensors")

    def __contains__(self, name: object) -> bool:
        return self._entry(name).intact

    def __getitem__(self, name: str) -> Mapping[str, Tensor]:
        return load_file(self._entry(name).path)

    def __setitem__(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        self._entry(name).write(as_bytes(dict(tensors)))


def _made_from(loaded: LoadedModel, tokens: Tensor) -> str:
    """Return a hash of model, number format, device and windows."""
    return key(
        format=FORMAT,
        model={**loaded.identity, "commit": loaded.commit, "dtype": str(loaded.model.dtype)},
        device=loaded.model.device.type,
        tokens=hashlib.sha256(tokens.contiguous().numpy().tobytes()).hexdigest(),
        shape=list(tokens.shape),
    )
