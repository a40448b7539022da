"""Choice of the row that another row is compared with: same protocol, same bits, a method given by name."""

from typing import Any

import pandas as pd

from experiments.compare.paired import Comparison, compare, differences
from experiments.results.overview import distinct_names
from experiments.results.record import Row


def compared(rows: list[Row], name: str) -> list[Comparison | None]:
    """Compare every row with its counterpart of that name.

    Returns:
        One comparison per row; None for a row without counterpart, and for a row that has the name itself.

    Raises:
        ValueError: no row has the name, or a row has several counterparts; the message lists them.
    """
    named = [row for row in rows if name in (row["run_id"], *_names(row))]
    if not named:
        known = sorted({known_name for row in rows for known_name in _names(row)})
        raise ValueError(f"--against {name} names no row; give a run id or one of: {', '.join(known)}")
    return [None if row in named else _against(row, named, name) for row in rows]


def _against(row: Row, named: list[Row], name: str) -> Comparison | None:
    fitting = [other for other in named if _fits(row, other, name)]
    if len(fitting) > 1:
        full_names = zip(fitting, distinct_names(fitting), strict=True)
        candidates = "; ".join(f"{other['run_id']} ({full_name})" for other, full_name in full_names)
        raise ValueError(
            f"--against {name} means several rows beside {row['run_id']} ({row['name']}): {candidates}."
            " Give a run id"
        )
    return compare(row, fitting[0]) if fitting else None


def _fits(row: Row, other: Row, name: str) -> bool:
    """Return whether `other` is a counterpart of `row`; one named by its method must have the same size."""
    chosen_by_method = name not in (other["run_id"], other["name"])
    return not differences(row, other) and not (chosen_by_method and _size(other) not in (None, _size(row)))


def _names(row: Row) -> list[str]:
    """Return the name of a row, and the name of its method."""
    return [row["name"], *([row["choices"]["method"]] if "method" in row["choices"] else [])]


def _size(row: Row) -> tuple[int, int] | None:
    """Return bits and group size of a row's method, or of the method inside it.

    None stands for a method without a grid, and for a method that chooses bits itself.
    """
    method: dict[str, Any] | None = row["options"]["method"]
    while method is not None and "grid" not in method and "bits" not in method:
        method = method.get("inner")
    if method is None or "bits" in method:
        return None
    return method["grid"]["bits"], method["grid"]["group_size"]


def beside(view: pd.DataFrame, comparisons: list[Comparison | None], name: str) -> pd.DataFrame:
    """Return an overview with the comparisons as further columns."""
    cells = {
        f"ΔNLL to {name}": [None if c is None else f"{c.delta_nll:+.4f}" for c in comparisons],
        "95 %": [None if c is None else _ends(c) for c in comparisons],
        "verdict": [None if c is None else c.verdict.value for c in comparisons],
    }
    return pd.concat([view, pd.DataFrame(cells, index=view.index)], axis="columns")


def _ends(comparison: Comparison) -> str | None:
    ends = comparison.interval
    return None if ends is None else f"{ends[0]:+.4f} … {ends[1]:+.4f}"
