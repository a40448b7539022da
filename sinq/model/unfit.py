"""Reasons why a linear layer stays dense.

What a module computes is not what `isinstance` says. Only a module that computes what `nn.Linear` or `Conv1D`
does, without hooks, and with a floating-point weight, can be replaced by one that multiplies by a compressed
weight. A subclass with a forward of its own is tried on a small random matrix (Falcon's computes the same, a
router does not).

What chooses or weighs experts stays dense unless it is asked for, however an architecture spells it. It is a
linear layer that is called a router or is part of one; or one beside experts, outside them, that is called a
gate, or has an output for each expert, or a single one (the weight of a shared expert).
"""

import copy
import re
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from sinq.model.conv1d import conv1d, is_conv1d, is_linear
from sinq.model.edits import lasting_hooks

FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
ROUTER = re.compile(r"router|(^|_)gate$|gating|^wg$|switch")
"""Names of parts of a mixture that choose or weigh experts; `gate_proj` is none."""
COUNT = re.compile(r"(\w+_)?(num|n)(_\w+)?_experts|\w*experts_num")
"""Names of a configuration's number of experts."""
ATTENTION = re.compile("attn|attention")


class Unfit:
    """Finds the reason why a layer of a model cannot be compressed, or should not be.

    Args:
        routers: whether routers are asked for.
    """

    def __init__(self, model: nn.Module, routers: bool) -> None:
        self._routers = set() if routers else set(router_layers(model))
        self._elsewhere = {
            id(parameter): f"{name}.{key}"
            for name, module in model.named_modules()
            if not is_linear(module)
            for key, parameter in module.named_parameters(recurse=False)
            if parameter.ndim == 2
        }

    def reason(self, modules: Sequence[nn.Module], parameter: str | None, tensor: Tensor) -> str | None:
        """Return why a target stays dense, or None.

        Args:
            modules: all modules that have the parameter.
            parameter: its name, for fused experts.
        """
        if kind := unusable_kind(tensor):
            return f"its weight is {kind}"
        if not tensor.numel():
            return "its weight is empty"
        if parameter is not None:
            known = hasattr(modules[0], "is_transposed")
            return None if known else f"it is a 3-D parameter of {type(modules[0]).__name__}"
        if id(tensor) in self._elsewhere:
            return f"it shares its weight with {self._elsewhere[id(tensor)]}"
        return next(filter(None, map(self._of_module, modules)), None)

    def _of_module(self, module: nn.Module) -> str | None:
        if not computes_a_product(module):
            return f"{type(module).__name__} has a forward of its own"
        if lasting_hooks(module):
            return "it has hooks, which would be lost"
        if parametrize.is_parametrized(module):
            return "its weight is parametrized"
        return "it chooses or weighs experts" if module in self._routers else None


def unusable_kind(weight: Tensor) -> str | None:
    """Return the kind of a weight that no method computes with, such as "int8" or "sparse_coo", or None."""
    if weight.layout is torch.strided and weight.dtype in FLOATING:
        return None
    kind = weight.dtype if weight.layout is torch.strided else weight.layout
    return str(kind).removeprefix("torch.")


def computes_a_product(module: nn.Module) -> bool:
    """Return whether a linear layer maps x to x Wᵀ + b, whatever its weight.

    The wrapper that accelerate puts around a forward does not count.
    """
    if "forward" in vars(module) and not hasattr(module, "_hf_hook"):
        return False
    if type(module).forward in (nn.Linear.forward, getattr(conv1d(), "forward", None)):
        return True
    draw = torch.Generator().manual_seed(0)
    rows, columns = 5, 7
    weight, x = torch.randn(rows, columns, generator=draw), torch.randn(3, columns, generator=draw)
    bias = None if getattr(module, "bias", None) is None else torch.randn(rows, generator=draw)
    expected = nn.functional.linear(x, weight, bias)
    try:
        found = _small_copy(module, weight, bias)(x)
    except (RuntimeError, TypeError, ValueError, AttributeError, LookupError):
        return False  # it does more than multiply by a matrix of any size
    return isinstance(found, Tensor) and found.shape == expected.shape and torch.allclose(found, expected)


def _small_copy(module: nn.Module, weight: Tensor, bias: Tensor | None) -> nn.Module:
    """Return a module of the same class and attributes with other parameters, in evaluation mode."""
    small = copy.copy(module)
    small.training = False
    stored = weight.T.contiguous() if is_conv1d(module) else weight
    parameters = {"weight": stored, "bias": bias}
    small._parameters = {
        key: None if value is None else nn.Parameter(value, requires_grad=False)
        for key, value in parameters.items()
    }
    return small


def has_experts(name: str, module: nn.Module) -> bool:
    """Return whether the name or class of a module speaks of experts."""
    return "expert" in f"{name} {type(module).__name__}".lower()


def router_layers(model: nn.Module) -> Iterator[nn.Module]:
    """Yield the linear layers of a model that choose or weigh experts."""
    counts = _expert_counts(getattr(model, "config", None))
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and "router" in name.lower():
            yield module
        elif "router" in type(module).__name__.lower():
            yield from _linear_layers(module)
        elif any(_holds_experts(key, child) for key, child in module.named_children()):
            yield from _beside_experts(module, counts)


def _holds_experts(name: str, module: nn.Module) -> bool:
    return has_experts(name, module) and not ROUTER.search(name)


def _linear_layers(module: nn.Module) -> Iterator[nn.Module]:
    return (part for part in module.modules() if isinstance(part, nn.Linear))


def _beside_experts(mixture: nn.Module, counts: set[int]) -> Iterator[nn.Module]:
    """Yield the linear layers of a mixture that are in no expert, and called or shaped like a router."""
    for name, child in mixture.named_children():
        if _holds_experts(name, child) or ATTENTION.search(name):
            continue
        for inner, module in child.named_modules(prefix=name):
            if not isinstance(module, nn.Linear):
                continue
            if module.out_features in counts or any(ROUTER.search(part) for part in inner.split(".")[:2]):
                yield module


def _expert_counts(config: Any) -> set[int]:
    """Return the numbers of outputs of a router: of experts, and 1, for a shared expert."""
    if config is None:
        return {1}
    options = config.get_text_config().to_dict()
    numbers = [value for key, value in options.items() if COUNT.fullmatch(key) and "per_tok" not in key]
    return {1, *(number for number in numbers if isinstance(number, int))}
