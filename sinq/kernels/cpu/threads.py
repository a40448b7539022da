"""Number of threads, the same for torch and Numba, and arrays that share memory with tensors."""

from collections.abc import Iterator
from contextlib import contextmanager

import numba
import numpy as np
import torch
from torch import Tensor

from sinq.kernels.cache import install_locator

# All other kernels import this file before they are decorated.
install_locator()


@contextmanager
def torch_threads() -> Iterator[None]:
    """Run Numba's loops on as many threads as torch uses, within the context."""
    wanted = torch.get_num_threads()
    before = numba.get_num_threads()
    # The first `numba.get_num_threads` starts Numba's threads, and sets the number of the OpenMP library
    # that it shares with torch.
    torch.set_num_threads(wanted)
    numba.set_num_threads(min(wanted, numba.config.NUMBA_NUM_THREADS))  # type: ignore[attr-defined]
    try:
        yield
    finally:
        numba.set_num_threads(before)


def array(tensor: Tensor) -> np.ndarray:
    """Return a tensor on the processor as a C-ordered float32 array, without a copy where it is one."""
    return tensor.detach().float().contiguous().numpy()
