"""What stopped a run, as a row keeps it. Running out of memory is a kind of its own: the row says how much there was, and what to try."""

import errno
from typing import Any

import torch

from experiments.common.errors import OutOfMemoryError
from experiments.runs.cost import Cost
from experiments.runs.run import Run

OUT_OF_MEMORY, ERROR = "out of memory", "error"


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether an error says so. torch's CPU allocator has no type of its own for it, only words."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    words = (
        "DefaultCPUAllocator: can't allocate memory",
        "DefaultCPUAllocator: not enough memory",
        "CUDA out of memory",
    )
    return isinstance(error, RuntimeError) and any(text in str(error) for text in words)


def explained(error: Exception, run: Run, cost: Cost) -> Exception:
    """The error to report: the same, or for want of memory one that says what to try."""
    if isinstance(error, OutOfMemoryError) or not ran_out_of_memory(error):
        return error  # one of the dense baseline has been explained already
    return OutOfMemoryError(
        f"out of memory; the peak seen was {cost.peak_bytes / 1e9:.2f} GB. Try {', '.join(what_to_try(run))}"
    )


def failure(error: Exception, cost: Cost) -> dict[str, Any]:
    """The part of a failed row that says why."""
    kind = OUT_OF_MEMORY if isinstance(error, OutOfMemoryError) else ERROR
    reason = str(error) if kind == OUT_OF_MEMORY else f"{type(error).__name__}: {error}"
    return {"reason": reason, "failure": {"kind": kind, **cost.as_row()}}


def what_to_try(run: Run) -> list[str]:
    """Options that lower the peak of this run, the cheapest for its numbers first."""
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
