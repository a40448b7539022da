"""Time, measured so that work queued on an accelerator is counted where it belongs."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Clock:
    """Seconds measured by `timed`, over all pieces of work it was given for."""

    seconds = 0.0


@contextmanager
def timed(device: torch.device, clock: Clock | None = None) -> Iterator[Clock]:
    """Measure the wall-clock time of a piece of work, with the device's queue drained at both ends.

    Args:
        clock: the time is added to it; by default to a new one.
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
