"""Wall-clock time that includes work queued on an accelerator."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Clock:
    """Sum of the seconds that `timed` measured with this clock."""

    seconds = 0.0


@contextmanager
def timed(device: torch.device, clock: Clock | None = None) -> Iterator[Clock]:
    """Measure the wall-clock time of a piece of work, in seconds; the device's queue is drained at both ends.

    Args:
        clock: receives the time in addition to its previous time; by default a new one.
    """
    clock = clock or Clock()
    _drain(device)
    start = time.perf_counter()
    yield clock
    _drain(device)
    clock.seconds += time.perf_counter() - start


def _drain(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
