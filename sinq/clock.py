"""Time, measured so that work queued on an accelerator is counted where it belongs."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Clock:
    """Seconds measured by `timed`."""

    seconds = 0.0


@contextmanager
def timed(device: torch.device) -> Iterator[Clock]:
    """Wall-clock time of a piece of work, with the device's queue drained at both ends."""
    clock = Clock()
    _drain(device)
    start = time.perf_counter()
    yield clock
    _drain(device)
    clock.seconds = time.perf_counter() - start


def _drain(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
