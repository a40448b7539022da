"""Where derived files live between runs: the converted default model and tokenised texts. Safe to delete at any time."""

import os
from pathlib import Path


def cache_dir() -> Path:
    """`$SINQ_CACHE`, or `sinq-harness` in the user's cache folder."""
    chosen = os.environ.get("SINQ_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser() / "sinq-harness"


def data_dir() -> Path | None:
    """`$SINQ_DATA`: a folder of texts and models kept beside the project, if the user named one."""
    chosen = os.environ.get("SINQ_DATA")
    return Path(chosen).expanduser() if chosen else None
