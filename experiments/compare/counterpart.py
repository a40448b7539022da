"""Choice of the row that another row is compared with: same protocol, same bits, a method given by name.

Where several rows would do, those that were measured alike and treated alike are equivalent, and the newest
is taken. Rows treated differently are not: one treated as the row itself (same layers, calibration, stream)
goes first; if several are left, the row is not compared, and a note lists them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from experiments.common.fitted import Column
from experiments.compare.equivalent import listed, newest, treated_alike
from experiments.compare.paired import Comparison, compare, differences
from experiments.results.columns import ABSENT
from experiments.results.flat import facts
from experiments.results.record import FINISHED, Row

Size = tuple[Any, ...] | None
"""Bits and group size; None for a method that has no grid, or chooses bits itself."""


@dataclass(frozen=True)
class Counterparts:
    """Comparisons of rows with their counterparts of one name."""

    name: str
    comparisons: tuple[Comparison | None, ...]
    """One for each row; None for a row without counterpart, and for a row that has the name itself."""
    notes: tuple[str, ...]
    """Choices that were made among several counterparts, and those that could not be."""

    def values(self) -> dict[str, list[float | str | None]]:
        """Return the comparisons in full, by name of column."""
        every = self.comparisons
        return {
            "delta_nll": [None if c is None else c.delta_nll for c in every],
            "low": [None if c is None or c.interval is None else c.interval[0] for c in every],
            "high": [None if c is None or c.interval is None else c.interval[1] for c in every],
            "verdict": [None if c is None else c.verdict.value for c in every],
        }

    def columns(self) -> list[Column]:
        """Return the comparisons as columns of a table."""
        deltas = [ABSENT if c is None else f"{c.delta_nll:+.4f}" for c in self.comparisons]
        intervals = [ABSENT if c is None else _ends(c) for c in self.comparisons]
        verdicts = [ABSENT if c is None else c.verdict.value for c in self.comparisons]
        return [
            Column(f"ΔNLL to\n{self.name}", tuple(deltas), 98, right=True),
            Column("95 %", tuple(intervals), 95, right=True),
            Column("verdict", tuple(verdicts), 97),
        ]


def compared(rows: Sequence[Row], name: str) -> Counterparts:
    """Compare every row with its counterpart of that name.

    Raises:
        ValueError: no row has the name; the message lists the names.
    """
    finished = [row for row in rows if row["status"] == FINISHED]
    exact = [row for row in finished if name in (row["run_id"], row["name"])]
    named = exact or [row for row in finished if name in _names(row)]
    if not named:
        known = sorted({each for row in finished for each in _names(row)})
        raise ValueError(f"--against {name} names no row; give a run id or one of: {', '.join(known)}")
    notes: dict[str, int] = {}
    ids, sized = {row["run_id"] for row in named}, [(other, _wanted(other, name)) for other in named]
    found = [None if row["run_id"] in ids else _against(row, sized, name, notes) for row in rows]
    counted = (f"{note}{f' (for {count} rows)' if count > 1 else ''}" for note, count in notes.items())
    return Counterparts(name, tuple(found), tuple(counted))


def _against(row: Row, sized: list[tuple[Row, Size]], name: str, notes: dict[str, int]) -> Comparison | None:
    """Return the comparison of a row with its counterpart, and count what is to be noted."""
    if row["status"] != FINISHED:
        return None
    of_row = _size(row)
    fitting = [other for other, wanted in sized if wanted in (None, of_row) and not differences(row, other)]
    alike = [other for other in fitting if treated_alike(row, other)] or fitting
    kinds = newest(alike)
    if len(kinds) == 1 and len(alike) > 1:
        note = f"--against {name}: {len(alike)} equivalent rows; the newest is taken, {kinds[0]['run_id']}"
        notes[note] = notes.get(note, 0) + 1
    if len(kinds) > 1:
        note = f"--against {name} fits several rows, so no comparison; give one of these ids:" + listed(kinds)
        notes[note] = notes.get(note, 0) + 1
    return compare(row, kinds[0]) if len(kinds) == 1 else None


def _wanted(other: Row, name: str) -> Size:
    """Return the size that rows of this counterpart must have; None for any, if it is named itself."""
    return None if name in (other["run_id"], other["name"]) else _size(other)


def _names(row: Row) -> list[str]:
    """Return the name of a row, and the name of its method."""
    return [row["name"], *([row["choices"]["method"]] if "method" in row["choices"] else [])]


def _size(row: Row) -> Size:
    """Return bits of weights, activations, keys and values, and the group size.

    None stands for a method without a grid, or that chooses bits itself.
    """
    found = facts(row)
    sizes = tuple(found[name] for name in ("bits", "group_size", "activation_bits", "kv_bits"))
    return None if found["group_size"] is None else sizes


def _ends(comparison: Comparison) -> str:
    ends = comparison.interval
    return ABSENT if ends is None else f"{ends[0]:+.4f} … {ends[1]:+.4f}"
