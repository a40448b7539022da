"""Cases: a piece of work and the contenders that do it. The result is a plain dictionary, for table and plot.

    {suite, name, baseline, bytes_per_second, copy_samples, results: [...], absent: [{name, reason}]}

A result has these keys; times are in seconds, and ratios are the median over another time:

    name, kernel, is_peer, nbytes, first_seconds, samples, median, quartiles, floor_seconds
    ratio (the baseline's median), peer, peer_ratio (the peer's median), floor_ratio (floor_seconds)
    tokens_per_second, or None where the work has no tokens
    bit_operations, or None where numbers are multiplied
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from experiments.bench import floor
from experiments.bench.timing import Implementation, Skipped, Timing, measure

Result = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """A piece of work and its contenders.

    Raises:
        ValueError: two contenders have the same name, or the baseline is missing.
    """

    suite: str
    name: str
    contenders: Sequence[Implementation]
    baseline: str
    """Name of the contender that all others are compared with."""
    absent: Sequence[Skipped] = ()
    tokens: int | None = None
    """Tokens that the work processes; None where it has none."""

    def __post_init__(self) -> None:
        names = [contender.name for contender in self.contenders]
        if len(set(names)) < len(names) or self.baseline not in names:
            raise ValueError(
                f"{self.name}: contenders {names} must have different names, {self.baseline!r} among them"
            )


def run(case: Case, rounds: int, device: torch.device, copied: int = floor.COPIED) -> Result:
    """Time a case, and a copy of `copied` bytes for its floor; return the result as a dictionary."""
    with torch.no_grad():
        timings, failed = measure([floor.copy(device, copied), *case.contenders], rounds)
    copying, *others = timings
    speed = floor.bandwidth(copying)
    medians = {timing.contender.name: timing.median for timing in others}
    return {
        "suite": case.suite,
        "name": case.name,
        "baseline": case.baseline,
        "bytes_per_second": speed,
        "copy_samples": list(copying.samples),
        "results": [_result(timing, medians, case, speed) for timing in others],
        "absent": [asdict(absent) for absent in (*case.absent, *failed)],
    }


def _result(timing: Timing, medians: dict[str, float], case: Case, bytes_per_second: float) -> Result:
    contender, median = timing.contender, timing.median
    least = floor.floor_seconds(contender.nbytes, bytes_per_second)
    return {
        "name": contender.name,
        "kernel": contender.kernel,
        "is_peer": contender.is_peer,
        "nbytes": contender.nbytes,
        "first_seconds": timing.first_seconds,
        "samples": list(timing.samples),
        "median": median,
        "quartiles": list(timing.quartiles),
        "ratio": median / medians[case.baseline],
        "peer": contender.peer if contender.peer in medians else None,
        "peer_ratio": median / medians[contender.peer] if contender.peer in medians else None,
        "floor_seconds": least,
        "floor_ratio": median / least,
        "tokens_per_second": None if case.tokens is None else case.tokens / median,
        "bit_operations": contender.bit_operations,
    }
