"""Speed of a row: compressed beside dense, timed alternately in one process, with the spread of its rounds.

A dense speed belongs to the compressed one that it was timed beside. Speeds of two rows are from two times of
a machine, so a ratio is never taken between rows.
"""

from dataclasses import dataclass

from experiments.results.paths import get_path
from experiments.results.schema import Row


@dataclass(frozen=True)
class Pair:
    """Speeds of a compressed model and of the dense model beside it, in tokens per second."""

    dense: float
    compressed: float
    ratio: float
    """Ratio of the two, compressed over dense."""
    spread: tuple[float, float] | None
    """Smallest and largest ratio of a round; None with fewer than two rounds, which show no spread."""
    rounds: int
    """Rounds that the row has samples of."""


def pair(row: Row, phase: str) -> Pair | None:
    """Return a row's speeds in `phase`, "prefill" or "decode"; None for a dense row, or one not timed."""
    speed = get_path(row["metrics"], f"latency.{phase}") or {}
    if "ratio" not in speed or "tokens_per_second" not in speed:
        return None
    seconds = get_path(row.get("samples") or {}, f"latency.seconds.{phase}") or {}
    ratios = [a / b for a, b in zip(seconds.get("dense", ()), seconds.get("compressed", ()), strict=False)]
    spread = (min(ratios), max(ratios)) if len(ratios) > 1 else None
    return Pair(
        speed["dense_tokens_per_second"], speed["tokens_per_second"], speed["ratio"], spread, len(ratios)
    )


def rate(tokens_per_second: float) -> str:
    """Return a speed with three significant digits, and with none after the point from 100 on."""
    return f"{tokens_per_second:,.0f}" if tokens_per_second >= 100 else f"{tokens_per_second:.3g}"


def words(each: Pair) -> str:
    """Return two lines: both speeds, then their ratio with the smallest and the largest of a round."""
    ends = "" if each.spread is None else f" ({each.spread[0]:.2f}–{each.spread[1]:.2f})"
    return f"{rate(each.dense)} → {rate(each.compressed)}\n{each.ratio:.2f}×{ends}"
