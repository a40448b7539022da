"""The page: figures, table and conditions in one HTML file that contains its style and script."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from experiments.compare.difference import matching
from experiments.compare.paired import Comparison
from experiments.report import durations, forest, heat_maps, pareto
from experiments.report.colours import rules
from experiments.report.comparable import Group, groups
from experiments.report.conditions import Facts, about
from experiments.report.figures import Figure
from experiments.report.render_svg import draw
from experiments.report.run_table import Table, table
from experiments.results import record
from experiments.results.record import Row


@dataclass(frozen=True)
class Section:
    """A group's part of the page."""

    group: Group
    about: Facts
    figures: tuple[Figure, ...]
    obstacle: str
    """Reason for showing no comparison with a reference, or empty."""


@dataclass(frozen=True)
class Report:
    """The content of the page."""

    results_dir: Path
    sections: tuple[Section, ...]
    table: Table
    failed: tuple[Row, ...]
    unreadable: dict[str, str]


def collect(results_dir: Path, against: str | None = None, only: Sequence[str] = ()) -> Report:
    """Return the report on a results folder.

    Args:
        against: method, name or id of the runs that others are compared with.
        only: queries such as `method=sinq,bits=4`. Compressed runs that match none are left out; no query, no
            restriction.

    Raises:
        ValueError: the folder has no rows, no row is called `against`, or no run matches a query.
    """
    rows, unreadable = record.read(results_dir)
    if not rows:
        found = (
            f"; {len(unreadable)} files there cannot be read, such as {next(iter(unreadable.items()))}"
            if unreadable
            else ""
        )
        raise ValueError(
            f"{results_dir / 'runs'} has no rows;"
            f" make some with python run.py results_dir={results_dir}{found}"
        )
    rows = chosen(rows, only)
    found_groups = groups(rows)
    if against and not any(forest.reference(group, against) for group in found_groups):
        entries = [entry for group in found_groups for entry in group.entries]
        known = sorted({entry.row["choices"].get("method", entry.row["name"]) for entry in entries})
        raise ValueError(
            f"--against {against} names no finished run;"
            f" give a run id, a run's name or one of: {', '.join(known)}"
        )
    compared, obstacles = _compared(found_groups, against)
    sections = tuple(
        _section(group, results_dir, compared[group.key], against, obstacles.get(group.key, ""))
        for group in found_groups
    )
    failed = tuple(row for row in rows if row["status"] == record.FAILED)
    by_run = {run: comparison for each in compared.values() for run, comparison in each.items()}
    return Report(results_dir, sections, table(found_groups, by_run), failed, unreadable)


def chosen(rows: list[Row], queries: Sequence[str]) -> list[Row]:
    """Return the rows that match one of the queries, and the dense ones; all where there is no query."""
    if not queries:
        return rows
    matched = {row["run_id"] for query in queries for row in matching(rows, query)}
    return [row for row in rows if row["run_id"] in matched or row["dense_run_id"] is None]


def _compared(
    found: list[Group], against: str | None
) -> tuple[dict[str, dict[str, Comparison]], dict[str, str]]:
    """Return comparisons and obstacles by group key. An ambiguous name affects only the group that has it."""
    compared: dict[str, dict[str, Comparison]] = {}
    obstacles: dict[str, str] = {}
    for group in found:
        compared[group.key] = {}
        try:
            compared[group.key] = forest.comparisons(group, against)
        except ValueError as error:
            obstacles[group.key] = str(error)
    return compared, obstacles


def _section(
    group: Group, results_dir: Path, compared: dict[str, Comparison], against: str | None, obstacle: str
) -> Section:
    differences = forest.forest(group, compared, forest.reference(group, against))
    single = [figure for figure in (differences, durations.time(group)) if figure]
    figures = (*pareto.charts(group), *single, *forest.latency(group), *heat_maps.maps(group, results_dir))
    return Section(group, about(group), figures, obstacle)


def html(report: Report) -> str:
    """Return the page's HTML."""
    loader = PackageLoader("experiments.report", "assets")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    assets = files("experiments.report") / "assets"
    return environment.get_template("page.html").render(
        report=report,
        draw=draw,
        is_map=lambda figure: isinstance(figure, heat_maps.HeatMaps),
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        style=Markup(rules() + (assets / "page.css").read_text()),
        script=Markup((assets / "page.js").read_text()),
    )
