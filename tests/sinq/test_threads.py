"""One number of threads for torch and Numba."""

import subprocess
import sys

from tests.conftest import ROOT

SCRIPT = """
import numba, torch
from sinq.kernels.threads import torch_threads
torch.set_num_threads(1)
print(torch.get_num_threads())
with torch_threads():
    print(numba.get_num_threads(), torch.get_num_threads())
print(torch.get_num_threads())
"""


def test_numba_runs_on_torchs_number_of_threads_and_leaves_it_alone() -> None:
    # In a process of its own: it is the first question to Numba that starts its threads, and would change torch's number.
    done = subprocess.run([sys.executable, "-c", SCRIPT], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1"] * 4
