"""`python run.py` in processes that start in a moment."""

from pathlib import Path

from tests import forked
from tests.forked import Forked


def start(folder: Path, *words: str) -> Forked:
    """Begin `python run.py <words>` with its cache in `folder`; what it prints goes to files there."""
    return forked.run(folder, ("run.py", *words), {"SINQ_CACHE": str(folder / "cache")})
