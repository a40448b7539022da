"""Cells: values of a table's runs, and their judgement against the paper.

Each step decides whether the next is meaningful. First, all runs on one model and text must have been
measured alike, or the table is refused. Second, the dense model must agree with the paper, or no other value
of the column is judged. Third, each value is compared with the paper's. The best value of a column is marked
only where the paired interval shows it better than every other of the section
(`experiments/compare/paired.py`), so only perplexities are marked.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from experiments import compare
from experiments.config.options import command, split
from experiments.results.paths import get_path
from experiments.results.record import Row
from experiments.tables import match, packing
from experiments.tables.against import contrasted
from experiments.tables.cell import Cell, Filled, Judgement
from experiments.tables.spec import Column, Line, Table

PERPLEXITY = "perplexity.value"


def fill(table: Table, rows: Sequence[Row]) -> Filled:
    """Return the table filled from rows.

    Raises:
        ValueError: several rows match one cell, or runs of one model and text were measured differently; the
            message names them.
    """
    cells = [[_cell(table, line, column, rows) for column in table.columns] for line in table.rows]
    _refuse_mixtures(table, cells)
    cells = contrasted(table, cells)
    checks = [
        _check_baseline(table, column, [row[k] for row in cells]) for k, column in enumerate(table.columns)
    ]
    trusted = [_trusted(line, of_line, checks) for line, of_line in zip(table.rows, cells, strict=True)]
    marked = _mark_best(table, trusted)
    warnings = dict.fromkeys(check for check in checks if check)
    return Filled(table, tuple(map(tuple, marked)), tuple(warnings))


def missing(table: Table, rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return the options of the runs that cells lack, each once."""
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
            f"{_title(line, column)}: several runs fit: {ids}."
            " Choose with --where <place>=<value>, or delete one"
        )
    if not fitting:
        return Cell(Judgement.missing, paper, note="; ".join([command(options), *near]))
    (row,) = fitting
    value, obstacle = _value(row, metric, column)
    if obstacle:
        return Cell(
            Judgement.refused if paper is not None else Judgement.unjudged, paper, value, row, obstacle
        )
    return _measured(Cell(Judgement.unjudged, paper, value, row), table, line, column)


def _value(row: Row, metric: str, column: Column) -> tuple[float, str]:
    """Return a cell's value, and the reason why it cannot be set against the paper's (mostly empty).

    A size that cannot be reckoned in the paper's packing is the measured one.
    """
    measured = sum(get_path(row["metrics"], path) for path in (metric, *column.add))
    packed, obstacle = packing.nbytes(row) if column.paper_packing else (measured, "")
    return column.scale * (measured if packed is None else packed), obstacle


def _measured(cell: Cell, table: Table, line: Line, column: Column) -> Cell:
    """Return a cell that has a run, judged against the paper's value."""
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
    """Return the parts of a row's protocol that differ from the paper's."""
    found = []
    for path, accepted in protocol.items():
        value, allowed = get_path(row, path), accepted if isinstance(accepted, list) else [accepted]
        if value not in allowed:
            found.append(f"{path} is {value}, the paper's {' or '.join(map(str, allowed))}")
    return found


def _refuse_mixtures(table: Table, cells: Sequence[Sequence[Cell]]) -> None:
    """Raise `ValueError` where runs on one model and text were not measured alike, or count unlike tokens."""
    _refuse_words_beside_pieces([cell.row for of_line in cells for cell in of_line if cell.row is not None])
    first: dict[str, Row] = {}
    for line, of_line in zip(table.rows, cells, strict=True):
        for column, cell in zip(table.columns, of_line, strict=True):
            if cell.row is not None:
                subject = json.dumps(split(table.options(line, column))[0], sort_keys=True)
                _refuse_difference(first.setdefault(subject, cell.row), cell.row)


def _refuse_words_beside_pieces(rows: Sequence[Row]) -> None:
    """Raise `ValueError` where some models predict whole words (`model.tokens=words`), and others do not."""
    kinds = {str(row["identity"]["model"].get("tokenizer")).startswith("words"): row for row in rows}
    if len(kinds) > 1:
        raise ValueError(
            f"runs {kinds[True]['run_id']} and {kinds[False]['run_id']} cannot stand in one table: the first"
            " has perplexities of words, the second of pieces of words"
        )


def _refuse_difference(row: Row, other: Row) -> None:
    if "perplexity" not in row["metrics"] or "perplexity" not in other["metrics"]:
        return
    left, right = compare.conditions(row), compare.conditions(other)
    differing = [f"{part} is {left[part]} and {right[part]}" for part in left if left[part] != right[part]]
    if differing:
        raise ValueError(
            f"runs {row['run_id']} and {other['run_id']} cannot stand in one table: {'; '.join(differing)}"
        )


def _check_baseline(table: Table, column: Column, cells: Sequence[Cell]) -> str:
    """Return the reason why no value of a column is judged; empty where there is none."""
    if column.refused or all(cell.row is None for cell in cells):
        return ""
    where = " ".join(filter(None, (column.group, column.label)))
    for line, cell in zip(table.rows, cells, strict=True):
        if line.baseline and cell.paper is not None:
            if cell.ours is None:
                return f"{where}: the dense model is not measured, so nothing of it is judged; {cell.note}"
            if cell.verdict is Judgement.differs:
                size = f"{100 * (cell.ours / cell.paper - 1):+.1f} %"
                return (
                    f"{where}: the dense model has {cell.ours:.2f}, the paper's {cell.paper:.2f} ({size});"
                    " nothing of it is judged"
                )
    return ""


def _trusted(line: Line, cells: Sequence[Cell], checks: Sequence[str]) -> list[Cell]:
    """Return a line's cells, untrusted where the column's dense model failed its check."""
    judged = (Judgement.reproduced, Judgement.differs)
    return [
        replace(cell, verdict=Judgement.untrusted)
        if check and not line.baseline and cell.verdict in judged
        else cell
        for cell, check in zip(cells, checks, strict=True)
    ]


def _mark_best(table: Table, cells: Sequence[Sequence[Cell]]) -> list[list[Cell]]:
    """Return the cells with the best of each section and column marked, where there is one."""
    marked = [list(row) for row in cells]
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
    """Return the number of the cell that beats all others; None where there is none, or only one cell."""
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


def _title(line: Line, column: Column) -> str:
    return " / ".join(filter(None, (line.section, line.label, column.group, column.label)))
