"""Fast versions of functions, and the choice between them.

A function that costs time has a *definition* in plain torch, which runs on any device. `fast` names its
faster versions:

    @fast(cpu="sinq.kernels.cpu.quantize:round_scaled", triton="sinq.kernels.triton.quantize:round_scaled")
    def round_scaled(weight, row_scale, col_scale, grid): ...       # the definition

A call runs the version for the device of its first argument, and the definition where there is no version. A
version takes exactly the arguments of the definition and is tested against it. It is imported when it first
runs: importing Numba takes a second.
"""

import enum
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache, update_wrapper
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")


class Kernel(enum.Enum):
    """An implementation; `auto` is the fastest one for the device."""

    auto = "auto"
    reference = "reference"
    cpu = "cpu"
    triton = "triton"


_requested: ContextVar[Kernel] = ContextVar("kernel", default=Kernel.auto)


@contextmanager
def using(kernel: Kernel) -> Iterator[None]:
    """Run a kernel instead of `auto` within the context, in this thread."""
    token = _requested.set(kernel)
    try:
        yield
    finally:
        _requested.reset(token)


def chosen(device: torch.device) -> Kernel:
    """Return the implementation for tensors on a device.

    Raises:
        ValueError: the requested kernel cannot run on the device.
    """
    requested = _requested.get()
    return _best(device.type) if requested is Kernel.auto else _permitted(requested, device.type)


def reason_for_reference(device: torch.device) -> str:
    """Return the reason why `chosen` returns the reference for a device."""
    if _requested.get() is Kernel.reference:
        return "kernel=reference was asked for"
    return "triton is not installed" if device.type == "cuda" else f"there are no kernels for {device.type}"


@cache
def _best(device_type: str) -> Kernel:
    if device_type == "cpu":
        return Kernel.cpu
    return Kernel.triton if device_type == "cuda" and find_spec("triton") else Kernel.reference


def _permitted(requested: Kernel, device_type: str) -> Kernel:
    possible = dict.fromkeys((Kernel.auto, Kernel.reference, _best(device_type)))
    if os.environ.get("TRITON_INTERPRET") == "1" and find_spec("triton"):
        possible[Kernel.triton] = None
    if requested not in possible:
        names = ", ".join(kernel.value for kernel in possible)
        raise ValueError(f"kernel={requested.value} cannot run on {device_type} here; possible are {names}")
    return requested


class Fast(Generic[P, R]):
    """A function of tensors with faster versions; a call runs the version for the first argument's device."""

    def __init__(
        self,
        definition: Callable[Concatenate[Tensor, P], R],
        versions: Mapping[Kernel, str],
        covers: Callable[..., bool] | None,
    ) -> None:
        update_wrapper(self, definition)
        self.definition, self.versions, self.covers = definition, versions, covers

    def __call__(self, first: Tensor, /, *rest: P.args, **named: P.kwargs) -> R:
        path = self.versions.get(chosen(first.device))
        if path is None or (self.covers is not None and not self.covers(first, *rest, **named)):
            return self.definition(first, *rest, **named)
        result: R = imported(path)(first, *rest, **named)
        return result


def fast(
    *,
    covers: Callable[..., bool] | None = None,
    **versions: str,
) -> Callable[[Callable[Concatenate[Tensor, P], R]], Fast[P, R]]:
    """Name the faster versions of the decorated definition.

    Args:
        covers: takes the arguments of a call and returns False where only the definition computes it. None:
            the faster versions cover every case.
        versions: "module:function" by the name of the kernel.
    """
    by_kernel = {Kernel(name): path for name, path in versions.items()}
    return lambda definition: Fast(definition, by_kernel, covers)


@cache
def imported(path: str) -> Any:
    """Return the object at "module:name", importing the module."""
    module, _, name = path.partition(":")
    return getattr(import_module(module), name)
