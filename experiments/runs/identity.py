"""Which run is this? A hash of everything that can change its numbers, and of nothing else.

Paths, loggers, launchers and results folders are left out; a text counts by its content and a local model by its files' fingerprint, so
the same run on another machine has the same id. So are options the method does not look at: the dense model does not depend on
which layers would be excluded, and a calibration-free method not on a calibration text.

Classes count by name and version, options only where they differ from their defaults (`sinq/common/named.py`). `options` has them all, for
people and tables to look at; no id depends on it.
"""

import hashlib
import json
from typing import Any

from experiments.runs.run import Run
from sinq.common.named import described


def identity(run: Run) -> dict[str, Any]:
    """Return what makes a run this run, as plain JSON values."""
    parts: dict[str, Any] = {
        "model": run.model.identity()
        | {"dtype": str(run.model.dtype.on(run.torch_device)).removeprefix("torch.")},
        "text": run.text.identity(),
        "method": described(run.method),
        "evaluation": {key: described(each) | each.content() for key, each in sorted(run.evaluation.items())},
        "device": run.torch_device.type,
    }
    if run.method.changes_model:
        parts |= {"layers": described(run.layers), "kernel": run.kernel.value, "stream": run.stream}
    if run.method.needs_calibration:
        parts["calibration"] = run.calibration.identity()
    return parts


def options(run: Run) -> dict[str, Any]:
    """Return every option of a run's parts, those that have their defaults too, in the parts of `identity` that have options."""
    parts: dict[str, Any] = {
        "method": described(run.method, defaults=True),
        "evaluation": {key: described(each, defaults=True) for key, each in sorted(run.evaluation.items())},
    }
    if run.method.changes_model:
        parts["layers"] = described(run.layers, defaults=True)
    if run.method.needs_calibration:
        parts["calibration"] = described(run.calibration, defaults=True)
    return parts


def run_id(parts: dict[str, Any]) -> str:
    """Return the id of a run with this identity: twelve hexadecimal digits."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]
