"""Timing contenders in turn.

Every contender works once per round, and each round begins with another one, so that a machine whose speed drifts slows all alike, and
nobody always runs on the caches somebody else left. What counts is the ratio of medians within one run; every sample is kept.

The first round warms up: what it takes, compilation included, is reported apart and is in no median. Work in this process is timed by
the wall clock on a processor, by events on CUDA; work in another process (`peers.py`) times itself.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median, quantiles

import torch

from experiments.common.meters import seconds

REPLAYS = 20
"""Of a CUDA graph in one sample: one alone is shorter than what an event can resolve."""


@dataclass(frozen=True)
class Implementation:
    """Somebody who does a case's work."""

    name: str
    seconds: Callable[[], float]
    """Does the work once; the seconds it took."""
    nbytes: int
    """That must move between memory and processor: what is read and written, once."""
    kernel: str = "torch"
    peer: str | None = None
    """The name of the contender this one is to be compared with, besides the case's baseline."""
    is_peer: bool = False
    """Whether it is somebody else's code."""


@dataclass(frozen=True)
class Skipped:
    """Somebody who cannot take part, and why."""

    name: str
    reason: str


class PeerError(ValueError):
    """Another package could not be run; the message says why."""


@dataclass(frozen=True)
class Timing:
    """What a contender took."""

    contender: Implementation
    first_seconds: float
    samples: tuple[float, ...]
    """Seconds, one per counted round."""

    @property
    def median(self) -> float:
        """Seconds."""
        return median(self.samples)

    @property
    def quartiles(self) -> tuple[float, float]:
        """Seconds that a quarter and three quarters of the samples stay below; of one sample, itself."""
        if len(self.samples) == 1:
            return self.samples[0], self.samples[0]
        low, _, high = quantiles(self.samples, n=4, method="inclusive")
        return low, high


def measure(contenders: Sequence[Implementation], rounds: int) -> tuple[list[Timing], list[Skipped]]:
    """Time contenders in turn: one round to warm up, then `rounds` that count.

    Returns:
        timings in the order given, and peers whose first call failed.
    """
    first, failed = _first_calls(contenders)
    fit = [contender for contender in contenders if contender.name in first]
    samples: dict[str, list[float]] = {contender.name: [] for contender in fit}
    for number in range(rounds):
        start = number % max(1, len(fit))
        for contender in fit[start:] + fit[:start]:
            samples[contender.name].append(contender.seconds())
    return [Timing(one, first[one.name], tuple(samples[one.name])) for one in fit], failed


def _first_calls(contenders: Sequence[Implementation]) -> tuple[dict[str, float], list[Skipped]]:
    first, failed = {}, []
    for contender in contenders:
        try:
            first[contender.name] = contender.seconds()
        except PeerError as error:
            failed.append(Skipped(contender.name, str(error)))
    return first, failed


def clocked(work: Callable[[], object], device: torch.device) -> Callable[[], float]:
    """A piece of work as a contender does it: once, returning seconds."""
    return partial(_event_seconds, work) if device.type == "cuda" else partial(seconds, work, device)


def graphed(work: Callable[[], object], device: torch.device) -> Callable[[], float]:
    """As `clocked`; on CUDA the work is recorded as a graph in the first call, so that launches from Python cost nothing."""
    return _Graphed(work) if device.type == "cuda" else clocked(work, device)


def _event_seconds(work: Callable[[], object]) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    work()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000


class _Graphed:
    """Work, recorded when it is first called for."""

    def __init__(self, work: Callable[[], object]) -> None:
        self.work = work
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self) -> float:
        if self.graph is None:
            return self._record()
        return _event_seconds(self._replay) / REPLAYS

    def _record(self) -> float:
        taken = _event_seconds(
            self.work
        )  # compiles and tunes, which may not happen while a graph is recorded
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.work()
        return taken

    def _replay(self) -> None:
        assert self.graph is not None
        for _ in range(REPLAYS):
            self.graph.replay()
