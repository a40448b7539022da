"""Names of rows in tables: a method's name, and the options that set it apart from its namesakes.

A name says what was done to the model. How it was measured is in other columns and in titles, and options at
their defaults are not repeated: of two rows `sinq 4-bit g64`, one with another tiling is
`sinq 4-bit g64 tiling=2`.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from experiments.results.flat import name_of, unnested
from experiments.results.paths import as_json, flatten, get_path, settings
from experiments.results.schema import Row

TREATMENT = ("method", "layers", "calibration", "kernel", "stream")
"""Parts of a row's settings that tell what was done to the model."""
USUAL = {"stream": False, "kernel": "auto"}
"""Settings whose defaults a row's identity does not leave out."""
HASHES = ("fingerprint", "sha256", "revision")

Fact = Callable[[Row], str]
MEASURED: tuple[Fact, ...] = (
    lambda row: f"by {row.get('measured_by', 'unknown')}",
    lambda row: f"{get_path(row, 'metrics.perplexity.windows') or 'no'} windows",
    lambda row: f"of {get_path(row, 'metrics.perplexity.seqlen')} tokens",
    lambda row: str(get_path(row, "identity.model.dtype")),
    lambda row: f"on {get_path(row, 'identity.device')}",
    lambda row: f"commit {str(get_path(row, 'protocol.model_commit'))[:10]}",
    lambda row: " and ".join(get_path(row, "identity.evaluation") or {}),
)
"""Facts that set apart rows of one treatment, the most telling first."""


def subject(row: Row) -> str:
    """Return the names of a row's model and text: "Qwen3-1.7B on wikitext2"."""
    return f"{name_of(row, 'model')} on {name_of(row, 'text')}"


def treatment(row: Row, defaults: bool = True) -> dict[str, Any]:
    """Return what was done to the model, as dotted options without hashes.

    Args:
        defaults: include the options that have their default values.
    """
    whole = settings(row) if defaults else row.get("identity") or {}
    parts = {part: whole[part] for part in TREATMENT if part in whole}
    flat = flatten(_with_empty(parts | {"method": unnested(whole.get("method"))}))
    return {
        path: value
        for path, value in flat.items()
        if path.rpartition(".")[2] not in HASHES and (defaults or value != USUAL.get(path))
    }


def _with_empty(value: Any) -> Any:
    """Return nested dicts with "yes" for an empty one: options that are there, all at their defaults."""
    if not isinstance(value, dict):
        return value
    return {key: _with_empty(item) if item != {} else "yes" for key, item in value.items()}


def method_names(rows: Sequence[Row]) -> list[str]:
    """Return the rows' names, each followed by the options in which the methods of namesakes differ.

    Rows that differ in the measurement alone, or not at all, have equal names.
    """
    every = [treatment(row) for row in rows]
    together: dict[str, list[dict[str, Any]]] = {}
    for row, options in zip(rows, every, strict=True):
        together.setdefault(row["name"], []).append(options)
    differing = {name: _differing(namesakes) for name, namesakes in together.items()}
    return [" ".join([row["name"], *_parts(treatment(row, False), differing[row["name"]])]) for row in rows]


def _differing(namesakes: Sequence[dict[str, Any]]) -> set[str]:
    """Return the paths whose values are not the same in all."""
    paths = {path for options in namesakes for path in options}
    return {
        path for path in paths if len({as_json(options.get(path, "absent")) for options in namesakes}) > 1
    }


def _parts(options: dict[str, Any], differing: set[str]) -> list[str]:
    shown = {
        path: value
        for path, value in options.items()
        if path in differing and _tells(path, options, differing)
    }
    labels = {path: _label(path) for path in shown}
    count = Counter(labels.values())
    full = {path: path if count[label] > 1 else label for path, label in labels.items()}
    return [f"{full[path]}={_word(shown[path])}" for path in sorted(shown)]


def _tells(path: str, options: dict[str, Any], differing: set[str]) -> bool:
    """Return whether an option says more than others: not the versions of different classes.

    A calibration on a text is named by the text, one without (its own tokens, random ones) by the source.
    """
    if path == "calibration.name":
        return "calibration.text.name" not in options
    above, _, last = path.rpartition(".")
    return path != "calibration.text.part" and not (last == "version" and f"{above}.name" in differing)


def _label(path: str) -> str:
    if path == "calibration.text.name":
        return "calibration"
    above, _, last = path.rpartition(".")
    return above.rpartition(".")[2] if last == "name" else last


def _word(value: Any) -> str:
    return f"[{','.join(map(str, value))}]" if isinstance(value, list) else str(value)


def distinct_names(rows: Sequence[Row]) -> list[str]:
    """Return names that are all different, in a list that has nothing beside the name.

    Where methods do not set rows apart, the name has model and text, then the measurement, at last the id.
    """
    return _apart(_apart(method_names(rows), rows, (subject,)), rows, MEASURED, last=True)


def titles(rows: Sequence[Row]) -> list[str]:
    """Return a title for each group, given a row of each: model and text, and what sets them apart."""
    return _apart([subject(row) for row in rows], rows, MEASURED, last=True)


def _apart(names: Sequence[str], rows: Sequence[Row], facts: Sequence[Fact], last: bool = False) -> list[str]:
    """Return the names, equal ones followed by the facts that differ.

    Args:
        last: add the ids of rows whose names are still equal.
    """
    alike: dict[str, list[Row]] = {}
    for name, row in zip(names, rows, strict=True):
        alike.setdefault(name, []).append(row)
    telling = {
        name: [fact for fact in facts if len({fact(row) for row in namesakes}) > 1]
        for name, namesakes in alike.items()
    }
    longer = [
        ", ".join([name, *(fact(row) for fact in telling[name])])
        for name, row in zip(names, rows, strict=True)
    ]
    count = Counter(longer)
    return [
        f"{name}, run {row['run_id']}" if last and count[name] > 1 else name
        for name, row in zip(longer, rows, strict=True)
    ]
