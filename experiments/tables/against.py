"""Columns that compare each run with one row of the section.

Cells are differences in mean NLL, paired by windows, with their 95 % interval.
"""

from collections.abc import Sequence
from dataclasses import replace

from experiments import compare
from experiments.tables.cell import Cell, Judgement
from experiments.tables.spec import Line, Table


def contrasted(table: Table, cells: Sequence[Sequence[Cell]]) -> list[list[Cell]]:
    """Return the cells; in columns with `against`, as differences to the row that it names."""
    changed = [list(row) for row in cells]
    for k, column in enumerate(table.columns):
        if column.against:
            of_column = [row[k] for row in cells]
            for n, line in enumerate(table.rows):
                reference = _reference(table, line, column.against, of_column)
                changed[n][k] = _contrasted(of_column[n], reference)
    return changed


def _reference(table: Table, line: Line, label: str, cells: Sequence[Cell]) -> Cell | None:
    """Return the cell of the row with that label in the line's section; it may be the line itself."""
    for other, cell in zip(table.rows, cells, strict=True):
        if (other.section, other.label) == (line.section, label):
            return cell
    return None


def _contrasted(cell: Cell, reference: Cell | None) -> Cell:
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
