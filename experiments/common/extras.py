"""Optional packages: the extra of this project that installs each, and the advice where one is missing."""

EXTRAS = {
    "wandb": "wandb",
    "lm_eval": "zero-shot",
    "altair": "report",
    "vl_convert": "report",
    "scipy": "analysis",
    "sklearn": "analysis",
    "cffi": "readers",
    "ray": "ray",
}
"""Package, as it is imported → extra of `pyproject.toml` that installs it."""


def advice(module: str | None) -> str | None:
    """Return the command that installs a missing module's package, or None where no extra has it."""
    package = (module or "").partition(".")[0]
    extra = EXTRAS.get(package)
    if extra is None:
        return None
    return f"{package} is not installed; install it with pip install 'sinq-harness[{extra}]'"
