"""A leaderboard of runs that several people measured: what is comparable is ranked, all else says why not.

A board has the rows that agree in the keys of `--group-by`, such as the model. Ranked are those of one
protocol (the one with most measurers, then most rows), of the newest versions, of committed code, and with a
finite perplexity. They stand by mean NLL; runs that cannot be told from the first run of a rank (paired 95 %
interval) share the rank. The next rank is 1 + the different runs above.

The same run measured by two people stands there twice, and a line has their difference. Where nothing else
comes between, they share a rank and count once.

Not covered: a board does not set runs of many bits apart from those of few, unless `bits` is one of its keys.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from experiments.common.intervals import FEWEST_WINDOWS
from experiments.compare.paired import MARKS, Comparison, Verdict, compare
from experiments.report.conditions import commits, machines, when
from experiments.report.eligible import obstacles, other_protocol, same_run, standard, windows
from experiments.report.folders import MEASURED_BY
from experiments.report.versions import Versions, newest
from experiments.results import flat
from experiments.results.columns import ABSENT
from experiments.results.names import method_names
from experiments.results.overview import facts
from experiments.results.paths import get_path
from experiments.results.record import FINISHED, Row

GROUP_BY = ("model", "text")
KEYS = (
    *("model", "text", "method", "bits", "group_size", "activation_bits", "kv_bits", "calibrated"),
    *("device", MEASURED_BY),
)
"""Keys that boards can be made by."""


@dataclass(frozen=True)
class Line:
    """A run on a board."""

    row: Row
    name: str
    rank: int | None = None
    to_first: Comparison | None = None
    """Comparison with the first run of the board."""
    reasons: tuple[str, ...] = ()
    """Reasons why it has no rank; empty for a ranked run."""

    @property
    def by(self) -> str:
        """Name of who measured it."""
        return str(self.row.get(MEASURED_BY, "unknown"))

    @property
    def machine(self) -> str:
        """Processor, threads and system."""
        return machines([self.row])

    @property
    def code(self) -> str:
        """Commit, with a remark where it was changed."""
        return commits([self.row])

    @property
    def metrics(self) -> dict[str, Any]:
        """Flat metrics: perplexity, kl, bits_per_weight."""
        return flat.metrics(self.row)

    @property
    def words(self) -> dict[str, str]:
        """Numbers as text: perplexity, kl, bits_per_weight, and the difference in NLL to the first run."""
        formats = {"perplexity": ",.3f", "kl": ".4f", "bits_per_weight": ".3f"}
        found = {
            key: format(self.metrics[key], form) if key in self.metrics else ABSENT
            for key, form in formats.items()
        }
        return found | {"to_first": _difference(self.to_first)}


@dataclass(frozen=True)
class Repeat:
    """The same run, measured by two people."""

    name: str
    one: Line
    other: Line
    delta_nll: float
    """Mean NLL of the other's less the one's, nats per token."""
    largest: float
    """Largest difference of a window, nats per token."""

    @property
    def words(self) -> str:
        """Names, perplexities, and the differences."""
        both = [f"{line.by} {line.words['perplexity']}" for line in (self.one, self.other)]
        if not self.largest:
            return f"{self.name}: {' and '.join(both)}, equal in every window"
        return (
            f"{self.name}: {' and '.join(both)}, difference in mean NLL {self.delta_nll:+.2g},"
            f" at most {self.largest:.2g} in a window"
        )


@dataclass(frozen=True)
class Board:
    """Runs that agree in the keys of a leaderboard."""

    title: str
    protocol: str
    """Measurement that ranked runs have in common; empty where none is ranked."""
    note: str
    ranked: tuple[Line, ...]
    unranked: tuple[Line, ...]
    repeats: tuple[Repeat, ...]


@dataclass(frozen=True)
class Contribution:
    """Runs of somebody: how many, on which machines, with which code, when."""

    by: str
    runs: int
    machines: str
    code: str
    when: str


@dataclass(frozen=True)
class Leaderboard:
    """Boards, and who measured."""

    contributions: tuple[Contribution, ...]
    boards: tuple[Board, ...]


def leaderboard(
    rows: Sequence[Row], keys: Sequence[str] = GROUP_BY, code: Versions | None = None
) -> Leaderboard:
    """Return the boards of rows, in the order in which each first appears.

    Args:
        rows: rows with `measured_by`.
        keys: what the rows of a board agree in, of `KEYS`.
        code: versions that this code has, beside those of the rows.

    Raises:
        ValueError: a key is unknown.
    """
    for key in keys:
        if key not in KEYS:
            raise ValueError(
                f"--group-by {key} is nothing that boards are made by; choose from {', '.join(KEYS)}"
            )
    known = newest(rows, code or {})
    boards: dict[str, list[Row]] = {}
    for row in rows:
        boards.setdefault(", ".join(_value(row, key) for key in keys), []).append(row)
    people = dict.fromkeys(row[MEASURED_BY] for row in rows)
    return Leaderboard(
        tuple(_contribution(by, [row for row in rows if row[MEASURED_BY] == by]) for by in people),
        tuple(board(title, members, known) for title, members in boards.items()),
    )


def _value(row: Row, key: str) -> str:
    """Return a key's value as a part of a title: "smollm2", "bits 4"."""
    other = {"device": get_path(row, "identity.device"), MEASURED_BY: row[MEASURED_BY]}
    value = (flat.facts(row) | other)[key]
    return str(value) if isinstance(value, str) else f"{key} {value}"


def _contribution(by: str, rows: Sequence[Row]) -> Contribution:
    return Contribution(by, len(rows), machines(rows), commits(rows), when(rows))


def board(title: str, rows: Sequence[Row], known: Versions) -> Board:
    """Return a board of rows, given the newest versions."""
    names = dict(zip([row["run_id"] for row in rows], method_names(rows), strict=True))
    reasons = {row["run_id"]: obstacles(row, known) for row in rows}
    shared = standard([row for row in rows if not reasons[row["run_id"]]])
    if shared:
        for row in rows:
            if row["status"] == FINISHED and not reasons[row["run_id"]]:
                reasons[row["run_id"]] = other_protocol(row, shared)
    lines = [Line(row, names[row["run_id"]], reasons=tuple(reasons[row["run_id"]])) for row in rows]
    ranked = _ranked([line for line in lines if not line.reasons])
    few = any(line.to_first and line.to_first.verdict is Verdict.too_few_windows for line in ranked[1:])
    note = f"Fewer than {FEWEST_WINDOWS} windows: ranks by the mean alone." if few else ""
    unranked = tuple(line for line in lines if line.reasons)
    protocol = facts(shared) if shared else ""
    return Board(title, protocol, note, ranked, unranked, _repeats([*ranked, *unranked]))


def _ranked(lines: Sequence[Line]) -> tuple[Line, ...]:
    """Return lines by mean NLL, with their ranks."""
    ordered = sorted(
        lines, key=lambda line: (get_path(line.row, "metrics.perplexity.value"), line.row["run_id"])
    )
    ranked: list[Line] = []
    sharing: dict[str, Line] = {}  # runs of the last rank, the first one in front
    above = 0
    for line in ordered:
        run, leader = same_run(line.row), next(iter(sharing.values()), None)
        if leader is None or not (run in sharing or _is_alike(line, leader)):
            sharing, rank = {}, above + 1
        above += run not in sharing
        sharing.setdefault(run, line)
        to_first = compare(line.row, ranked[0].row) if ranked else None
        ranked.append(Line(line.row, line.name, rank, to_first))
    return tuple(ranked)


def _is_alike(line: Line, other: Line) -> bool:
    return compare(line.row, other.row).verdict is Verdict.not_distinguishable


def _repeats(lines: Sequence[Line]) -> tuple[Repeat, ...]:
    """Return the pairs of equivalent runs that different people measured."""
    alike: dict[str, list[Line]] = {}
    for line in lines:
        if line.row["status"] == FINISHED and windows(line.row):
            alike.setdefault(same_run(line.row), []).append(line)
    pairs = [pair for each in alike.values() for pair in combinations(each, 2)]
    return tuple(_repeat(one, other) for one, other in pairs if one.by != other.by)


def _repeat(one: Line, other: Line) -> Repeat:
    deltas = [b - a for a, b in zip(windows(one.row), windows(other.row), strict=True)]
    return Repeat(one.name, one, other, sum(deltas) / len(deltas), max(map(abs, deltas)))


def _difference(comparison: Comparison | None) -> str:
    """Return a difference in NLL with its interval; a dash for the first run."""
    if comparison is None:
        return ABSENT
    ends = comparison.interval
    interval = f" [{ends[0]:+.4f}, {ends[1]:+.4f}]" if ends else ""
    mark = MARKS.get(comparison.verdict, "")
    return f"{comparison.delta_nll:+.4f}{interval} {mark}".strip()
