"""Cells: what a table shows of each run, and what may be said of it.

In this order, because each step decides whether the next makes sense: all runs on one model and text must have been measured alike, or the
table is refused; the dense model must agree with the paper, or no other value of its column is judged; then each value is set beside the
paper's. The best value of a column is marked only when the paired interval says it is better than every other of its section
(`experiments/compare/paired.py`), so only perplexities ever are.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from experiments import compare
from experiments.config.options import command, split
from experiments.results.record import Row, get_path
from experiments.tables import match
from experiments.tables.against import contrasted
from experiments.tables.cell import Cell, Filled, Judgement
from experiments.tables.spec import Column, Line, Table

PERPLEXITY = "perplexity.value"


def fill(table: Table, rows: Sequence[Row]) -> Filled:
    """The table with what these rows have.

    Raises:
        ValueError: several rows fit one cell, or runs that stand side by side were measured differently; the message names them.
    """
    cells = [[_cell(table, line, column, rows) for column in table.columns] for line in table.rows]
    _refuse_mixtures(table, cells)
    cells = contrasted(table, cells)
    checks = [
        _check_baseline(table, column, [line[k] for line in cells]) for k, column in enumerate(table.columns)
    ]
    trusted = [_trusted(line, own, checks) for line, own in zip(table.rows, cells, strict=True)]
    marked = _mark_best(table, trusted)
    return Filled(table, tuple(map(tuple, marked)), tuple(dict.fromkeys(check for check in checks if check)))


def missing(table: Table, rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The options of runs that cells lack, each once."""
    lacking: dict[str, dict[str, Any]] = {}
    for line in table.rows:
        for column in table.columns:
            if _cell(table, line, column, rows).verdict is Judgement.missing:
                options = table.options(line, column)
                lacking[command(options)] = options
    return list(lacking.values())


def _cell(table: Table, line: Line, column: Column, rows: Sequence[Row]) -> Cell:
    paper = line.paper[table.columns.index(column)] if line.paper else None
    refused = line.refused or column.refused
    if refused:
        return Cell(Judgement.refused if paper is not None else Judgement.unjudged, paper, note=refused)
    if line.baseline and (column.relative or column.against):
        return Cell(Judgement.not_applicable, paper)
    options, metric = table.options(line, column), column.metric or table.metric
    wanted = match.CellQuery.of(options, metric)
    if reason := match.not_applicable(wanted):
        return Cell(Judgement.not_applicable, paper, note=reason)
    fitting, near = match.find(rows, wanted)
    if len(fitting) > 1:
        ids = ", ".join(f"{row['run_id']} ({row['provenance']['device']})" for row in fitting)
        raise ValueError(
            f"{_place(line, column)}: several runs fit: {ids}. Choose with --where <place>=<value>, or delete one"
        )
    if not fitting:
        return Cell(Judgement.missing, paper, note="; ".join([command(options), *near]))
    (row,) = fitting
    value = column.scale * sum(get_path(row["metrics"], place) for place in (metric, *column.add))
    return _measured(Cell(Judgement.unjudged, paper, value, row), table, line, column)


def _measured(cell: Cell, table: Table, line: Line, column: Column) -> Cell:
    """A cell with a run, beside the paper's value."""
    tolerance = table.tolerance_of(line, column)
    if cell.paper is None or cell.ours is None or cell.row is None:
        return cell
    if reason := column.incomparable or table.incomparable:
        return replace(cell, verdict=Judgement.refused, note=reason)
    wrong = _foreign(cell.row, table.protocol_of(column))
    if wrong:
        return replace(cell, verdict=Judgement.refused, note=f"run {cell.row['run_id']}: {'; '.join(wrong)}")
    if tolerance is None:
        return cell
    inside = abs(cell.ours - cell.paper) <= tolerance * abs(cell.paper)
    return replace(cell, verdict=Judgement.reproduced if inside else Judgement.differs)


def _foreign(row: Row, protocol: Mapping[str, Any]) -> list[str]:
    """What of a row's protocol is not the paper's."""
    found = []
    for place, accepted in protocol.items():
        own, allowed = get_path(row, place), accepted if isinstance(accepted, list) else [accepted]
        if own not in allowed:
            found.append(f"{place} is {own}, the paper's {' or '.join(map(str, allowed))}")
    return found


def _refuse_mixtures(table: Table, cells: Sequence[Sequence[Cell]]) -> None:
    """Runs on one model and text must have been measured alike."""
    first: dict[str, Row] = {}
    for line, own in zip(table.rows, cells, strict=True):
        for column, cell in zip(table.columns, own, strict=True):
            if cell.row is not None:
                subject = json.dumps(split(table.options(line, column))[0], sort_keys=True)
                _alike(first.setdefault(subject, cell.row), cell.row)


def _alike(row: Row, other: Row) -> None:
    if "perplexity" not in row["metrics"] or "perplexity" not in other["metrics"]:
        return
    own, others = compare.conditions(row), compare.conditions(other)
    differing = [f"{part} is {own[part]} and {others[part]}" for part in own if own[part] != others[part]]
    if differing:
        raise ValueError(
            f"runs {row['run_id']} and {other['run_id']} cannot stand in one table: {'; '.join(differing)}"
        )


def _check_baseline(table: Table, column: Column, cells: Sequence[Cell]) -> str:
    """Why no value of a column may be believed; empty where there is no reason."""
    if column.refused or all(cell.row is None for cell in cells):
        return ""
    where = " ".join(filter(None, (column.group, column.label)))
    for line, cell in zip(table.rows, cells, strict=True):
        if line.baseline and cell.paper is not None:
            if cell.ours is None:
                return f"{where}: the dense model is not measured, so nothing of it is judged; {cell.note}"
            if cell.verdict is Judgement.differs:
                size = f"{100 * (cell.ours / cell.paper - 1):+.1f} %"
                return f"{where}: the dense model has {cell.ours:.2f}, the paper's {cell.paper:.2f} ({size}); nothing of it is judged"
    return ""


def _trusted(line: Line, cells: Sequence[Cell], checks: Sequence[str]) -> list[Cell]:
    """A line's cells, with no judgement where the column's dense model was found wrong."""
    judged = (Judgement.reproduced, Judgement.differs)
    return [
        replace(cell, verdict=Judgement.untrusted)
        if check and not line.baseline and cell.verdict in judged
        else cell
        for cell, check in zip(cells, checks, strict=True)
    ]


def _mark_best(table: Table, cells: Sequence[Sequence[Cell]]) -> list[list[Cell]]:
    """The best of each section and column, where there is one."""
    marked = [list(own) for own in cells]
    for k, column in enumerate(table.columns):
        if column.against or (column.metric or table.metric) != PERPLEXITY:
            continue
        for section in {line.section for line in table.rows}:
            lines = [n for n, line in enumerate(table.rows) if line.section == section and not line.baseline]
            best = _best([(n, cell) for n in lines if (cell := cells[n][k]).row is not None])
            if best is not None:
                marked[best][k] = replace(cells[best][k], best=True)
    return marked


def _best(rivals: Sequence[tuple[int, Cell]]) -> int | None:
    """The number of the cell that beats all others, if there are others and one does."""
    if len(rivals) < 2:
        return None
    number, best = min(rivals, key=lambda rival: (rival[1].ours, rival[0]))
    return number if all(_beats(best, other) for n, other in rivals if n != number) else None


def _beats(best: Cell, other: Cell) -> bool:
    assert best.row is not None
    assert other.row is not None
    return (
        not compare.differences(best.row, other.row)
        and compare.compare(best.row, other.row).verdict is compare.Verdict.better
    )


def _place(line: Line, column: Column) -> str:
    return " / ".join(filter(None, (line.section, line.label, column.group, column.label)))
