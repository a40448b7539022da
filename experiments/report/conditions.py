"""Conditions of the runs: model, text, protocol, code, machine and dates of each group."""

from collections.abc import Iterable, Sequence
from typing import Any

from experiments.report.comparable import Group
from experiments.results.paths import get_path
from experiments.results.record import Row

Facts = dict[str, str]
"""Heading → words."""


def about(group: Group) -> Facts:
    """Return the conditions that the runs of a group share, and the code and machines that made them."""
    first, rows = group.rows[0], group.rows
    protocol = first["protocol"]
    return {
        "runs": f"{len(rows)}, {when(rows)}",
        "model": pairs(first["identity"]["model"]),
        "text": (
            f"{protocol.get('source', '')}, {protocol['tokens']:,} tokens,"
            f" fingerprint {protocol['fingerprint']}"
        ),
        "protocol": _protocol(first),
        "code": commits(rows),
        "machine": machines(rows),
        "packages": _several(pairs(get_path(row, "provenance.packages") or {}) for row in rows),
    }


def _protocol(row: Row) -> str:
    perplexity, protocol = row["metrics"].get("perplexity"), row["protocol"]
    windows = f"{perplexity['windows']} windows of {perplexity['seqlen']} tokens; " if perplexity else ""
    bos = f"; BOS {protocol['bos']}" if "bos" in protocol else ""
    return (
        f"{windows}{protocol['dtype']} on {row['identity']['device']}{bos}; tokenizer {protocol['tokenizer']}"
    )


def commits(rows: Sequence[Row]) -> str:
    """Return the commits of rows, each once."""
    return _several(commit(row) for row in rows)


def machines(rows: Sequence[Row]) -> str:
    """Return the machines of rows, each once."""
    return _several(machine(row) for row in rows)


def commit(row: Row) -> str:
    """Return the commit of the code that made a row, and whether files differed from it."""
    code = get_path(row, "provenance.code") or {}
    return f"{(code.get('commit') or 'unknown')[:10]}{' with changes' if code.get('changed') else ''}"


def machine(row: Row) -> str:
    """Return device, threads and platform of a run."""
    provenance = row.get("provenance", {})
    threads = f"{provenance.get('torch_threads', '?')} of {provenance.get('cpu_count', '?')} threads"
    return f"{provenance.get('device', 'unknown')}, {threads}, {provenance.get('platform', '')}"


def when(rows: Sequence[Row]) -> str:
    """Return the first and the last day of rows."""
    dates = sorted(day[:10] for row in rows if (day := get_path(row, "provenance.finished_at")))
    return " to ".join(dict.fromkeys((dates[0], dates[-1]))) if dates else "date unknown"


def pairs(values: dict[str, Any]) -> str:
    """Return names and values in one line, long values (hashes) cut."""
    return ", ".join(f"{key} {str(value)[:16]}" for key, value in values.items() if value is not None)


def _several(words: Iterable[str]) -> str:
    """Return each distinct text once, with its number of runs where texts differ."""
    every = list(words)
    distinct = list(dict.fromkeys(every))
    if len(distinct) == 1:
        return distinct[0]
    return "; ".join(f"{each} ({every.count(each)} run{'s' * (every.count(each) > 1)})" for each in distinct)
