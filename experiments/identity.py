"""Which run is this? A hash of everything that can change its numbers, and of nothing else.

Paths, loggers, launchers and results folders are left out; a text counts by its content and a local model by its files' fingerprint, so
the same run on another machine has the same id. So are options the method does not look at: the dense model does not depend on
which layers would be excluded, and a calibration-free method not on a calibration text.
"""

import dataclasses
import enum
import hashlib
import json
from typing import Any

from baselines.dense import Dense
from experiments.run import Run


def describe(value: Any) -> Any:
    """A dataclass, with all its options, as plain JSON values."""
    if isinstance(value, enum.Enum):
        return value.name
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        options = {field.name: describe(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {"kind": f"{type(value).__module__}.{type(value).__qualname__}", **options}
    if isinstance(value, list | tuple):
        return [describe(item) for item in value]
    return {key: describe(item) for key, item in value.items()} if isinstance(value, dict) else value


def identity(run: Run) -> dict[str, Any]:
    """What makes a run this run, as plain JSON values."""
    parts: dict[str, Any] = {
        "model": run.model.identity() | {"dtype": str(run.model.dtype.on(run.torch_device)).removeprefix("torch.")},
        "text": run.text.identity(),
        "method": describe(run.method),
        "evaluation": {name: describe(each) | each.content() for name, each in sorted(run.evaluation.items())},
        "device": run.torch_device.type,
    }
    if not isinstance(run.method, Dense):
        parts |= {"layers": describe(run.layers), "kernel": run.kernel.value, "stream": run.stream}
    if run.method.needs_calibration:
        parts["calibration"] = run.calibration.identity()
    return parts


def run_id(parts: dict[str, Any]) -> str:
    """Twelve hexadecimal digits."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]
