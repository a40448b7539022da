"""Optional packages: which extra of this project installs them, and what to say where one is missing."""

EXTRAS = {"wandb": "wandb", "lm_eval": "zero-shot", "matplotlib": "report"}
"""Package, as it is imported → extra of `pyproject.toml` that installs it."""


def advice(module: str | None) -> str | None:
    """Return how to install the package of a module that was not found, or None where no extra has it."""
    package = (module or "").partition(".")[0]
    extra = EXTRAS.get(package)
    return (
        f"{package} is not installed; install it with pip install 'sinq-harness[{extra}]'" if extra else None
    )
