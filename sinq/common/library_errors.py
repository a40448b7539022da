"""Errors of transformers for files that make no sense, and what they say in one line."""

import pickle
import struct

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

LIBRARY_ERRORS = (
    *(ArithmeticError, AssertionError, AttributeError, EOFError, ImportError, LookupError, OSError),
    *(RuntimeError, TypeError, ValueError, StrictDataclassError, SafetensorError),
    *(pickle.UnpicklingError, struct.error),
)
"""Errors of transformers for files that make no sense. Memory and interrupts are not among them."""


def reason(error: BaseException) -> str:
    """Return the first line of an error, after its type where that says more than the line alone."""
    line = next(iter(str(error).strip().splitlines()), "")
    known = isinstance(error, ValueError | OSError) and line
    return line if known else f"{type(error).__name__} {line}".strip()
