"""Compiled loops on torch's own threads.

A decoded token is hundreds of small products, so starting one must cost little. Here a loop is a C function,
and OpenMP's own entry point, called with its address, runs it on the threads that torch's operations use:
nothing is looked up, converted or scheduled between them, and there is no second set of idle threads that
spin against the first.

The runtime is looked up by the names GCC gives its entry points, which LLVM's and Intel's offer too. Where
torch has none (Windows), `parallel` returns None.
"""

import ctypes
from collections.abc import Callable
from functools import cache

from numba import types

from sinq.kernels.cache import install_locator

# Kernels that run on torch's threads import this file before they are decorated.
install_locator()

thread_number = types.ExternalFunction("omp_get_thread_num", types.int32())
"""Function for compiled code: the number of this thread among the running threads."""
thread_count = types.ExternalFunction("omp_get_num_threads", types.int32())
"""Function for compiled code: the number of threads that run the loop; 1 outside of `parallel`."""

NAMES = ("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads")


@cache
def parallel() -> Callable[[int, int, int], None] | None:
    """Return a function that runs a C function on several threads, or None where torch has no OpenMP.

    It takes the address of the C function, the argument of the C function, and the number of threads.
    """
    process = ctypes.CDLL(None)
    if not all(hasattr(process, name) for name in NAMES):
        return None
    start = process.GOMP_parallel
    start.argtypes, start.restype = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint), None
    return lambda function, argument, threads: start(function, argument, threads, 0)
