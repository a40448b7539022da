"""Fast implementations of the few functions that cost time, and the choice between them.

Every function here has a *definition* in plain torch, which runs on any device, and faster versions that are
tested against it:

    cpu       Numba, compiled on first use and cached on disk; works on tensors in the processor's memory
    triton    CUDA (or TRITON_INTERPRET=1, for tests)

The version that runs is a property of the runtime, not of a method: `auto` takes the one for the tensor's
device, and `using` forces another within a context. The definition computes each case that a fast version
does not cover (tables of levels, say), with the same result. `dispatch.py` has the mechanism, `quantize.py`
the functions that quantize, `product.py` the products with compressed weights, and `rotation.py` the rotation
of their inputs.

Compiled kernels are kept on disk by the content of all they were compiled from (`cache.py`): there is nothing
to clean.
"""

from sinq.kernels.dispatch import Kernel, chosen, fast, using
from sinq.kernels.quantize import (
    column_magnitudes,
    refine_scaled,
    round_scaled,
    round_solved,
    rounding_error,
    sinkhorn_scales,
)
from sinq.kernels.rotation import rotated

__all__ = [
    "Kernel",
    "chosen",
    "column_magnitudes",
    "fast",
    "refine_scaled",
    "rotated",
    "round_scaled",
    "round_solved",
    "rounding_error",
    "sinkhorn_scales",
    "using",
]
