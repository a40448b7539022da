"""Notes under a table: the decisions that compressions took by themselves, and reasons, each once.

A row counts its decisions by label (`shrunk_group_size=4`); the table of its layers says in which layers.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from experiments.common.fitted import clean
from experiments.results.flat import facts
from experiments.results.paths import get_path
from experiments.results.schema import Row

if TYPE_CHECKING:
    import pandas as pd

WORDS: Mapping[str, str] = {
    "shrunk_group_size": "group size reduced",
    "shrunk_tiling": "number of tiles reduced",
    "shrunk_group": "group of the codebooks reduced",
    "bits": "bits chosen",
    "skipped": "left dense, as the format does not fit",
    "inputs_never_seen": "inputs never seen in calibration",
    "block_tuned": "block tuned",
    "tuning_kept_start": "tuning made no progress, start kept",
    "gated_by_kurtosis": "kurtosis gate closed, rounded without column scales",
    "damping_raised": "damping raised until the Hessian could be factored",
    "dead_columns": "inputs that are always zero",
    "rows_rounded": "rows left to the inner method, where that was better",
    "hessian_rank": "fewer tokens than inputs: the Hessian has at most the rank",
    "hessian_missing": "no Hessian, weights weighted equally",
    "rounds_used_up": "rounds used up before it converged",
    "rows_kept_codes": "rows kept their codes",
    "widened_groups": "groups widened by outliers",
    "outliers_of_score_0": "outliers of score 0",
    "outliers_per_window": "outlier tokens in a window before, of the block with the most:",
    "largest_ratio": "largest ratio of a token to the median before:",
    "largest_ratio_behind_prefix": "largest ratio of a token to the median behind the prefix:",
    "mask_overlap": "outliers that two halves of the calibration agree on",
}
"""Name of a decision → words. Other names are shown with blanks for underscores."""
NAMED = 3
"""Number of kinds of layers, and of runs, that a note names."""
LONGEST = 300
"""Characters of a reason that are shown; the row has all."""


def decisions(row: Row, layers: "pd.DataFrame | None") -> list[str]:
    """Return the decisions of a row in words, one text for each: "group size reduced in 5 layers (…)".

    Args:
        layers: the table of the run's layers, or None.
    """
    taken = get_path(row["metrics"], "compression.decisions") or {}
    return [_words(label, count, row, layers) for label, count in taken.items()]


def _words(label: str, count: Any, row: Row, layers: "pd.DataFrame | None") -> str:
    name, _, value = label.partition("=")
    what, found = WORDS.get(name, name.replace("_", " ")), _found(label, layers)
    if value and found and not any("." in each for each in found):
        return f"{what} {value}"  # a part of the whole model, not a layer
    changed = _change(name, value, row)
    inside = " ".join(filter(None, (", ".join(_kinds(found)), changed)))
    return f"{what} in {count} layer{'s' * (count != 1)}" + (f" ({inside})" if inside else "")


def _change(name: str, value: str, row: Row) -> str:
    """Return the asked and the chosen value, where a label has the value."""
    if not value:
        return ""
    asked = facts(row)["group_size"] if name == "shrunk_group_size" else None
    return f"{asked} → {value}" if asked is not None else f"→ {value}"


def _found(label: str, layers: "pd.DataFrame | None") -> list[str]:
    """Return the names of the parts that have a decision."""
    if layers is None or "decisions" not in layers or "name" not in layers:
        return []
    pattern = rf"(?:^|; ){re.escape(label)}(?:=|;|$)"
    matching = layers["decisions"].fillna("").astype(str).str.contains(pattern)
    return [str(name) for name in layers[matching]["name"]]


def _kinds(names: Sequence[str]) -> list[str]:
    """Return the kinds of layers, such as down_proj; some of them, where many."""
    kinds = list(dict.fromkeys(name.rpartition(".")[2] for name in names))
    return kinds if len(kinds) <= NAMED else [*kinds[:NAMED], f"{len(kinds) - NAMED} more"]


def once(notes: Iterable[tuple[str, str]], all_of: int | None = None) -> list[str]:
    """Return each text of (name, text) pairs once, after the names that have it, or their number.

    Args:
        all_of: number of all that could have a note, to write "all 4 runs"; None not to.
    """
    names: dict[str, list[str]] = {}
    for name, text in notes:
        names.setdefault(text, []).append(name)
    return [f"{_who(those, all_of)}: {text}" for text, those in names.items()]


def _who(names: Sequence[str], all_of: int | None) -> str:
    if len(names) == 1:
        return names[0]
    if len(names) == all_of:
        return f"all {all_of} runs"
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"{len(names)} runs ({'; '.join(names[:NAMED])}{more})"


def one_line(reason: str) -> str:
    """Return a reason as one line of limited length."""
    line = " ".join(clean(str(reason)).split())
    return line if len(line) <= LONGEST else line[: LONGEST - 1] + "…"
