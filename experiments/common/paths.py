"""Folders: derived files (safe to delete at any time), the user's own data, and the configuration files."""

import os
from pathlib import Path


def cache_dir() -> Path:
    """Return the folder of derived files: `$SINQ_CACHE`, or `sinq-harness` in the user's cache folder."""
    chosen = os.environ.get("SINQ_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser() / "sinq-harness"


def data_dir() -> Path | None:
    """Return `$SINQ_DATA`, a folder of texts and models beside the project, or None where it is not set."""
    chosen = os.environ.get("SINQ_DATA")
    return Path(chosen).expanduser() if chosen else None


def conf_dir() -> Path:
    """Return the folder of YAML files: inside this package in an installed wheel, beside it in a checkout."""
    installed = Path(__file__).parents[1] / "conf"
    return installed if installed.is_dir() else Path(__file__).parents[2] / "conf"
