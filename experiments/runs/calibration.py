"""Calibration: the windows of text that methods with a statistic may look at. Always from a text's calibration part.

`sequential=false` takes all statistics from the dense model. They then depend on the model and these windows only, and are kept in the
cache (`statistics/`, four bytes for each entry of a Hessian: 400 MB for the embedded model), where every run that asks for the same
finds them.
"""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import load_file
from safetensors.torch import save as as_bytes
from torch import Tensor

from experiments.common.files import atomic_write
from experiments.common.paths import cache_dir
from experiments.data.text import Text, tokenize
from experiments.models.source import LoadedModel
from sinq import Calibration
from sinq.common.named import Named, described


class CalibrationSource(Named, ABC):
    """Where a method's statistics come from."""

    @abstractmethod
    def load(self, loaded: LoadedModel) -> Calibration | None:
        """What `Method.compress` takes, or None."""

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """What decides the statistics."""


@dataclass(frozen=True)
class NoCalibration(CalibrationSource):
    """None: methods that need statistics refuse to run."""

    name: ClassVar[str] = "none"

    def load(self, loaded: LoadedModel) -> None:
        return None

    def identity(self) -> dict[str, Any]:
        return {}


@dataclass(frozen=True)
class CalibrationText(CalibrationSource):
    """Windows at random places of a text's calibration part."""

    name: ClassVar[str] = "text"

    text: Text
    samples: int = 128
    """Number of windows."""
    seqlen: int = 2048
    """Tokens of a window."""
    seed: int = 0
    sequential: bool = True
    """Take each block's statistics behind the compressed blocks before it; false: of the dense model, kept in the cache."""

    def __post_init__(self) -> None:
        for option in ("samples", "seqlen"):
            if getattr(self, option) < 1:
                raise ValueError(
                    f"calibration.{option}={getattr(self, option)} is not possible; it must be ≥ 1"
                )

    def load(self, loaded: LoadedModel) -> Calibration:
        tokens = self._windows(
            tokenize(self.text.calibration(), loaded.tokenizer, loaded.tokenizer_hash), loaded.context
        )
        return Calibration(
            tokens, self.sequential, None if self.sequential else StatisticsFolder(_folder(loaded, tokens))
        )

    def _windows(self, tokens: Tensor, context: int) -> Tensor:
        """(samples, seqlen), at random places."""
        seqlen = min(self.seqlen, context)
        if len(tokens) < seqlen:
            raise ValueError(
                f"the calibration text has {len(tokens)} tokens, fewer than calibration.seqlen={seqlen}"
            )
        starts = torch.randint(
            len(tokens) - seqlen + 1, (self.samples,), generator=torch.Generator().manual_seed(self.seed)
        )
        return torch.stack([tokens[start : start + seqlen] for start in starts.tolist()])

    def identity(self) -> dict[str, Any]:
        return described(self) | {"text": self.text.identity("calibration")}


@dataclass(frozen=True)
class StatisticsFolder:
    """A `sinq.calibration.data.StatisticStore`: one safetensors file for each statistic."""

    folder: Path

    def _file(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"

    def __contains__(self, name: object) -> bool:
        return self._file(str(name)).exists()

    def __getitem__(self, name: str) -> Mapping[str, Tensor]:
        return load_file(self._file(name))

    def __setitem__(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        with atomic_write(self._file(name)) as out:
            out.write(as_bytes(dict(tensors)))


def _folder(loaded: LoadedModel, tokens: Tensor) -> Path:
    """By content: the model as it computes here, and the windows."""
    model = {
        **loaded.identity,
        "commit": loaded.commit,
        "dtype": str(loaded.model.dtype),
        "device": loaded.model.device.type,
    }
    content = json.dumps(model, sort_keys=True).encode() + tokens.numpy().tobytes()
    return cache_dir() / "statistics" / hashlib.sha256(content).hexdigest()[:24]
