"""Processes that strace ends at the first, second, third … system call of a kind that changes a file."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.forked import CONTEXT

CALLS = (
    *("openat", "write", "close", "rename", "renameat2", "unlink", "unlinkat", "mkdir", "fsync"),
    *("fchmodat", "chmod", "linkat", "utimensat"),
)
"""System calls that make, write, name or remove files."""
NEEDS_STRACE = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("strace") is None, reason="no strace here; apt-get install strace"),
]


def killed(call: str, number: int, work: Callable[..., None], *arguments: Any) -> bool:
    """Run work in a process that is killed where it enters a system call for the nth time; return if it was.

    Args:
        work: takes the arguments and a function, which it calls when calls are to be counted.
    """
    ours, theirs = CONTEXT.Pipe()
    process = CONTEXT.Process(target=work, args=(*arguments, partial(_wait, theirs)))
    process.start()
    inject = f"inject={call}:signal=SIGKILL:when={number}"
    command = ["strace", "-f", "-qq", "-e", f"trace={call}", "-e", inject, "-o", "/dev/null"]
    tracer = subprocess.Popen([*command, "-p", str(ours.recv())])
    status = Path(f"/proc/{process.pid}/status")
    deadline = time.monotonic() + 30
    while f"TracerPid:\t{tracer.pid}" not in status.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    ours.send("go")
    process.join(60)
    tracer.wait(60)
    return process.exitcode == -signal.SIGKILL


def _wait(pipe: Any) -> None:
    pipe.send(os.getpid())
    pipe.recv()
