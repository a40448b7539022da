"""How far a compressed model's predictions are from the dense model's: KL divergence, and how often the most probable token changes.

Perplexity asks whether a model predicts the text; these ask whether it still predicts what the dense model did. They need no luck with
the text and tell apart models whose perplexities are equal, because both are measured at every position.

Keeping all log-probabilities of the dense model would take 400 MB for a window of 2,048 tokens and 49,152 words. A `Reference` keeps,
of each position, the k most probable tokens, their log-probabilities in float16 and the probability of all others together: six
bytes for each of the k. It is a file in the cache, written during the dense model's own pass over the text, read a window at a time.

The divergence is then that over k + 1 outcomes, the k tokens and "another one". Merging outcomes never makes it larger (the data
processing inequality), so this is a lower bound of the exact KL(dense ‖ compressed), and equal to it where k is the vocabulary.
float16 rounds away about 1e-7 nats: less than that is zero. Changes of the most probable token are exact.
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Self

import numpy as np
import torch
from torch import Tensor

from experiments.common.files import atomic_write
from experiments.common.paths import cache_dir
from experiments.evaluation.base import EvaluationContext
from experiments.evaluation.logits import LogProbSink

FORMAT = 1
"""To be raised when the file's layout changes, so that old files are not read."""
TINY = torch.finfo(torch.float32).tiny


@dataclass(frozen=True)
class Expected:
    """What the dense model said at consecutive positions."""

    tokens: Tensor
    """int64 (positions, k), the most probable first."""
    log_probabilities: Tensor
    """float64 (positions, k + 1): of these tokens, and of all others together. A distribution."""

    def __getitem__(self, positions: slice) -> Self:
        return type(self)(self.tokens[positions], self.log_probabilities[positions])


def divergence(own: Tensor, dense: Expected) -> tuple[Tensor, Tensor]:
    """KL(dense ‖ own) in nats, and whether the most probable token is another one; both (positions,).

    Of two equally probable tokens either counts as the most probable one.

    Args:
        own: log-probabilities (positions, vocabulary) of the compressed model; overwritten.
    """
    kept = own.gather(1, dense.tokens)
    flipped = kept[:, 0] < own.amax(-1)
    others = (
        own.exp_().scatter_(1, dense.tokens, 0).sum(-1, keepdim=True)
    )  # summed, not 1 − Σ kept, which cancels where it is small
    merged = torch.cat([kept.double(), others.double().clamp_min(TINY).log()], dim=1).log_softmax(-1)
    expected = dense.log_probabilities
    terms = expected.exp() * (expected - merged)
    return terms.where(expected > -torch.inf, 0).sum(-1), flipped


class Distance:
    """The divergence of one window, added up as its log-probabilities come along."""

    def __init__(self, dense: Expected) -> None:
        self._dense, self._positions = dense, 0
        self._kl, self._flips = 0.0, 0

    def add(self, own: Tensor) -> None:
        """Log-probabilities (positions, vocabulary) that follow those added before; overwritten."""
        kl, flipped = divergence(own, self._dense[self._positions : self._positions + len(own)])
        self._kl += kl.sum().item()
        self._flips += int(flipped.sum().item())
        self._positions += len(own)

    @property
    def mean_kl(self) -> float:
        """Nats per token."""
        return self._kl / self._positions

    @property
    def flip_rate(self) -> float:
        """Share of positions whose most probable token is another one."""
        return self._flips / self._positions


@dataclass(frozen=True)
class Reference:
    """The dense model's predictions on evaluation windows, in a file of the cache."""

    path: Path
    windows: int
    positions: int
    """Of each window: its tokens but the last."""
    top_k: int

    @classmethod
    def of(cls, subject: EvaluationContext, windows: Tensor, top_k: int) -> Self:
        """The one for these windows (n, seqlen), known by all that decides its content; k is the vocabulary where that is smaller."""
        loaded = subject.loaded
        k = min(top_k, loaded.model.config.get_text_config().vocab_size)
        content = {
            "format": FORMAT,
            "model": {**loaded.identity, "commit": loaded.commit, "dtype": str(loaded.model.dtype)},
            "tokenizer": loaded.tokenizer_hash,
            "tokens": hashlib.sha256(windows.contiguous().numpy().tobytes()).hexdigest(),
            "shape": list(windows.shape),
            "top_k": k,
            "device": subject.device.type,
        }
        key = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:24]
        return cls(cache_dir() / "reference" / f"{key}.npy", windows.shape[0], windows.shape[1] - 1, k)

    @property
    def exists(self) -> bool:
        return self.path.exists()

    @property
    def _dtype(self) -> np.dtype[Any]:
        return np.dtype(
            [("tokens", "<i4", (self.top_k,)), ("log_probabilities", "<f2", (self.top_k,)), ("others", "<f4")]
        )

    @contextmanager
    def create(self) -> Iterator[LogProbSink]:
        """Write the file: call what this gives with log-probabilities (positions, vocabulary), in order; they are overwritten.

        The file is there when the block ends well. Two processes may write it at once; the last one's stays, and they are the same.
        """
        header = {
            "descr": np.lib.format.dtype_to_descr(self._dtype),
            "fortran_order": False,
            "shape": (self.windows, self.positions),
        }
        with atomic_write(self.path) as file:
            np.lib.format.write_array_header_1_0(file, header)
            yield lambda log_probabilities: _write(file, log_probabilities, self._dtype)

    def window(self, number: int, device: torch.device) -> Expected:
        """What the dense model said in one window."""
        stored = np.load(self.path, mmap_mode="r")[number]
        kept, others = (
            torch.from_numpy(stored[name].astype(np.float64)) for name in ("log_probabilities", "others")
        )
        log_probabilities = torch.cat([kept, others[:, None].log()], dim=1).log_softmax(
            -1
        )  # rounded numbers do not add up to 1
        return Expected(
            torch.from_numpy(stored["tokens"].astype(np.int64)).to(device), log_probabilities.to(device)
        )


def _write(file: IO[bytes], log_probabilities: Tensor, dtype: "np.dtype[Any]") -> None:
    kept, tokens = log_probabilities.topk(dtype["tokens"].shape[0])
    others = log_probabilities.exp_().scatter_(1, tokens, 0).sum(-1)
    block = np.empty(len(tokens), dtype)
    for name, value in (("tokens", tokens), ("log_probabilities", kept), ("others", others)):
        block[name] = value.cpu().numpy()
    file.write(block.tobytes())
