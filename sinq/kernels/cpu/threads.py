"""One number of threads for torch and Numba, and arrays that share memory with tensors."""

from collections.abc import Iterator
from contextlib import contextmanager

import numba
import numpy as np
import torch
from torch import Tensor

from sinq.kernels.cache import install_locator

install_locator()  # here: all other kernels import this file before they are decorated


@contextmanager
def torch_threads() -> Iterator[None]:
    """Within this context, Numba's loops use as many threads as torch does."""
    wanted = torch.get_num_threads()
    before = numba.get_num_threads()
    torch.set_num_threads(
        wanted
    )  # the first question to Numba starts its threads, and sets the number of the OpenMP library they share
    numba.set_num_threads(min(wanted, numba.config.NUMBA_NUM_THREADS))  # type: ignore[attr-defined]
    try:
        yield
    finally:
        numba.set_num_threads(before)


def array(tensor: Tensor) -> np.ndarray:
    """A float32 tensor of the processor as a C-ordered array; without a copy where it is one already."""
    return tensor.detach().float().contiguous().numpy()
