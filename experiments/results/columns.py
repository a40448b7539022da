"""Columns of tables of rows: which metrics, under which headings, in which format, and how important.

The numbers of a column have one format, so that they can be compared by eye: equally many digits after the
point, chosen so that the smallest keeps enough of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import floor, isfinite, log10
from typing import Any

from experiments.results import flat, speed
from experiments.results.schema import Row

ABSENT = "–"
HUGE = 1e9
"""Value from which a number is written with an exponent: a destroyed model's perplexity."""


@dataclass(frozen=True)
class Style:
    """Format of the numbers of a column."""

    least: int
    """Fewest digits after the point."""
    most: int
    significant: int
    """Digits that the smallest number has, as far as `most` allows."""
    factor: float = 1.0
    unit: str = ""

    def decimals(self, values: Sequence[float]) -> int:
        """Return the number of digits after the point, for all values of a column."""
        sizes = [abs(value * self.factor) for value in values if isfinite(value) and value]
        if not sizes:
            return self.least
        return min(self.most, max(self.least, self.significant - 1 - floor(log10(min(sizes)))))

    def word(self, value: float, decimals: int) -> str:
        """Return a value as text."""
        shown = value * self.factor
        return (
            f"{shown:.2e}" if abs(shown) >= HUGE and isfinite(shown) else f"{shown:.{decimals}f}{self.unit}"
        )


STYLES = {
    "number": Style(3, 3, 0),
    "significant": Style(2, 5, 3),
    "percent": Style(1, 1, 0, 100, "%"),
    "MB": Style(1, 3, 3, 1e-6),
    "seconds": Style(1, 4, 2),
    "speed": Style(2, 2, 0),
    "thousands": Style(1, 1, 0, 1e-3, "k"),
}


@dataclass(frozen=True)
class Metric:
    """A column of numbers."""

    key: str
    """Name, as in `--columns`."""
    heading: str
    path: tuple[str, ...]
    """Keys into the row's metrics."""
    style: str
    importance: int

    def of(self, row: Row) -> Any:
        """Return the value of a row, or None; a dict for a speed."""
        value: Any = row["metrics"]
        for key in self.path:
            value = value.get(key) if isinstance(value, dict) else None
        return value


def _metric(key: str, heading: str, path: str, style: str, importance: int) -> Metric:
    return Metric(key, heading, tuple(path.split(".")), style, importance)


BEFORE_TASKS = (
    _metric("perplexity", "ppl", "perplexity.value", "number", 99),
    _metric("pseudo_perplexity", "pseudo\nppl", "pseudo_perplexity.value", "number", 98),
    _metric("kl", "KL\nnats", "perplexity.kl", "significant", 80),
    _metric("exact_kl", "exact\nKL", "perplexity.divergence.kl", "significant", 79),
    _metric("kl_p99", "KL\n99 %", "perplexity.divergence.kl_p99", "significant", 35),
    _metric("same_top", "same\ntop", "perplexity.divergence.same_top", "percent", 49),
    _metric("flips", "flips", "perplexity.flip_rate", "percent", 50),
    _metric("bits_per_weight", "bits/w", "size.bits_per_weight", "number", 70),
)
AFTER_TASKS = (
    _metric("model_mb", "model\nMB", "size.model_nbytes", "MB", 40),
    _metric("prefill", "prefill\ntok/s", "latency.prefill", "speed", 20),
    _metric("decode", "decode\ntok/s", "latency.decode", "speed", 25),
    _metric("peak_mb", "peak\nMB", "memory.inference_peak_bytes", "MB", 10),
    _metric("trained_tokens", "trained\ntokens", "compression.training.tokens", "thousands", 28),
    _metric("training_s", "train\ns", "compression.training.seconds", "seconds", 29),
    _metric("quantize_s", "quant\ns", "compression.seconds_quantize", "seconds", 30),
)
METRICS = (*BEFORE_TASKS, *AFTER_TASKS)
TASKS = 60
"""Importance of a zero-shot task."""


def metrics(rows: Sequence[Row]) -> tuple[Metric, ...]:
    """Return the columns that some row has: the metrics above, and each zero-shot task by name."""
    shown: dict[str, str] = {}
    for row in rows:
        shown = flat.tasks(row) | shown
    every = (*BEFORE_TASKS, *(_task(*each) for each in shown.items()), *AFTER_TASKS)
    return tuple(metric for metric in every if any(metric.of(row) is not None for row in rows))


def _task(name: str, metric: str) -> Metric:
    accuracy = metric.partition("@")[0] in flat.PREFERRED
    style = "percent" if accuracy else "number"
    return Metric(name, f"{name}\n{metric}", ("zero_shot", "tasks", name, metric), style, TASKS)


def number(value: Any) -> float | None:
    """Return the number that a value is sorted by: itself, or of a speed the ratio to the dense model's."""
    if isinstance(value, dict):
        return number(value.get("ratio"))
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def cells(rows: Sequence[Row], metric: Metric) -> list[str]:
    """Return a metric of rows as text, the numbers in one format.

    A speed takes two lines, beside the dense model's of the same rounds; a dense row's was timed alone.
    """
    if metric.style == "speed":
        return [_speed(row, metric) for row in rows]
    return words([metric.of(row) for row in rows], metric.style)


def _speed(row: Row, metric: Metric) -> str:
    value = metric.of(row)
    if not isinstance(value, dict):
        return ABSENT
    timed = speed.pair(row, metric.path[-1])
    if timed is not None:
        return speed.words(timed)
    alone = number(value.get("dense_tokens_per_second"))
    return ABSENT if alone is None else f"{speed.rate(alone)} alone"


def words(values: Sequence[Any], style: str) -> list[str]:
    """Return the values of a column as text in one format; – for None."""
    format = STYLES[style]
    decimals = format.decimals([each for value in values if (each := number(value)) is not None])
    return [ABSENT if (each := number(value)) is None else format.word(each, decimals) for value in values]
