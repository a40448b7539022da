"""Alternate timing of contenders.

Every contender works once per round, and each round begins with another contender. So a machine whose speed
drifts slows all alike, and no contender always finds the same caches. The result is the ratio of medians
within one run; every sample is kept.

The first round warms up: its time, compilation included, is reported apart and is in no median. Work in this
process is timed by the wall clock on a CPU, by events on CUDA; work in another process (`peers/`) times
itself.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median, quantiles

import torch

from experiments.common.meters import seconds

REPLAYS = 20
"""Replays of a CUDA graph per sample: a single one is shorter than the resolution of an event."""


@dataclass(frozen=True)
class Implementation:
    """An implementation of a case's work."""

    name: str
    seconds: Callable[[], float]
    """Function that does the work once and returns the seconds it took."""
    nbytes: int
    """Bytes that must move between memory and processor: inputs and results, each once."""
    kernel: str = "torch"
    peer: str | None = None
    """Name of the contender to compare with, besides the case's baseline."""
    is_peer: bool = False
    """True for code of other projects."""
    bit_operations: int | None = None
    """Products of one bit by one bit; None where numbers are multiplied."""


@dataclass(frozen=True)
class Skipped:
    """A contender that cannot take part, and the reason."""

    name: str
    reason: str


class PeerError(ValueError):
    """Error of another package that could not be run; the message says why."""


@dataclass(frozen=True)
class Timing:
    """Times of a contender."""

    contender: Implementation
    first_seconds: float
    samples: tuple[float, ...]
    """Seconds, one per counted round."""

    @property
    def median(self) -> float:
        """Return the median in seconds."""
        return median(self.samples)

    @property
    def quartiles(self) -> tuple[float, float]:
        """Return the first and third quartile in seconds; with one sample, that sample twice."""
        if len(self.samples) == 1:
            return self.samples[0], self.samples[0]
        low, _, high = quantiles(self.samples, n=4, method="inclusive")
        return low, high


def measure(contenders: Sequence[Implementation], rounds: int) -> tuple[list[Timing], list[Skipped]]:
    """Time contenders alternately: one round to warm up, then `rounds` that count.

    Returns:
        timings in the order of the contenders, and peers whose first call failed.
    """
    first, failed = _first_calls(contenders)
    running = [contender for contender in contenders if contender.name in first]
    samples: dict[str, list[float]] = {contender.name: [] for contender in running}
    for number in range(rounds):
        start = number % max(1, len(running))
        for contender in running[start:] + running[:start]:
            samples[contender.name].append(contender.seconds())
    return [Timing(each, first[each.name], tuple(samples[each.name])) for each in running], failed


def _first_calls(contenders: Sequence[Implementation]) -> tuple[dict[str, float], list[Skipped]]:
    first, failed = {}, []
    for contender in contenders:
        try:
            first[contender.name] = contender.seconds()
        except PeerError as error:
            failed.append(Skipped(contender.name, str(error)))
    return first, failed


def clocked(work: Callable[[], object], device: torch.device) -> Callable[[], float]:
    """Return a function that does the work once and returns the seconds it took."""
    return partial(_event_seconds, work) if device.type == "cuda" else partial(seconds, work, device)


def graphed(work: Callable[[], object], device: torch.device) -> Callable[[], float]:
    """Return a function like that of `clocked`; on CUDA it replays a graph, recorded in the first call.

    So launches from Python cost nothing.
    """
    return _Graphed(work) if device.type == "cuda" else clocked(work, device)


def _event_seconds(work: Callable[[], object]) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    work()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000


class _Graphed:
    """Work that is recorded as a CUDA graph in the first call."""

    def __init__(self, work: Callable[[], object]) -> None:
        self.work = work
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self) -> float:
        if self.graph is None:
            return self._record()
        return _event_seconds(self._replay) / REPLAYS

    def _record(self) -> float:
        taken = _event_seconds(self.work)  # compiles and tunes, which is illegal during recording
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.work()
        return taken

    def _replay(self) -> None:
        assert self.graph is not None
        for _ in range(REPLAYS):
            self.graph.replay()
