"""Failures of runs, as their rows keep them.

Running out of memory is a kind of its own: the row gives the peak seen, and options to try.
"""

import errno
from typing import Any

import torch

from experiments.common.errors import OutOfMemoryError
from experiments.runs.cost import Cost
from experiments.runs.portable import portable
from experiments.runs.run import Run

OUT_OF_MEMORY, ERROR = "out of memory", "error"


def ran_out_of_memory(error: BaseException) -> bool:
    """Return whether an error reports a lack of memory.

    torch's CPU allocator has no error type for it, so its messages are searched.
    """
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    messages = (
        "DefaultCPUAllocator: can't allocate memory",
        "DefaultCPUAllocator: not enough memory",
        "CUDA out of memory",
    )
    return isinstance(error, RuntimeError) and any(message in str(error) for message in messages)


def explained(error: Exception, run: Run, cost: Cost) -> Exception:
    """Return the error to report: the same error, or for a lack of memory one with options to try."""
    if isinstance(error, OutOfMemoryError) or not ran_out_of_memory(error):
        return error  # an `OutOfMemoryError` of the dense baseline's run is explained already
    return OutOfMemoryError(
        f"out of memory; the peak seen was {cost.peak_bytes / 1e9:.2f} GB. Try {', '.join(what_to_try(run))}"
    )


def failure(error: Exception, cost: Cost) -> dict[str, Any]:
    """Return the part of a failed row that gives the reason, its kind and the cost."""
    kind = OUT_OF_MEMORY if isinstance(error, OutOfMemoryError) else ERROR
    reason = str(error) if kind == OUT_OF_MEMORY else f"{type(error).__name__}: {error}"
    return {"reason": portable(reason), "failure": {"kind": kind, **cost.as_row()}}


def what_to_try(run: Run) -> list[str]:
    """Return options that lower the peak memory of a run, the least change of its numbers first."""
    device = run.torch_device
    advice = ["fewer runs at once (hydra.launcher.n_jobs)"]
    if device.type == "cuda":
        advice.append("device=cpu")
    if run.method.needs_calibration:
        advice.append("fewer calibration.samples or a shorter calibration.seqlen")
    elif not run.stream and run.method.changes_model:
        advice.append("stream=true")
    if run.model.dtype.on(device).itemsize > 2:
        advice.append("model.dtype=bfloat16")
    return [*advice, "a shorter evaluation.perplexity.seqlen"]
