"""Errors of transformers for files that make no sense, and what they say in one line."""

import pickle
import struct

from safetensors import SafetensorError


def library_errors() -> tuple[type[Exception], ...]:
    """Return the errors of transformers for files that make no sense; running out of memory is none.

    It is called where an error is caught, so importing this module imports no library of a hub.
    """
    from huggingface_hub.errors import StrictDataclassError

    return (
        *(ArithmeticError, AssertionError, AttributeError, EOFError, ImportError, LookupError, OSError),
        *(RuntimeError, TypeError, ValueError, StrictDataclassError, SafetensorError),
        *(pickle.UnpicklingError, struct.error),
    )


def reason(error: BaseException) -> str:
    """Return the first line of an error, after its type where that says more than the line alone."""
    if "trust_remote_code" in str(error):
        return "it comes with code of its own, which is never run here"
    line = next(iter(str(error).strip().splitlines()), "")
    known = isinstance(error, ValueError | OSError) and line
    return line if known else f"{type(error).__name__} {line}".strip()
