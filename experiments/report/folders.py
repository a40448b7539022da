"""Results folders of several people as one list of rows, each of which says who measured it.

    python -m experiments.report anna=results bob=/shared/bobs_results

A row gets `measured_by`, and keeps everything else. Where two people measured the same run, both rows stay,
and the second one's id has the name behind it: `1f0c…@bob`. A row that is the same file in two folders was
measured once; it is kept once, and a note says so.
"""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.results import record
from experiments.results.record import Row

if TYPE_CHECKING:
    import pandas as pd

NAME = re.compile(r"[\w.-]+")
MEASURED_BY = "measured_by"


@dataclass(frozen=True)
class Folder:
    """A results folder, and the name of who measured its rows."""

    path: Path
    by: str

    @classmethod
    def of(cls, words: str) -> "Folder":
        """Return the folder that `name=folder` or `folder` means; the folder's own name is the default.

        Raises:
            ValueError: the name has other characters than letters, digits, `_`, `.` and `-`.
        """
        by, is_named, path = words.partition("=")
        if Path(words).is_dir() or not is_named:
            by, path = Path(words).resolve().name, words
        if not NAME.fullmatch(by):
            raise ValueError(
                f"{words}: {by!r} is no name of who measured; give one of letters, digits, _, . and -,"
                f" as in anna={path}"
            )
        return cls(Path(path), by)


@dataclass(frozen=True)
class Merged:
    """Rows of several folders; ids are unique."""

    rows: tuple[Row, ...]
    sources: Mapping[str, tuple[Folder, str]]
    """Id → the folder, and the id of the row's file in it."""
    unreadable: Mapping[str, str]
    """File → reason; with the folder's name in front where there are several folders."""
    notes: tuple[str, ...] = ()

    def label(self, folder: Folder, name: str) -> str:
        """Return the name of a file, with the folder's name in front where there are several folders."""
        return _label({each for each, _ in self.sources.values()}, folder, name)

    def layers(self, run_id: str) -> "pd.DataFrame":
        """Return the table of a run's layers.

        Raises:
            RowError: it is damaged.
        """
        folder, original = self.sources[run_id]
        return record.read_layers(folder.path, original)


def merge(folders: Sequence[Folder]) -> Merged:
    """Read the rows of all folders.

    Raises:
        ValueError: two folders have one name, or a folder has no rows.
    """
    _check_names(folders)
    rows: dict[str, Row] = {}
    measured: dict[str, list[Row]] = {}
    sources: dict[str, tuple[Folder, str]] = {}
    unreadable: dict[str, str] = {}
    copies: dict[tuple[str, str], int] = {}
    for folder in folders:
        found, bad = record.read(folder.path)
        _check_not_empty(folder, found, bad)
        unreadable |= {_label(folders, folder, name): reason for name, reason in bad.items()}
        for row in found:
            original = row["run_id"]
            others = measured.setdefault(original, [])
            if earlier := _copied(row, others):
                pair = (folder.by, earlier)
                copies[pair] = copies.get(pair, 0) + 1
                continue
            run_id = f"{original}@{folder.by}" if original in rows else original
            others.append({**row, MEASURED_BY: folder.by})
            rows[run_id] = {**others[-1], "run_id": run_id}
            sources[run_id] = (folder, original)
    return Merged(tuple(rows.values()), sources, unreadable, tuple(_notes(copies)))


def _label(folders: Collection[Folder], folder: Folder, name: str) -> str:
    return f"{folder.by}/{name}" if len(folders) > 1 else name


def _copied(row: Row, others: Iterable[Row]) -> str | None:
    """Return who measured the row that this one is a copy of; None where it is none."""
    return next(
        (str(other[MEASURED_BY]) for other in others if {**row, MEASURED_BY: other[MEASURED_BY]} == other),
        None,
    )


def _notes(copies: Mapping[tuple[str, str], int]) -> list[str]:
    return [
        f"{count} rows of {by} are the same files as rows of {earlier}, and stand here once"
        for (by, earlier), count in copies.items()
    ]


def _check_names(folders: Sequence[Folder]) -> None:
    seen: dict[str, Folder] = {}
    for folder in folders:
        other = seen.setdefault(folder.by, folder)
        if other is not folder:
            raise ValueError(
                f"{other.path} and {folder.path} both have the name {folder.by};"
                f" name who measured: anna={other.path} bob={folder.path}"
            )


def _check_not_empty(folder: Folder, rows: Sequence[Row], unreadable: Mapping[str, str]) -> None:
    if rows:
        return
    found = (
        f"; {len(unreadable)} files there cannot be read, such as {next(iter(unreadable.items()))}"
        if unreadable
        else ""
    )
    raise ValueError(
        f"{record.runs_dir(folder.path)} has no rows;"
        f" make some with python run.py results_dir={folder.path}{found}"
    )
