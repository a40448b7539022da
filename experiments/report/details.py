"""Details of a run, as the page shows them for the one that is picked: options, command, provenance."""

import shlex
from dataclasses import dataclass
from typing import Any

from experiments.report.conditions import commit, machine, pairs
from experiments.results.names import HASHES, USUAL
from experiments.results.paths import flatten, get_path, settings
from experiments.results.record import Row

MEASURED = ("evaluation", "text", "device")
"""Parts of a row's settings that say how it was measured: after those that change the model."""


@dataclass(frozen=True)
class Details:
    """Facts of a picked run."""

    chosen: dict[str, str]
    """Options that differ from their defaults, by dotted path."""
    others: dict[str, str]
    """Options at their defaults, versions and hashes."""
    command: str
    """The command that repeats the run, or an empty text where the row has none."""
    provenance: dict[str, str]


def details(row: Row) -> Details:
    """Return the details of a row."""
    identity, every = flatten(row["identity"]), flatten(settings(row))
    words = {path: _word(every[path]) for path in sorted(every, key=_order)}
    chosen = {path for path in identity if _tells(path, identity[path])}
    return Details(
        {path: word for path, word in words.items() if path in chosen},
        {path: word for path, word in words.items() if path not in chosen},
        _command(row),
        _provenance(row),
    )


def _tells(path: str, value: Any) -> bool:
    """Return whether an option of the identity was chosen: no version, no hash, no default that it keeps."""
    return path.rpartition(".")[2] not in ("version", *HASHES) and value != USUAL.get(path)


def _order(path: str) -> tuple[bool, bool, str]:
    """Return a sort key: the method first, what was measured last."""
    part = path.partition(".")[0]
    return part in MEASURED, part != "method", path


def _word(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _command(row: Row) -> str:
    command = get_path(row, "provenance.command")
    return shlex.join(["python", *map(str, command)]) if isinstance(command, list) and command else ""


def _provenance(row: Row) -> dict[str, str]:
    found = {
        "finished": get_path(row, "provenance.finished_at"),
        "code": commit(row),
        "machine": machine(row),
        "packages": pairs(get_path(row, "provenance.packages") or {}),
        "Python": get_path(row, "provenance.python"),
        "took": _seconds(get_path(row, "cost.seconds")),
        "peak memory": _megabytes(get_path(row, "cost.peak_memory_bytes")),
        "model": pairs(row["identity"]["model"]),
        "text": f"{row['protocol'].get('source', '')}, fingerprint {row['protocol']['fingerprint']}",
        "row": f"runs/{row['run_id']}.json",
    }
    return {heading: str(value) for heading, value in found.items() if value}


def _seconds(seconds: Any) -> str:
    return f"{seconds:.3g} s" if isinstance(seconds, int | float) else ""


def _megabytes(size: Any) -> str:
    return f"{size / 1e6:,.0f} MB" if isinstance(size, int | float) else ""
