"""Columns that set each run against one row of its section: the difference in mean NLL, paired by windows, with its 95 % interval."""

from collections.abc import Sequence
from dataclasses import replace

from experiments import compare
from experiments.tables.cell import Cell, Judgement
from experiments.tables.spec import Line, Table


def contrasted(table: Table, cells: Sequence[Sequence[Cell]]) -> list[list[Cell]]:
    """The cells, those of columns with `against` as differences to the row it names."""
    changed = [list(own) for own in cells]
    for k, column in enumerate(table.columns):
        if column.against:
            for n, line in enumerate(table.rows):
                changed[n][k] = _contrasted(
                    cells[n][k], line, _reference(table, line, column.against, [own[k] for own in cells])
                )
    return changed


def _reference(table: Table, line: Line, label: str, cells: Sequence[Cell]) -> Cell | None:
    """The cell of the row of that label in the line's section; the line's own where it is that row itself."""
    return next(
        (
            cell
            for other, cell in zip(table.rows, cells, strict=True)
            if (other.section, other.label) == (line.section, label)
        ),
        None,
    )


def _contrasted(cell: Cell, line: Line, reference: Cell | None) -> Cell:
    if cell.row is None:
        return cell
    if cell is reference or reference is None:
        return Cell(Judgement.not_applicable)
    if reference.row is None:
        return Cell(Judgement.unjudged, row=cell.row, note="what it is set against is not measured")
    if obstacles := compare.differences(cell.row, reference.row):
        return Cell(Judgement.unjudged, row=cell.row, note="; ".join(obstacles))
    comparison = compare.compare(cell.row, reference.row)
    return replace(cell, ours=comparison.delta_nll, comparison=comparison, verdict=Judgement.unjudged)
