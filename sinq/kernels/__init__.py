"""Fast implementations of the few functions that cost time, and the choice between them.

Every function here has a *definition* in plain torch, which runs on any device, and faster versions that are tested
against it:

    cpu       Numba, compiled on first use and cached on disk; works on tensors that live on the processor
    triton    CUDA (or TRITON_INTERPRET=1, for tests)

Which one runs is a property of the runtime, not of a method: `auto` takes what suits the tensor's device, and `using`
forces one for a while. A case that a fast version does not cover (tables of levels, say) is computed by the definition,
which gives the same result. `dispatch.py` has the mechanism, `quantize.py` the functions that quantize, and `product.py`
the products with what was quantized.

Compiled kernels are kept on disk by the content of all they were compiled from (`cache.py`): there is nothing to clean.
"""

from sinq.kernels.dispatch import Kernel, chosen, fast, using
from sinq.kernels.quantize import (
    column_magnitudes,
    refine_scaled,
    round_scaled,
    round_unbiased,
    rounding_error,
    sinkhorn_scales,
)

__all__ = [
    "Kernel",
    "chosen",
    "column_magnitudes",
    "fast",
    "refine_scaled",
    "round_scaled",
    "round_unbiased",
    "rounding_error",
    "sinkhorn_scales",
    "using",
]
