"""Runs a file of tests of Triton kernels in a process of its own.

Without a GPU, kernels run in Triton's interpreter, which must be chosen before they are decorated, and for a whole process. So these tests
lie in files that pytest does not collect by itself (`interpreted_*.py`), and one test per file starts them. On a machine with CUDA the same
files run on the device, without the interpreter.
"""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")


def run(name: str) -> None:
    """Fails with the output of `tests/sinq/<name>` if not all of its tests pass, or if none ran."""
    chosen = {} if torch.cuda.is_available() else {"TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "pytest", "-x", "--noconftest", "-p", "no:cacheprovider", str(Path(__file__).with_name(name))]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | chosen, cwd=Path(__file__).parents[2], check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout, done.stdout
