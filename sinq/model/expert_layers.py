"""Fused experts taken apart: each expert's matrix as a compressed layer of its own.

Code of a model multiplies by fused experts itself (`experts.py`), so nothing stands between an expert and its
inputs. transformers lets a configuration choose the function that computes experts. Here an experts module
gets a copy of its configuration that names ours, which goes expert by expert, like transformers' own plain
code, and calls the expert's layers. So inputs of both projections are rounded, counted and multiplied like
those of any `CompressedLinear`, in the space of that expert's codes.

Weights of a matrix that is not compressed stay one dense parameter. Not covered: experts that are spread over
devices.
"""

import copy
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sinq.common.reading import typed
from sinq.model.edits import Edit
from sinq.model.experts import CompressedExperts
from sinq.model.linear import CompressedLinear

IMPLEMENTATION = "sinq_expert_layers"
"""Name of our function among transformers' implementations of experts."""


class ExpertLayers(nn.ModuleList):
    """The layers of one projection, a `CompressedLinear` for each expert."""


@dataclass(frozen=True)
class SeparateExperts(Edit):
    """Compressed fused experts as layers of their own."""

    name: ClassVar[str] = "separate_experts"

    parameter: str
    """Full name of the parameter that was fused."""

    def apply(self, model: nn.Module) -> None:
        name = typed(self.parameter, str, "parameter")
        experts = dict(model.named_modules()).get(name)
        owner: Any = model.get_submodule(name.rpartition(".")[0]) if experts is not None else None
        if not isinstance(experts, CompressedExperts):
            raise ValueError(f"{name} is a {type(experts).__name__}; compressed experts are taken apart")
        if not computes_by_configuration(owner):
            raise ValueError(f"{type(owner).__name__} of {name} does not choose how its experts are computed")
        _register()
        owner.config = copy.copy(owner.config)
        owner.config._experts_implementation_internal = IMPLEMENTATION
        layers = ExpertLayers([CompressedLinear(store, None) for store in experts.stores()])
        owner.register_module(name.rpartition(".")[2], layers)


def computes_by_configuration(owner: Any) -> bool:
    """Return whether an experts module calls the function that its configuration names."""
    return hasattr(getattr(owner, "config", None), "_experts_implementation") and hasattr(owner, "has_gate")


def _register() -> None:
    from transformers.integrations.moe import ExpertsInterface  # late: importing it takes seconds

    ExpertsInterface.register(IMPLEMENTATION, by_expert)


def by_expert(module: Any, states: Tensor, chosen: Tensor, shares: Tensor) -> Tensor:
    """Compute a mixture expert by expert, as transformers calls it; return (tokens, hidden).

    Args:
        states: (tokens, hidden).
        chosen: the experts of each token, int64 (tokens, k); numbers from `module.num_experts` on are none.
        shares: of their outputs, (tokens, k).
    """
    total = torch.zeros_like(states)
    for expert in chosen.unique().tolist():
        if expert >= module.num_experts:
            continue
        tokens, places = torch.where(chosen == expert)
        hidden = _product(module, "gate_up_proj" if module.has_gate else "up_proj", expert, states[tokens])
        hidden = module._apply_gate(hidden) if module.has_gate else module.act_fn(hidden)
        output = _product(module, "down_proj", expert, hidden)
        output = module.post_expert_norm(output) if module.has_post_expert_norm else output
        total.index_add_(0, tokens, (output * shares[tokens, places, None]).to(total.dtype))
    return total


def _product(module: Any, name: str, expert: int, x: Tensor) -> Tensor:
    """Return an expert's projection of x (tokens, in), (tokens, out)."""
    weights = getattr(module, name)
    if isinstance(weights, ExpertLayers):
        y = weights[expert](x)
    else:
        y = x @ (weights[expert] if module.is_transposed else weights[expert].T)
    return y + getattr(module, f"{name}_bias")[expert] if module.has_bias else y
