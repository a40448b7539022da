"""The console: progress bars with the time left, log lines, and the quieting of libraries."""

import logging
import os
import sys
import warnings
from collections.abc import Iterable

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from sinq.common.progress import Description, T

WIDTH = 100
"""Characters of a line where nothing is known: of a file or a pipe, without COLUMNS in the environment."""
KNOWS_WIDTH = sys.stdout.isatty() or "COLUMNS" in os.environ
# Most of what is printed comes from files and options: brackets in it are no markup, and colons no emoji.
console = Console(highlight=False, markup=False, emoji=False, width=None if KNOWS_WIDTH else WIDTH)


class _Lines(logging.Handler):
    """Handler that prints log records as plain lines of the console, above any progress bar.

    Each line is printed once: a run and its dense baseline take the same decisions.
    """

    def __init__(self) -> None:
        super().__init__()
        self._printed: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        line = record.getMessage()
        if line not in self._printed:
            self._printed.add(line)
            console.print(line, markup=False, soft_wrap=True, style="dim")


def set_up() -> None:
    """Show this project's log, and silence the libraries' bars and retry messages. For entry points.

    Called before work, not before `--help`: importing the libraries takes longer than a help should.
    """
    from huggingface_hub.utils import disable_progress_bars
    from transformers.utils import logging as transformers_logging

    lines = _Lines()
    for package in ("experiments", "sinq"):
        project_log = logging.getLogger(package)
        project_log.setLevel(logging.INFO)
        project_log.handlers = [lines]
    for library in ("huggingface_hub", "datasets", "httpx", "lm_eval"):
        logging.getLogger(library).setLevel(logging.ERROR)
    if not sys.warnoptions:  # python -W default shows them
        for category in (FutureWarning, DeprecationWarning):  # of calls between libraries
            warnings.simplefilter("ignore", category)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    disable_progress_bars()


def bar(items: Iterable[T], description: Description, total: int) -> Iterable[T]:
    """Yield the items of an iterable under a progress bar, which disappears at the end."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    words = description if callable(description) else lambda: description
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(words(), total=total)
        for item in progress.track(items, total=total, task_id=task):
            yield item
            progress.update(task, description=words())
