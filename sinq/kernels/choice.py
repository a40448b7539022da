"""Which implementation of the fast functions runs."""

import enum
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from importlib.util import find_spec

import torch


class Kernel(enum.Enum):
    """An implementation; `auto` is what suits the device."""

    auto = "auto"
    reference = "reference"
    cpu = "cpu"
    triton = "triton"


_asked: ContextVar[Kernel] = ContextVar("kernel", default=Kernel.auto)


@contextmanager
def using(kernel: Kernel) -> Iterator[None]:
    """Within this context (of this thread), `kernel` is the one that runs."""
    token = _asked.set(kernel)
    try:
        yield
    finally:
        _asked.reset(token)


def chosen(device: torch.device) -> Kernel:
    """The implementation for tensors on a device.

    Raises:
        ValueError: the one asked for cannot run there.
    """
    asked = _asked.get()
    return _best(device.type) if asked is Kernel.auto else _permitted(asked, device.type)


@cache
def _best(device_type: str) -> Kernel:
    if device_type == "cpu":
        return Kernel.cpu
    return Kernel.triton if device_type == "cuda" and find_spec("triton") else Kernel.reference


def _permitted(asked: Kernel, device_type: str) -> Kernel:
    possible = dict.fromkeys((Kernel.auto, Kernel.reference, _best(device_type)))
    if os.environ.get("TRITON_INTERPRET") == "1" and find_spec("triton"):
        possible[Kernel.triton] = None
    if asked not in possible:
        names = ", ".join(kernel.value for kernel in possible)
        raise ValueError(f"kernel={asked.value} cannot run on {device_type} here; possible are {names}")
    return asked
