"""Cost of a run in time and memory.

The next plan estimates a sweep from it, and the row of a failed run says how far the run came. Loading the
model and measuring the dense baseline are left out: runs of a sweep share them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch

from experiments.common.meters import process_peak, restart_peak


@dataclass
class Cost:
    """Sum of seconds and highest peak over the parts of a run, including a part that fails."""

    device: torch.device
    seconds: float = 0.0
    """Wall-clock seconds."""
    peak_bytes: int = 0
    """Most memory in use at once: of this process on a CPU, of torch's allocator on CUDA."""

    @contextmanager
    def part(self) -> Iterator[None]:
        """Count time and memory of a block."""
        restart_peak(self.device)
        start = perf_counter()
        try:
            yield
        finally:
            self.seconds += perf_counter() - start
            self.peak_bytes = max(self.peak_bytes, process_peak(self.device))

    def as_row(self) -> dict[str, Any]:
        return {"seconds": self.seconds, "peak_memory_bytes": self.peak_bytes}
