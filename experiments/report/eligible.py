"""Reasons why a row has no rank on a leaderboard: a fault of its own, or another protocol."""

import json
from collections.abc import Sequence
from math import inf, isfinite

from experiments.compare.equivalent import finished_at
from experiments.compare.paired import conditions
from experiments.report.figures.quality import FLOOR
from experiments.report.folders import MEASURED_BY
from experiments.report.versions import Versions, outdated
from experiments.results import flat
from experiments.results.names import HASHES, treatment
from experiments.results.paths import as_json, get_path
from experiments.results.record import FINISHED, Row

DENSE = "the dense model, which the others are compressed from"
NOISE = "the dense model in another number format: the noise of the measurement"


def obstacles(row: Row, known: Versions) -> list[str]:
    """Return the reasons why a row is not ranked on any board; empty where it may be."""
    if row["status"] != FINISHED:
        return [f"it failed: {row.get('reason') or 'no reason recorded'}"]
    if row["dense_run_id"] is None:
        return [DENSE]
    if get_path(row, "identity.method.name") == FLOOR:
        return [NOISE]
    found = outdated(row, known)
    if not isfinite(get_path(row, "metrics.perplexity.value") or inf) or not windows(row):
        found.append("it has no finite perplexity")
    code = get_path(row, "provenance.code") or {}
    if not code.get("commit"):
        found.append("its code is unknown: no commit was recorded")
    elif code.get("changed") is not False:
        found.append("its code had changes that are in no commit")
    if get_path(row, "identity.calibration.text.fingerprint") == row["protocol"]["fingerprint"]:
        found.append("it was calibrated on the text that is evaluated")
    return found


def windows(row: Row) -> list[float]:
    """Return the NLL of every window; empty where it was not measured, or is not finite."""
    nll: list[float] = get_path(row, "samples.perplexity.window_nll") or []
    return nll if all(map(isfinite, nll)) else []


def standard(rows: Sequence[Row]) -> Row | None:
    """Return the newest row of the protocol that most people, then most rows, have; None without rows."""
    protocols: dict[str, list[Row]] = {}
    for row in rows:
        protocols.setdefault(json.dumps(conditions(row), sort_keys=True), []).append(row)
    most = max(
        protocols.values(),
        key=lambda each: (len({row[MEASURED_BY] for row in each}), len(each), finished_at(each[-1])),
        default=None,
    )
    return None if most is None else max(most, key=finished_at)


def other_protocol(row: Row, standard: Row) -> list[str]:
    """Return the conditions in which a row differs from those of the ranked ones, with both values."""
    first, second = conditions(row), conditions(standard)
    words, others = _protocol(row), _protocol(standard)
    return [f"{name} is {words[name]}, not {others[name]}" for name in first if first[name] != second[name]]


def _protocol(row: Row) -> dict[str, str]:
    """Return the conditions of a row in words, hashes shortened."""
    found = conditions(row)
    options = row["identity"]["model"].items()
    model = " ".join(f"{key} {str(value)[:16] if key in HASHES else value}" for key, value in options)
    text = f"{flat.name_of(row, 'text')} {found['text']}"
    return {name: str(value) for name, value in found.items()} | {"model": model, "text": text}


def same_run(row: Row) -> str:
    """Return a text that is equal for the same treatment, of the same versions, measured alike."""
    calibration = get_path(row, "identity.calibration.text.fingerprint")
    return as_json([treatment(row, defaults=False), calibration, conditions(row)])
