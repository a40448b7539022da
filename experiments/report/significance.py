"""Significance of the best value of a column, for any choice of runs that a reader may make.

The half width of the paired 95 % interval of two runs is the distance of two vectors, one for each run
(`experiments/common/intervals.py`). So the page gets each run's mean and vector, and finds which shown runs
are not distinguishable from the best one: |mean − mean'| ≤ ‖vector − vector'‖. It computes nothing else.

Only metrics that a row has by window are here, within one group: the same windows of the same text. Sizes are
exact. Timings and zero-shot accuracies have no interval here, and the page says so where it marks the best.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np

from experiments.common.intervals import wave_values
from experiments.compare.difference import WINDOWED
from experiments.results.columns import METRICS
from experiments.results.paths import get_path
from experiments.results.record import Row

BETTER: Mapping[str, str] = MappingProxyType(
    {
        "perplexity": "low", "kl": "low", "exact_kl": "low", "kl_p99": "low", "flips": "low",
        "same_top": "high", "bits_per_weight": "low", "model_mb": "low", "peak_mb": "low",
        "quantize_s": "low", "training_s": "low", "trained_tokens": "low", "prefill": "high",
        "decode": "high",
    }
)  # fmt: skip
"""Key of a column → which values of it are better."""
EXACT = ("bits_per_weight", "model_mb")
"""Columns whose numbers have no error: sums of the tensors' sizes."""
WINDOWS: Mapping[str, str] = MappingProxyType(
    {"perplexity": "window_nll"}
    | {metric.key: WINDOWED[path] for metric in METRICS if (path := ".".join(metric.path)) in WINDOWED}
)
"""Key of a column → name of its values by window. Of perplexity they are the NLL: its order is the same."""

Vectors = dict[str, list[float]]
"""Key of a column → the mean, and after it the vector of the interval."""


def vectors(rows: Sequence[Row]) -> list[Vectors]:
    """Return mean and vector of each row, by column; rows are of one group."""
    found: list[Vectors] = [{} for _ in rows]
    for key, name in WINDOWS.items():
        values = [get_path(row.get("samples") or {}, f"perplexity.{name}") or [] for row in rows]
        blocks = _blocks(rows, values) if key == "perplexity" else None
        for row_vectors, each in zip(found, blocks or values, strict=True):
            if vector := _vector(each, len(each) // len(values[0]) if blocks else 1):
                row_vectors[key] = vector
    return found


def _blocks(rows: Sequence[Row], windows: list[list[float]]) -> list[list[float]] | None:
    """Return the NLL of each row by block, if all rows have the same blocks: their interval is narrower."""
    blocks = [get_path(row.get("samples") or {}, "perplexity.block_nll") or [] for row in rows]
    lengths = {len(each) for each in (*blocks, *windows)}
    return blocks if len(lengths) == 2 and 0 not in lengths and _multiples(blocks, windows) else None


def _multiples(blocks: list[list[float]], windows: list[list[float]]) -> bool:
    return len({len(each) for each in blocks}) == 1 and len(blocks[0]) % len(windows[0]) == 0


def _vector(values: list[float], blocks: int) -> list[float]:
    """Return mean and vector of values, empty where there are too few, or one is not finite."""
    if not values or not np.isfinite(values).all():
        return []
    array = np.asarray(values, dtype=float)
    found = wave_values(array, blocks)
    return [] if found is None else [float(f"{number:.9g}") for number in (array.mean(), *found)]
