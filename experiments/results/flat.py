"""Flat facts of a row: method, bits, group size, calibrated, model and text, and the main metrics.

A row nests its options as the method nests them: RTN's bits are at `method.grid.bits`, those of AWQ around
RTN at `method.inner.grid.bits`. Tables, data frames and Weights & Biases ask for the bits, wherever they are.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from experiments.results.paths import get_path, settings

Row = dict[str, Any]
METRICS = {
    "perplexity": "perplexity.value", "kl": "perplexity.kl", "flip_rate": "perplexity.flip_rate",
    "bits_per_weight": "size.bits_per_weight", "model_nbytes": "size.model_nbytes",
}  # fmt: skip
"""Flat name → path in the metrics."""
PREFERRED = ("acc", "acc_norm", "exact_match", "f1")
"""Metrics of a zero-shot task, the one to show first; after these, the first that the task has."""


def facts(row: Row) -> dict[str, Any]:
    """Return method, bits (of weights, activations, keys and values), group_size, calibrated, model, text.

    None stands for what a row does not have. `bits` are those of the codes: None for the dense model and for
    a method that chooses them itself. `activation_bits` is None where activations are not rounded, and
    `kv_bits`, the mean of keys and values, where those are not.
    """
    options = get_path(settings(row), "method")
    bits, group_size = size(options)
    method = get_path(row, "choices.method") or get_path(row, "identity.method.name")
    return {
        "method": method,
        "bits": bits,
        "group_size": group_size,
        "activation_bits": next((each["bits"] for each in parts(options, "inputs")), None),
        "kv_bits": next(map(_kv_bits, parts(options, "kv")), None),
        "calibrated": bool(get_path(row, "identity.calibration")),
        "model": name_of(row, "model"),
        "text": name_of(row, "text"),
    }


def parts(method: Any, name: str) -> Iterator[Mapping[str, Any]]:
    """Yield a part of a method's options, and of the methods inside it, outermost first."""
    while isinstance(method, Mapping):
        if isinstance(part := method.get(name), Mapping):
            yield part
        method = method.get("inner")


def _kv_bits(kv: Mapping[str, Any]) -> int | float | None:
    bits = [get_path(dict(kv), f"{name}.bits") for name in ("keys", "values")]
    return bits[0] if bits[0] == bits[1] else sum(bits) / 2


def name_of(row: Row, part: str) -> str:
    """Return the name of a row's model or text: as the run knows it, else as it was chosen."""
    return str(
        get_path(row, f"identity.{part}.name") or get_path(row, f"choices.{part}") or f"unknown {part}"
    )


def unnested(method: Any) -> dict[str, Any]:
    """Return a method's options with those of the methods inside it, at one level; outer options win.

    The name is that of all: "hadamard(gptq)".
    """
    if not isinstance(method, dict):
        return {}
    if not isinstance(inner := method.get("inner"), dict):
        return method
    within = unnested(inner)
    outer = {key: value for key, value in method.items() if key != "inner"}
    return within | outer | {"name": f"{method.get('name')}({within.get('name')})"}


def size(method: Any) -> tuple[int | float | None, int | None]:
    """Return bits and group size of a method's options, or of the method inside it."""
    while isinstance(method, Mapping):
        if isinstance(method.get("bits"), list):
            return None, None  # a choice for each layer
        if isinstance(grid := method.get("grid"), Mapping):
            return method.get("average_bits") or grid.get("bits"), grid.get("group_size")
        if isinstance(codebooks := method.get("format"), Mapping):
            return _bits_of_codes(codebooks), None
        method = method.get("inner")
    return None, None


def _bits_of_codes(codebooks: Mapping[str, Any]) -> int | float | None:
    """Return the bits per weight of additive codes, without their codebooks."""
    count, bits, group = (codebooks.get(name) for name in ("codebooks", "bits_per_codebook", "group"))
    if not all(isinstance(number, int) and number > 0 for number in (count, bits, group)):
        return None
    per_weight: float = count * bits / group  # type: ignore[operator]
    return int(per_weight) if per_weight.is_integer() else per_weight


def metrics(row: Row) -> dict[str, Any]:
    """Return the main metrics under flat names, and each zero-shot task's accuracy under the task's name."""
    found = {name: get_path(row, f"metrics.{path}") for name, path in METRICS.items()}
    return {name: value for name, value in found.items() if value is not None} | {
        task: row["metrics"]["zero_shot"]["tasks"][task][metric] for task, metric in tasks(row).items()
    }


def tasks(row: Row) -> dict[str, str]:
    """Map the zero-shot tasks of a row to the metric that is shown; a group stands for the tasks in it."""
    found = get_path(row, "metrics.zero_shot.tasks") or {}
    members = {member for task in found.values() for member in task.get("tasks", [])} - {
        name for name, task in found.items() if "tasks" in task
    }
    shown = {name: _metric(task) for name, task in found.items() if name not in members}
    return {name: metric for name, metric in shown.items() if metric is not None}


def _metric(task: Mapping[str, Any]) -> str | None:
    """Return the name of the metric to show for a task: lm-eval's numbers are the floats of its entry."""
    numbers = [name for name, value in task.items() if isinstance(value, float) and "_stderr" not in name]
    known = [name for each in PREFERRED for name in numbers if name.partition("@")[0] == each]
    return next(iter([*known, *numbers]), None)
