"""Rulers: peak memory and time, on a CPU and on CUDA. `tests/experiments/test_evaluation.py` measures things of known size with them."""

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
    """Filled in when the block it measures ends."""

    increase_bytes: int = 0
    """Highest memory in use during the block, less what was in use at its start."""
    source: str = ""
    """Who measured."""


@contextmanager
def peak_memory(device: torch.device) -> Iterator[Peak]:
    """Peak memory of a block of code: of the allocator on CUDA, of the process's resident set on a CPU."""
    peak = Peak()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield peak
        peak.increase_bytes, peak.source = (
            torch.cuda.max_memory_allocated(device) - before,
            "torch.cuda.max_memory_allocated",
        )
        return
    _return_free_memory()
    read, peak.source = _resident_peak()
    before = read()
    yield peak
    peak.increase_bytes = max(0, read() - before)


def _return_free_memory() -> None:
    """Freed memory that malloc keeps would hide what the block allocates."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def _resident_peak() -> tuple[Callable[[], int], str]:
    try:
        CLEAR.write_text("5")  # Linux: the high-water mark starts anew
    except OSError:
        return _lifetime_peak, "ru_maxrss (since the process began: a lower bound)"
    return _high_water_mark, "VmHWM"


def restart_peak(device: torch.device) -> None:
    """Let `process_peak` count from here, where the system can."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        _resident_peak()


def process_peak(device: torch.device) -> int:
    """Most bytes in use at once since `restart_peak` (or `peak_memory` began): resident in this process, or torch's on CUDA."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return _high_water_mark() if STATUS.exists() else _lifetime_peak()


def _lifetime_peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _high_water_mark() -> int:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Wall-clock seconds of a call, with the device's queue drained at both ends."""
    with timed(device) as clock:
        work()
    return clock.seconds
