"""Running a compiled loop on torch's own threads.

A decoded token is hundreds of small products, so starting one must cost little. Here a loop is a C function, and OpenMP's own entry
point, called with its address, runs it on the threads that torch's operations use: nothing is looked up, converted or scheduled in
between, and there is no second set of idle threads that spin against the first.

The runtime is looked up by the names GCC gives its entry points, which LLVM's and Intel's offer too. Where torch has none (Windows),
`parallel` is None.
"""

import ctypes
from collections.abc import Callable
from functools import cache

from numba import types

from sinq.kernels.cache import install_locator

install_locator()  # here: kernels that run on torch's threads import this file before they are decorated

thread_number = types.ExternalFunction("omp_get_thread_num", types.int32())
"""For compiled code: which of the running threads this is."""
thread_count = types.ExternalFunction("omp_get_num_threads", types.int32())
"""For compiled code: how many threads run the loop; 1 outside of `parallel`."""

NAMES = ("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads")


@cache
def parallel() -> Callable[[int, int, int], None] | None:
    """What runs the C function at an address on so many threads, as (address, its argument, threads); None without OpenMP."""
    process = ctypes.CDLL(None)
    if not all(hasattr(process, name) for name in NAMES):
        return None
    start = process.GOMP_parallel
    start.argtypes, start.restype = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint), None
    return lambda function, argument, threads: start(function, argument, threads, 0)
