"""Ctrl-C before there is anything to interrupt: one line, and status 130.

Starting takes seconds, nearly all of them imports, in which libraries answer Ctrl-C with tracebacks, or with
errors of their own.
"""

import os
import signal
import sys
from types import FrameType

LINE = "error: interrupted; nothing was begun\n"


def end_at_once() -> None:
    """End the process on Ctrl-C from now on; where the signal is ignored or caught already, leave that."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)


def raise_again() -> None:
    """Let Ctrl-C raise `KeyboardInterrupt` again, as Python does."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _end(number: int, frame: FrameType | None) -> None:
    """End the process and run nothing else: an import that is under way cannot be ended otherwise."""
    sys.stdout.flush()
    os.write(sys.stdout.fileno(), LINE.encode())
    os._exit(130)
