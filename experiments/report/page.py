"""The page: figures, table and conditions in one HTML file that contains its style and script."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path

import pandas as pd
import vl_convert
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from experiments.compare.counterpart import Counterparts
from experiments.compare.paired import Comparison
from experiments.compare.query import matching
from experiments.report import page_data
from experiments.report.comparable import Entry, Group, groups
from experiments.report.conditions import Facts, about
from experiments.report.figure import Figure
from experiments.report.figures import trainings
from experiments.report.figures.all import figures_of
from experiments.report.figures.series import Series, series
from experiments.report.folders import Folder, Merged, merge
from experiments.report.leaderboard import Leaderboard
from experiments.report.reference import counterparts, reference
from experiments.report.run_table import Table, table
from experiments.report.theme import THEMES, rules
from experiments.results import listing, record
from experiments.results.names import subject
from experiments.results.paths import get_path
from experiments.results.record import FINISHED, Row

Boards = Callable[[Sequence[Row]], Leaderboard]
SCRIPTS = (
    "data", "state", "choose", "marks", "menus", "table", "copy", "panel", "tooltip", "figures", "main",
)  # fmt: skip
"""Files of `assets/`, in the order in which they use each other."""


@dataclass(frozen=True)
class Section:
    """A group's part of the page."""

    group: Group
    about: Facts
    figures: tuple[Figure, ...]
    notes: tuple[str, ...]
    """Choices among several references, and those that could not be made."""


@dataclass(frozen=True)
class Report:
    """The content of the page."""

    sections: tuple[Section, ...]
    table: Table
    failed: tuple[str, ...]
    """A line for each distinct reason."""
    unreadable: dict[str, str]
    over_steps: tuple[Figure, ...] = ()
    """Curves of checkpoints, which are models of their own and stand in groups of their own."""
    heading: str = ""
    """Title that was asked for."""
    notes: tuple[str, ...] = ()
    """Lines on how folders were merged."""
    leaderboard: Leaderboard | None = None

    @property
    def title(self) -> str:
        """Title of the page: as asked for, or what was run, how often, by which code, and when."""
        if self.heading:
            return self.heading
        return " – ".join(["SINQ harness", headline([entry.row for entry in self._entries])])

    @property
    def _entries(self) -> list[Entry]:
        return [entry for section in self.sections for entry in section.group.entries]


def collect(results_dir: Path, against: str | None = None, only: Sequence[str] = ()) -> Report:
    """Return the report on a results folder; see `report_on`."""
    return report_on(merge([Folder(results_dir, results_dir.name)]), against, only)


def report_on(
    merged: Merged,
    against: str | None = None,
    only: Sequence[str] = (),
    heading: str = "",
    boards: Boards | None = None,
) -> Report:
    """Return the report on the rows of results folders.

    Args:
        against: method, name or id of the runs that others are compared with.
        only: queries such as `method=sinq,bits=4`. Compressed runs that match none are left out; no query, no
            restriction.
        heading: title of the page; by default what was run.
        boards: makes a leaderboard of the chosen rows; None for no leaderboard.

    Raises:
        ValueError: no row is called `against`, or no run matches a query.
    """
    rows = chosen(list(merged.rows), only)
    found_groups = groups(rows)
    if against and not any(reference(group, against) for group in found_groups):
        entries = [entry for group in found_groups for entry in group.entries]
        known = sorted({entry.row["choices"].get("method", entry.row["name"]) for entry in entries})
        raise ValueError(
            f"--against {against} names no finished run;"
            f" give a run id, a run's name or one of: {', '.join(known)}"
        )
    tables, damaged = _layers(rows, merged)
    compared = {group.key: counterparts(group, against) for group in found_groups}
    looks = series(found_groups)
    sections = tuple(_section(group, looks, tables, compared[group.key], against) for group in found_groups)
    by_run = {run: found for group in found_groups for run, found in _by_run(group, compared).items()}
    failed = tuple(listing.failures(rows))
    over_steps = tuple(trainings.over_steps(rows))
    unreadable = {**merged.unreadable, **damaged}
    return Report(
        sections, table(found_groups, by_run), failed, unreadable, over_steps,
        heading, merged.notes, boards(rows) if boards else None,
    )  # fmt: skip


def _layers(rows: list[Row], merged: Merged) -> tuple[dict[str, pd.DataFrame], dict[str, str]]:
    """Return the tables of layers by run id, and the damaged ones by file name with the reason."""
    tables, damaged = {}, {}
    for row in rows:
        try:
            tables[row["run_id"]] = merged.layers(row["run_id"])
        except record.RowError as error:
            folder, run_id = merged.sources[row["run_id"]]
            file = record.layers_path(folder.path, run_id)
            damaged[merged.label(folder, file.name)] = str(error).removeprefix(f"{file} ")
    return tables, damaged


def _by_run(group: Group, compared: Mapping[str, Counterparts | None]) -> dict[str, Comparison]:
    found = compared[group.key]
    pairs = zip(group.rows, found.comparisons, strict=True) if found else ()
    return {row["run_id"]: comparison for row, comparison in pairs if comparison}


def headline(rows: Sequence[Row]) -> str:
    """Return models and texts, the number of runs, commits and dates of rows, in a few words."""
    subjects = _few([subject(row) for row in rows])
    commits = _few([(get_path(row, "provenance.code.commit") or "unknown")[:7] for row in rows])
    dates = sorted({row["provenance"]["finished_at"][:10] for row in rows})
    when = " to ".join(dict.fromkeys([*dates[:1], *dates[-1:]]))
    count = f"{len(rows)} run{'s' * (len(rows) != 1)}"
    return ", ".join(filter(None, (subjects, count, commits and f"commit {commits}", when)))


def _few(words: Sequence[str], most: int = 2) -> str:
    distinct = list(dict.fromkeys(words))
    more = f" and {len(distinct) - most} more" if len(distinct) > most else ""
    return (", " if more else " and ").join(distinct[:most]) + more


def chosen(rows: list[Row], queries: Sequence[str]) -> list[Row]:
    """Return the rows that match one of the queries, and the dense ones; all where there is no query."""
    if not queries:
        return rows
    finished = [row for row in rows if row["status"] == FINISHED]
    matched = {row["run_id"] for query in queries for row in matching(finished, query)}
    dense = {row["run_id"] for row in rows if row["status"] == FINISHED and row["dense_run_id"] is None}
    return [row for row in rows if row["run_id"] in matched | dense]


def _section(
    group: Group,
    looks: Series,
    tables: Mapping[str, pd.DataFrame],
    found: Counterparts | None,
    against: str | None,
) -> Section:
    compared = _by_run(group, {group.key: found})
    figures = figures_of(group, looks, tables, compared, reference(group, against))
    return Section(group, about(group), figures, found.notes if found else ())


def html(report: Report) -> str:
    """Return the page's HTML."""
    loader = PackageLoader("experiments.report", "assets")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    assets = files("experiments.report") / "assets"
    groups = [section.group for section in report.sections]
    return environment.get_template("page.html").render(
        report=report,
        data=page_data.data(report.table, groups),
        themes={name: theme.config for name, theme in THEMES.items()},
        script=page_data.script,
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        style=Markup(rules() + (assets / "page.css").read_text()),
        vega=Markup(vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")),
        scripts=[Markup((assets / f"{name}.js").read_text()) for name in SCRIPTS],
    )
