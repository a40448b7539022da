"""Refusals of models, each in one line."""


class UnfitModelError(ValueError):
    """A model that this project does not measure; the message says which and why."""


def cannot_be_loaded(path: str, error: Exception) -> str:
    """Return why a model cannot be loaded, in one line, from the error of a library."""
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    if "trust_remote_code" in str(error):
        return f"model {path} cannot be loaded: it comes with code of its own, which is never run here"
    advice = "Check model.path; without a network it must be a local folder"
    return f"model {path} cannot be loaded: {reason} {advice}"
