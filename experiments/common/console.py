"""What a person sees: progress bars with time left, one line per run, and tables of rows."""

import logging
import sys
from collections.abc import Iterable

from huggingface_hub.utils import disable_progress_bars
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers.utils import logging as transformers_logging

from sinq.common.progress import T

console = Console(
    highlight=False, width=None if sys.stdout.isatty() else 140
)  # a file or pipe has no width of its own


class _Lines(logging.Handler):
    """Log records as plain lines of the console, below any progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        console.print(record.getMessage(), markup=False, soft_wrap=True, style="dim")


def set_up() -> None:
    """Show this project's log, and quiet the libraries' own bars and retries. For entry points."""
    own = logging.getLogger("experiments")
    own.setLevel(logging.INFO)
    own.handlers = [_Lines()]
    for library in ("huggingface_hub", "datasets", "httpx", "lm_eval"):
        logging.getLogger(library).setLevel(logging.ERROR)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    disable_progress_bars()


def bar(items: Iterable[T], description: str, total: int) -> Iterable[T]:
    """A progress bar around an iterable; it goes away when done."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        yield from progress.track(items, total=total, description=description)
