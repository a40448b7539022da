"""Print or write a table from the rows of a results folder."""

import sys
from pathlib import Path

from experiments.common.console import console
from experiments.common.files import atomic_write
from experiments.results import record
from experiments.results.paths import get_path
from experiments.results.record import Row
from experiments.tables import cells, spec
from experiments.tables.cell import Filled
from experiments.tables.formats import Format, render, terminal
from experiments.tables.layout import lay_out


def show(
    name: str, results_dir: Path, format: Format = Format.terminal, where: list[str] | None = None
) -> None:
    """Print a table. Rows that cannot be read are named on stderr."""
    filled = _filled(name, results_dir, where or [])
    if format is Format.terminal:
        terminal(lay_out(filled), console)
    else:
        sys.stdout.write(render(filled, format))


def write(name: str, results_dir: Path, format: Format, where: list[str], out: Path) -> None:
    """Write a table to a file. Rows that cannot be read are named on stderr."""
    with atomic_write(out) as file:
        file.write(render(_filled(name, results_dir, where), format).encode())
    console.print(f"table {name}: {out}", markup=False, soft_wrap=True)


def _filled(name: str, results_dir: Path, where: list[str]) -> Filled:
    table = spec.load(name)
    rows, unreadable = record.read(results_dir)
    for file, reason in unreadable.items():
        print(f"cannot be read: {results_dir / 'runs' / file}: {reason}", file=sys.stderr)
    return cells.fill(table, chosen(rows, where))


def chosen(rows: list[Row], where: list[str]) -> list[Row]:
    """Return the rows that meet every condition `<path>=<value>`; values are compared as text.

    Raises:
        ValueError: a condition is malformed, or names a path that no row has.
    """
    for condition in where:
        path, equals, value = condition.partition("=")
        if not equals:
            raise ValueError(
                f"--where {condition} is no condition; write <place>=<value>, such as identity.device=cpu"
            )
        if rows and all(get_path(row, path) is None for row in rows):
            raise ValueError(
                f"--where {condition}: no row has {path};"
                " places are as in a row's file, such as identity.device"
            )
        rows = [row for row in rows if str(get_path(row, path)) == value]
    return rows
