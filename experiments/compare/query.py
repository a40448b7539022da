"""Rows chosen by words: an id, the beginning of an id, a name, or a query.

A query is `method=sinq,bits=4,text=wikitext2`. Its keys are the groups of `conf/`, the flat columns of the
data frame (method, bits, group_size, calibrated, model, text), and the paths in the row's identity or the
last parts of these paths (`method.grid.tiling`, `tiling`).
"""

from collections.abc import Callable, Sequence

from experiments.compare.equivalent import finished_at, kind, listed, newest
from experiments.compare.paired import differences
from experiments.results import flat
from experiments.results.names import treatment
from experiments.results.paths import as_json, flatten, settings
from experiments.results.record import FINISHED, Row

MOST = 20
"""Rows that a message lists."""


def select(rows: Sequence[Row], words: str) -> tuple[Row, str]:
    """Return the finished run that `words` name, and a note where it is the newest of several.

    Raises:
        ValueError: no run fits, or several that are not equivalent; the message lists them, or the keys of a
            query.
    """
    found = _found(rows, words)
    kinds = newest(found)
    if len(kinds) != 1:
        raise ValueError(_several(words, kinds))
    return kinds[0], _note(words, found, kinds[0])


def select_pair(rows: Sequence[Row], one: str, other: str) -> tuple[Row, Row, list[str]]:
    """Return the two runs that are meant, and notes where they are the newest of several.

    Where words name several runs, only those that can be compared with one of the other side's count. If
    these pairs differ in the measurement alone, the newest is taken.

    Raises:
        ValueError: as `select`.
    """
    sides = [newest(_found(rows, words)) for words in (one, other)]
    pairs = [(a, b) for a in sides[0] for b in sides[1] if a is not b and not differences(a, b)]
    treatments = {as_json([treatment(a), treatment(b)]) for a, b in pairs}
    if all(len(side) == 1 for side in sides) or len(treatments) != 1:
        first, second = select(rows, one), select(rows, other)
        return first[0], second[0], [note for note in (first[1], second[1]) if note]
    a, b = max(pairs, key=lambda pair: [finished_at(row) for row in pair])
    chosen = [_note(words, _found(rows, words), row) for words, row in ((one, a), (other, b))]
    return a, b, [note for note in chosen if note]


def _found(rows: Sequence[Row], words: str) -> list[Row]:
    """Return the finished rows that words name.

    Raises:
        ValueError: there are none; the message lists what there is.
    """
    finished = [row for row in rows if row["status"] == FINISHED]
    if "=" in words:
        fits = _query(finished, words)
        found = [row for row in finished if fits(row)]
    else:
        found = [row for row in finished if row["run_id"].startswith(words) or row["name"] == words]
    if not found:
        raise ValueError(
            f"{words} matches none of {len(finished)} finished runs; there are:{_some(finished)}"
        )
    return found


def _several(words: str, rows: Sequence[Row]) -> str:
    return f"{words} matches {len(rows)} runs; add an option to it, or give an id:{_some(rows)}"


def _some(rows: Sequence[Row]) -> str:
    more = f"\n  and {len(rows) - MOST} more" if len(rows) > MOST else ""
    return listed(rows[:MOST]) + more


def _note(words: str, found: Sequence[Row], row: Row) -> str:
    """Return the note that a row is the newest of several; empty where it is the only one."""
    alike = [other for other in found if kind(other) == kind(row)]
    if len(found) == 1:
        return ""
    equivalent = "equivalent " if len(alike) == len(found) else ""
    return f"{words}: {len(found)} {equivalent}runs match; the newest is taken, {row['run_id']}"


def matching(rows: Sequence[Row], query: str) -> list[Row]:
    """Return the rows that fit a query.

    Raises:
        ValueError: no row fits, or the query has a key that no row has.
    """
    fits = _query(rows, query)
    found = [row for row in rows if fits(row)]
    if not found:
        raise ValueError(f"{query} fits none of {len(rows)} runs; a query is like method=sinq,bits=4")
    return found


def _query(rows: Sequence[Row], words: str) -> Callable[[Row], bool]:
    """Return the predicate of a query `key=value,key=value`, whose keys some of `rows` must have."""
    pairs = [pair.partition("=")[::2] for pair in words.split(",")]
    known = sorted({key for row in rows for key in _keys(row) if "." not in key or key in words})
    for key, _ in pairs:
        if key not in known:
            raise ValueError(
                f"{key} in {words} is nothing that a run was chosen by; there are: {', '.join(known)}"
            )
    return lambda row: all(value in _keys(row).get(key, ()) for key, value in pairs)


def _keys(row: Row) -> dict[str, set[str]]:
    """Return the keys that a query can ask of a row, each with the values that match."""
    keys: dict[str, set[str]] = {key: {str(value)} for key, value in row.get("choices", {}).items()}
    groups = set(keys)
    for path, value in flatten(settings(row)).items():
        for key in {path, path.rpartition(".")[2]} - groups:
            keys.setdefault(key, set()).add(str(value))
    for key, value in ({"status": row["status"]} | flat.facts(row)).items():
        words = {str(value), str(value).lower()} if isinstance(value, bool) else {str(value)}
        keys[key] = words | (keys.get(key, set()) if key in groups else set())
    return keys
