"""One number of threads for torch and Numba."""

from pathlib import Path

import numba
import torch

from sinq.kernels.cpu.threads import torch_threads
from tests.forked import fork


def numbers() -> None:
    """Print torch's number of threads before and after, and both within, `torch_threads`."""
    torch.set_num_threads(1)
    print(torch.get_num_threads())
    with torch_threads():
        print(numba.get_num_threads(), torch.get_num_threads())
    print(torch.get_num_threads())


def test_numba_runs_on_torchs_number_of_threads_and_leaves_it_alone(tmp_path: Path) -> None:
    # In a separate process: the first question to Numba starts its threads, and would change torch's number.
    process = fork(tmp_path, numbers)
    assert process.done() == 0, process.output
    assert process.stdout.split() == ["1"] * 4
