"""Refusals of models, each in one line."""

from sinq.common.library_errors import reason


class UnfitModelError(ValueError):
    """A model that this project does not measure; the message says which and why."""


def cannot_be_loaded(path: str, error: Exception) -> str:
    """Return why a model cannot be loaded, in one line, from the error of a library."""
    advice = "; check model.path, which without a network must be a local folder"
    return f"model {path} cannot be loaded: {reason(error).rstrip('.')}{advice}"
