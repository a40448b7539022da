"""Meters of peak memory and time, on a CPU and on CUDA.

`tests/experiments/evaluation/test_evaluation.py` checks them on work of known size.
"""

import ctypes
import gc
import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from sinq.common.timing import timed

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass
class Peak:
    """Peak memory of a block of code, filled in when the block ends."""

    increase_bytes: int = 0
    """Highest memory in use during the block, less the memory in use at its start."""
    source: str = ""
    """Name of the counter that was read."""


@contextmanager
def peak_memory(device: torch.device) -> Iterator[Peak]:
    """Measure the peak memory of a block of code: the allocator's on CUDA, the resident set's on a CPU."""
    peak = Peak()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield peak
        peak.increase_bytes = torch.cuda.max_memory_allocated(device) - before
        peak.source = "torch.cuda.max_memory_allocated"
        return
    _return_free_memory()
    read, peak.source = _resident_peak()
    before = read()
    yield peak
    peak.increase_bytes = max(0, read() - before)


def _return_free_memory() -> None:
    """Return freed memory to the system: kept by malloc, it would hide what a block allocates."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def _resident_peak() -> tuple[Callable[[], int], str]:
    """Restart the process's high-water mark where possible; return its reader and the reader's name."""
    try:
        CLEAR.write_text("5")  # Linux: restarts the high-water mark
    except OSError:
        return _lifetime_peak, "ru_maxrss (since the process began: a lower bound)"
    return _high_water_mark, "VmHWM"


def restart_peak(device: torch.device) -> None:
    """Restart the count of `process_peak`, where the system allows it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        _resident_peak()


def process_peak(device: torch.device) -> int:
    """Return the most bytes in use at once since `restart_peak`, or since `peak_memory` began.

    They are the resident bytes of this process on a CPU, and those of torch's allocator on CUDA.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return _high_water_mark() if STATUS.exists() else _lifetime_peak()


def _lifetime_peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _high_water_mark() -> int:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Return the wall-clock seconds of a call, with the device's queue drained at both ends."""
    with timed(device) as clock:
        work()
    return clock.seconds
