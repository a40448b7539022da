"""Identity of a run: everything that can change its numbers, and nothing else. The run id is its hash.

Paths, loggers, launchers and results folders are left out; a text counts by its content and a local model by
its files' fingerprint, so the same run on another machine has the same id. Options that the method does not
read are left out too: the dense model does not depend on the excluded layers, nor a calibration-free method
on a calibration text.

Classes count by name and version, options only where they differ from their defaults
(`sinq/common/named.py`). `options` has them all, for people and tables; no id depends on it.
"""

import hashlib
import json
from typing import Any

from experiments.runs.run import Run
from sinq.common.named import described


def identity(run: Run) -> dict[str, Any]:
    """Return everything that can change the numbers of a run, as plain JSON values."""
    dtype = str(run.model.dtype.on(run.torch_device)).removeprefix("torch.")
    parts: dict[str, Any] = {
        "model": run.model.identity() | {"dtype": dtype},
        "text": run.text.identity(),
        "method": described(run.method),
        "evaluation": {
            key: described(evaluation) | evaluation.content()
            for key, evaluation in sorted(run.evaluation.items())
        },
        "device": run.torch_device.type,
    }
    if run.method.changes_model:
        parts |= {"layers": described(run.layers), "kernel": run.kernel.value, "stream": run.stream}
    elif run.model.is_quantized:
        parts["kernel"] = run.kernel.value
    if run.method.needs_calibration:
        parts["calibration"] = run.calibration.identity()
    return parts


def options(run: Run) -> dict[str, Any]:
    """Return every option of a run's parts, including options at their defaults.

    The keys are the parts of `identity` that have options.
    """
    parts: dict[str, Any] = {
        "method": described(run.method, defaults=True),
        "evaluation": {
            key: described(evaluation, defaults=True) for key, evaluation in sorted(run.evaluation.items())
        },
    }
    if run.method.changes_model:
        parts["layers"] = described(run.layers, defaults=True)
    if run.method.needs_calibration:
        parts["calibration"] = described(run.calibration, defaults=True)
    return parts


def run_id(parts: dict[str, Any]) -> str:
    """Return the id of a run with this identity: twelve hexadecimal digits."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]
