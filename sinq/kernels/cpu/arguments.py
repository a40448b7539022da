"""Layout of a *job*: the arguments of a compiled C function, as int64 numbers and addresses.

A C function of the kernels takes one argument, the address of a job, and reads it by

    field = carray(pointer(job), FIELDS, np.int64)
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
    INPUT_GROUP,
    INPUT_SCALE,
    INPUT_ZERO,
    TILES,
) = range(21)
FIELDS = 21
"""Number of fields of a job: numbers up to LAST, then addresses, which are 0 for tensors that do not exist.

Rows FIRST to LAST are to be computed; COL_SCALE has one row per TILE rows. Where x is rounded already,
INPUT_SCALE has one number for each INPUT_GROUP (a number again) entries of a token; TILES is 1 where the
registers of `tiles.py` may be used.
"""
UNROUNDED = [0, 0, 0, 0]
"""The last four fields where x is not rounded."""

f32, i32, i16 = np.float32, np.int32, np.int16


@intrinsic
def _as_pointer(_context, _address):  # type: ignore[no-untyped-def]
    """Convert an address to a pointer, for `carray`, in compiled code."""

    def cast(_context, builder, _signature, arguments):  # type: ignore[no-untyped-def]
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return types.voidptr(types.intp), cast


pointer: Any = _as_pointer
