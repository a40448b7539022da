"""A *job*: the arguments of a compiled C function, as int64 numbers and addresses.

A C function of the kernels takes one argument, the address of a job; `field = carray(pointer(job), FIELDS, np.int64)` reads it.
"""

from typing import Any

import numpy as np
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

FAST = {"reassoc", "contract", "nsz"}
(
    BITS,
    ROWS,
    COLUMNS,
    GROUP,
    TILE,
    TOKENS,
    AUXILIARY,
    FIRST,
    LAST,
    CODES,
    SCALE,
    ZERO,
    COL_SCALE,
    RANGE,
    EXPONENT,
    X,
    Y,
) = range(17)
FIELDS = 17
"""Of a job: numbers (rows FIRST to LAST are asked for; COL_SCALE is one row per TILE rows), then addresses, 0 for what is not there."""

f32, i32, i16 = np.float32, np.int32, np.int16


@intrinsic
def _as_pointer(_context, _address):  # type: ignore[no-untyped-def]
    """An address as a pointer, for `carray`."""

    def cast(_context, builder, _signature, arguments):  # type: ignore[no-untyped-def]
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return types.voidptr(types.intp), cast


pointer: Any = _as_pointer
