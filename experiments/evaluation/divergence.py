"""Distance of a compressed model's predictions from the dense model's: KL divergence and flip rate.

The flip rate is the share of positions whose most probable token changes. Perplexity asks whether a model
predicts the text; the distance asks whether it still predicts what the dense model did. It depends less on
the choice of text, and distinguishes models of equal perplexity, because it is measured at every position.

Keeping all log-probabilities of the dense model would take 400 MB for a window of 2,048 tokens and 49,152
words. For each position a `Reference` keeps the k most probable tokens, their log-probabilities in float16
and the probability of all others together: six bytes for each of the k. It is a file in the cache, written
during the dense model's pass over the text and read a window at a time.

The divergence is then over k + 1 outcomes: the k tokens, and any other token. Merging outcomes never makes it
larger (the data processing inequality), so it is a lower bound of the exact KL(dense ‖ compressed), and equal
to it where k is the vocabulary. float16 rounds away about 1e-7 nats: less than that is zero. Changes of the
most probable token are exact. Of equally probable tokens the first counts, as argmax counts, in both models:
so a model has no flips from itself, and a tie counts no differently from other evaluations. In bfloat16 ties
are frequent, so positions with one are counted. Predictions that are not numbers have no distance: NaN.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any, Self

import numpy as np
import torch
from torch import Tensor

from experiments.common.cache import Entry, key
from experiments.evaluation.base import EvaluationContext
from experiments.evaluation.logits import Sink

FORMAT = 2
"""Version of the file's layout; raise it with every change, so that old files are not read."""
TINY = torch.finfo(torch.float32).tiny


@dataclass(frozen=True)
class Expected:
    """Predictions of the dense model at consecutive positions."""

    tokens: Tensor
    """int64 (positions, k), the most probable first."""
    log_probabilities: Tensor
    """float64 (positions, k + 1), of these tokens, then of all others together; a distribution."""
    tied: Tensor
    """bool (positions,), True where another token is as probable as the first."""

    def __getitem__(self, positions: slice) -> Self:
        return type(self)(self.tokens[positions], self.log_probabilities[positions], self.tied[positions])


def flips(compressed: Tensor, dense: Expected) -> tuple[Tensor, Tensor]:
    """Return whether the most probable token changed, and whether it is tied in one of the models.

    Both are float64 (positions,): 1, 0, or NaN where a prediction is not a number. Of equally probable tokens
    the first is the most probable one.

    Args:
        compressed: log-probabilities (positions, vocabulary) of the compressed model.
        dense: predictions of the dense model at the same positions.
    """
    token = compressed.argmax(-1, keepdim=True)
    highest = compressed.gather(1, token)
    defined = ~(highest.isnan()[:, 0] | dense.log_probabilities.isnan().any(-1))
    changed = (token != dense.tokens[:, :1])[:, 0]
    either = dense.tied | tied(compressed)
    return changed.double().where(defined, torch.nan), either.double().where(defined, torch.nan)


def tied(log_probabilities: Tensor) -> Tensor:
    """Return whether another token is as probable as the most probable one, bool (positions,)."""
    first, *second = log_probabilities.topk(min(2, log_probabilities.shape[-1])).values.unbind(-1)
    return first == second[0] if second else torch.zeros_like(first, dtype=torch.bool)


def divergence(compressed: Tensor, dense: Expected) -> Tensor:
    """Return KL(dense ‖ compressed) in nats, float64 (positions,); NaN where a prediction is not a number.

    Args:
        compressed: log-probabilities (positions, vocabulary) of the compressed model; overwritten.
        dense: predictions of the dense model at the same positions.
    """
    kept = compressed.gather(1, dense.tokens)
    # The others are summed: 1 − Σ kept cancels where it is small.
    others = compressed.exp_().scatter_(1, dense.tokens, 0).sum(-1, keepdim=True)
    merged = torch.cat([kept.double(), others.double().clamp_min(TINY).log()], dim=1).log_softmax(-1)
    expected = dense.log_probabilities
    terms = expected.exp() * (expected - merged)
    return terms.where(expected != -torch.inf, 0).sum(-1)


class Distance:
    """KL divergence and flip rate of one window, summed chunk by chunk."""

    def __init__(self, dense: Expected) -> None:
        self._dense = dense
        self._positions, self._kl, self._flips, self._ties = 0, 0.0, 0.0, 0.0

    def add(self, compressed: Tensor) -> None:
        """Add the log-probabilities (positions, vocabulary) of the next positions; they are overwritten."""
        stop = self._positions + len(compressed)
        dense = self._dense[self._positions : stop]
        flipped, tied = flips(compressed, dense)
        self._flips += flipped.sum().item()
        self._ties += tied.sum().item()
        self._kl += divergence(compressed, dense).sum().item()
        self._positions = stop

    @property
    def mean_kl(self) -> float:
        """Mean KL divergence in nats per token."""
        return self._kl / self._positions

    @property
    def flip_rate(self) -> float:
        """Share of positions whose most probable token changed."""
        return self._flips / self._positions

    @property
    def tie_rate(self) -> float:
        """Share of positions where the most probable token is tied in one of the models."""
        return self._ties / self._positions


def entry_of(context: EvaluationContext, windows: Tensor, suffix: str, **made: Any) -> Entry:
    """Return the entry of the cache for something made of the dense model on windows, int64 (n, seqlen).

    Args:
        suffix: of the entry's name.
        made: what is made, as plain JSON values.
    """
    loaded = context.loaded
    content = {
        "model": {**loaded.identity, "commit": loaded.commit, "dtype": str(loaded.model.dtype)},
        "tokenizer": loaded.tokenizer_hash,
        "tokens": hashlib.sha256(windows.contiguous().numpy().tobytes()).hexdigest(),
        "shape": list(windows.shape),
        "device": context.device.type,
    }
    return Entry("reference", f"{key(**content, **made)}{suffix}")


@dataclass(frozen=True)
class Reference:
    """The dense model's predictions on evaluation windows, in a file of the cache."""

    entry: Entry
    windows: int
    positions: int
    """Positions of each window: all of its tokens but the last."""
    top_k: int

    @classmethod
    def of(cls, context: EvaluationContext, windows: Tensor, top_k: int) -> Self:
        """Return the reference for these windows, int64 (n, seqlen).

        Its file is named by a hash of all that decides its content. k is the smaller of `top_k` and the
        vocabulary.
        """
        k = min(top_k, context.loaded.model.config.get_text_config().vocab_size)
        entry = entry_of(context, windows, ".npy", format=FORMAT, top_k=k)
        return cls(entry, windows.shape[0], windows.shape[1] - 1, k)

    @property
    def exists(self) -> bool:
        return self.entry.intact

    @property
    def _dtype(self) -> np.dtype[Any]:
        k = (self.top_k,)
        return np.dtype(
            [("tokens", "<i4", k), ("log_probabilities", "<f2", k), ("others", "<f4"), ("tied", "?")]
        )

    @contextmanager
    def create(self) -> Iterator[Sink]:
        """Yield a sink that writes log-probabilities (positions, vocabulary) to the file; it overwrites them.

        The file exists once the block succeeds. Two processes may write it at once: the last file stays, and
        both have the same content.
        """
        header = {
            "descr": np.lib.format.dtype_to_descr(self._dtype),
            "fortran_order": False,
            "shape": (self.windows, self.positions),
        }
        with self.entry.create() as file:
            np.lib.format.write_array_header_1_0(file, header)
            yield lambda log_probabilities: _write(file, log_probabilities, self._dtype)

    def window(self, number: int, device: torch.device) -> Expected:
        """Return the dense model's predictions in one window."""
        stored = np.load(self.entry.path, mmap_mode="r")[number]
        kept, others = (
            torch.from_numpy(stored[name].astype(np.float64)) for name in ("log_probabilities", "others")
        )
        # Normalized anew: the rounded probabilities do not add up to 1.
        log_probabilities = torch.cat([kept, others[:, None].log()], dim=1).log_softmax(-1)
        tokens = torch.from_numpy(stored["tokens"].astype(np.int64))
        tied = torch.from_numpy(stored["tied"].copy())
        return Expected(tokens.to(device), log_probabilities.to(device), tied.to(device))


def _write(file: IO[bytes], log_probabilities: Tensor, dtype: "np.dtype[Any]") -> None:
    """Append one record per position; `log_probabilities` are overwritten."""
    kept, tokens = log_probabilities.topk(dtype["tokens"].shape[0])
    also = tied(log_probabilities)
    tokens = _first_in_front(tokens, log_probabilities)
    others = log_probabilities.exp_().scatter_(1, tokens, 0).sum(-1)
    block = np.empty(len(tokens), dtype)
    columns = {"tokens": tokens, "log_probabilities": kept, "others": others, "tied": also}
    for name, value in columns.items():
        block[name] = value.cpu().numpy()
    file.write(block.tobytes())


def _first_in_front(tokens: Tensor, log_probabilities: Tensor) -> Tensor:
    """Return the most probable tokens with argmax's in front; topk has equally probable ones in any order."""
    first = log_probabilities.argmax(-1, keepdim=True)
    rest = tokens.where(tokens != first, tokens[:, :1])
    return torch.cat([first, rest[:, 1:]], dim=1)
