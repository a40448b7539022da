"""Dotted paths into nested dicts, and the settings of a row."""

import json
from typing import Any


def settings(row: dict[str, Any]) -> dict[str, Any]:
    """Return every setting that decides a row's numbers: its identity, and the options at their defaults."""
    return _merged(row.get("options") or {}, row.get("identity") or {})


def _merged(options: dict[str, Any], identity: dict[str, Any]) -> dict[str, Any]:
    """Return nested dicts merged at every level; `identity` wins."""
    both = {
        key: _merged(options[key], identity[key])
        for key in options.keys() & identity.keys()
        if isinstance(options[key], dict) and isinstance(identity[key], dict)
    }
    return options | identity | both


def flatten(nested: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested dicts as one dict with dotted names: {"a": {"b": 1}} → {"a.b": 1}."""
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        name = f"{prefix}{key}"
        flat |= flatten(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return flat


def as_json(value: Any) -> str:
    """Return a value as JSON text with sorted keys: equal values give equal text."""
    return json.dumps(value, sort_keys=True)


def get_path(nested: dict[str, Any], path: str) -> Any:
    """Return the value at a dotted path, or None."""
    value: Any = nested
    for key in path.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return value
