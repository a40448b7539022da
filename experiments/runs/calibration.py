"""Calibration: the windows of text for methods that need statistics, always from a text's calibration part.

`sequential=false` takes all statistics from the dense model. Then they depend only on the model and these
windows, and are kept in the cache (`statistics/`, four bytes for each entry of a Hessian: 400 MB for the
embedded model) for every run that needs the same.
"""

import hashlib
import logging
from abc import ABC, abstractmethod
from dataclasses import dataclass, is_dataclass
from typing import Any, ClassVar

import psutil
from torch import Tensor

from experiments.common.cache import key
from experiments.common.tensor_folder import TensorFolder
from experiments.data.bos import Bos, bos_id, with_bos
from experiments.data.draw import Draw, Drawn
from experiments.data.text import Text
from experiments.models.source import LoadedModel
from sinq import Calibration
from sinq.common.named import Named, described
from sinq.common.options import SEED, check, whole
from sinq.common.progress import Progress, silent

log = logging.getLogger(__name__)

TOKEN_BYTES = 16
"""Bytes of a token, and of the number that decides it."""
FORMAT = 1
"""Version of what is stored of a statistic; raise it with every change, so that old files are not read."""


class CalibrationSource(Named, ABC):
    """Source of a method's statistics."""

    def __post_init__(self) -> None:
        if is_dataclass(self):
            check(self, "calibration")

    @abstractmethod
    def load(self, loaded: LoadedModel, progress: Progress = silent) -> Calibration | None:
        """Return the calibration for `Method.compress`, or None."""

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """Return the facts that decide the statistics, as plain JSON values."""


@dataclass(frozen=True)
class NoCalibration(CalibrationSource):
    """No calibration: methods that need statistics refuse to run."""

    name: ClassVar[str] = "none"

    def load(self, loaded: LoadedModel, progress: Progress = silent) -> None:
        return None

    def identity(self) -> dict[str, Any]:
        return {}


@dataclass(frozen=True)
class CalibrationText(CalibrationSource):
    """Windows at random positions of a text's calibration part (`experiments/data/draw.py`)."""

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
    bos: Bos = Bos.first
    """The windows that begin with the token of beginning: `first`, as the tokenizer does, or `each`."""

    def __post_init__(self) -> None:
        check(self, "calibration", samples=whole(1), seqlen=whole(1), seed=SEED)

    def load(self, loaded: LoadedModel, progress: Progress = silent) -> Calibration:
        """Return the windows, with a store of statistics if these are the dense model's.

        Raises:
            ValueError: the text is shorter than one window, or far too short for so many.
        """
        drawn = self._drawn(loaded, fitting(self.seqlen, loaded))
        return calibration_on(drawn, loaded, self.sequential)

    def _drawn(self, loaded: LoadedModel, seqlen: int) -> Drawn:
        passage = self.text.calibration()
        if self.bos is Bos.first:
            return Draw(self.samples, seqlen, self.seed).of(passage, loaded.tokenizer, loaded.tokenizer_hash)
        first = bos_id(loaded.tokenizer, "calibration.bos")
        draw = Draw(self.samples, max(1, seqlen - 1), self.seed)
        drawn = draw.of(passage, loaded.tokenizer, loaded.tokenizer_hash)
        return Drawn(with_bos(drawn.tokens, first), drawn.facts | {"bos": "each window"})

    def identity(self) -> dict[str, Any]:
        return described(self) | {"text": self.text.identity("calibration")}


def fitting(seqlen: int, loaded: LoadedModel) -> int:
    """Return the length of windows, at most the model's context; a shorter one is logged."""
    if loaded.context < seqlen:
        log.info("calibration: windows of %d tokens, the model's context, not %d", loaded.context, seqlen)
    return min(seqlen, loaded.context)


def require_memory(windows: int, seqlen: int, loaded: LoadedModel) -> None:
    """Refuse windows whose hidden states, all kept between two blocks, do not fit into the memory.

    Raises:
        ValueError: they take more than is free; the message says how many would fit.
    """
    if loaded.model.device.type != "cpu":
        return
    config: Any = loaded.model.config.get_text_config()
    window = seqlen * (getattr(config, "hidden_size", 1) * loaded.model.dtype.itemsize + TOKEN_BYTES)
    free = psutil.virtual_memory().available
    if windows * window > free:
        raise ValueError(
            f"calibration.samples={windows} windows of {seqlen} tokens take {windows * window / 1e9:.3g} GB,"
            f" and {free / 1e9:.3g} GB of memory are free; use calibration.samples={free // window} or fewer,"
            " or a smaller calibration.seqlen"
        )


def calibration_on(drawn: Drawn, loaded: LoadedModel, sequential: bool) -> Calibration:
    """Return the calibration on windows, with a store of statistics if these are the dense model's."""
    loaded.refuse_unknown(drawn.tokens)
    windows, seqlen = drawn.tokens.shape
    require_memory(windows, seqlen, loaded)
    store = None if sequential else TensorFolder(f"statistics/{_made_from(loaded, drawn.tokens)}")
    return Calibration(drawn.tokens, sequential, store, drawn.facts)


def _made_from(loaded: LoadedModel, tokens: Tensor) -> str:
    """Return a hash of model, number format, device and windows."""
    return key(
        format=FORMAT,
        model={**loaded.identity, "commit": loaded.commit, "dtype": str(loaded.model.dtype)},
        device=loaded.model.device.type,
        tokens=hashlib.sha256(tokens.contiguous().numpy().tobytes()).hexdigest(),
        shape=list(tokens.shape),
    )
