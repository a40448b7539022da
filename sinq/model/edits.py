"""Edits: every lasting change to a model, stored with it and repeated when it is loaded.

    edit(model, ReplaceLinear("model.layers.0.mlp.down_proj", stored_as(value)))      # what compressing a layer does
    edits(model)                                                                      # all of them, in order

An edit has plain options and no tensors. Applied, it puts modules into the model whose parameters and buffers have the right shapes and
any content; content travels in the state dict. So a saved model is its configuration, its edits and its tensors, and `load` is
architecture → edits → tensors.

`unexplained` is the other half of that promise: it builds the architecture anew, without weights, repeats the edits, and names whatever the
model has and the copy has not, or the other way round. `save` refuses such a model, because `load` could not bring it back.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from sinq.common.named import Named, described, named
from sinq.formats.base import CompressedWeight, rebuilt, stored_as
from sinq.model.experts import CompressedExperts
from sinq.model.linear import CompressedLinear, WeightStore

REMEMBERED = "_sinq_edits"
"""Attribute of a model that holds its edits; a deep copy of the model has them too."""
FOREIGN = ("transformers.", "accelerate.", "torch.")
"""Packages whose own hooks come and go with the use of a model, and are no change to it."""

StoredWeight = Mapping[str, Any]
"""A value without its tensors: `stored_as`, and `tensors`: name → [dtype, shape]."""


class Edit(Named, ABC):
    """One lasting change to a model; a frozen dataclass of plain options."""

    @abstractmethod
    def apply(self, model: nn.Module) -> None:
        """Make the change in place. New parameters and buffers have the right shapes and any content."""


def edit(model: nn.Module, change: Edit) -> None:
    """Apply a change to a model, and remember it there."""
    change.apply(model)
    setattr(model, REMEMBERED, (*edits(model), change))


def edits(model: nn.Module) -> tuple[Edit, ...]:
    """Return the changes made to a model, in order."""
    found: tuple[Edit, ...] = getattr(model, REMEMBERED, ())
    return found


def edit_as_json(change: Edit) -> dict[str, Any]:
    """Return an edit as plain JSON values; `edit_from_json` is the inverse."""
    content: dict[str, Any] = described(change, defaults=True)
    return content


def edit_from_json(content: Mapping[str, Any]) -> Edit:
    """Return the edit that a file describes.

    Raises:
        ValueError: its name, version or options are not known to this code.
    """
    kind = named(Edit, content["name"])  # type: ignore[type-abstract]
    if content["version"] != kind.version:
        raise ValueError(
            f"{kind.name} has version {content['version']}; this code reads version {kind.version}"
        )
    options = {key: value for key, value in content.items() if key not in ("name", "version")}
    try:
        return kind(**options)
    except TypeError as error:
        raise ValueError(f"{kind.name} does not take the options {', '.join(options)}: {error}") from error


@dataclass(frozen=True)
class ReplaceLinear(Edit):
    """A linear layer becomes a `CompressedLinear`."""

    name: ClassVar[str] = "replace_linear"

    layer: str
    """Name of the layer's module."""
    weight: StoredWeight

    def apply(self, model: nn.Module) -> None:
        bias: Any = model.get_submodule(self.layer).bias
        model.set_submodule(self.layer, CompressedLinear(_empty(self.weight), bias))


@dataclass(frozen=True)
class ReplaceExperts(Edit):
    """A fused 3-D parameter of a mixture of experts becomes `CompressedExperts`."""

    name: ClassVar[str] = "replace_experts"

    parameter: str
    """Full name of the parameter."""
    weights: Sequence[StoredWeight]
    """One for each expert."""

    def apply(self, model: nn.Module) -> None:
        module, _, parameter = self.parameter.rpartition(".")
        owner: Any = model.get_submodule(module)
        values = [_empty(weight) for weight in self.weights]
        CompressedExperts(values, bool(owner.is_transposed), getattr(owner, parameter).dtype).install(
            owner, parameter
        )


def replace_weights(model: nn.Module, name: str, values: Sequence[CompressedWeight], experts: bool) -> None:
    """Put compressed weights in the place of a linear layer's weight, or of a fused parameter of experts.

    Args:
        name: of the layer's module, or of the parameter.
        values: one (out, in), or one for each expert.
    """
    edit(model, weights_edit(name, values, experts))
    for store, value in zip(weight_stores(model.get_submodule(name)), values, strict=True):
        store.hold(value)


def weights_edit(name: str, values: Sequence[CompressedWeight], experts: bool) -> Edit:
    """Return the edit that `replace_weights` makes."""
    stored = [describe_weight(value) for value in values]
    return ReplaceExperts(name, stored) if experts else ReplaceLinear(name, stored[0])


def weight_stores(module: nn.Module) -> list[WeightStore]:
    """Return the stores of all compressed weights in a module, in its order."""
    return [part for part in module.modules() if isinstance(part, WeightStore)]


def describe_weight(value: CompressedWeight) -> dict[str, Any]:
    """Return a value without its tensors, as plain JSON values."""
    tensors = {
        name: [str(tensor.dtype).removeprefix("torch."), list(tensor.shape)]
        for name, tensor in value.state_dict().items()
    }
    return stored_as(value) | {"tensors": tensors}


def _empty(weight: StoredWeight) -> CompressedWeight:
    """Return the value that a file describes, on the meta device."""
    tensors = {
        name: torch.empty(shape, dtype=getattr(torch, dtype), device="meta")
        for name, (dtype, shape) in weight["tensors"].items()
    }
    return rebuilt(weight, tensors)


def architecture(
    config: PretrainedConfig, dtype: torch.dtype | None, changes: Sequence[Edit] = ()
) -> PreTrainedModel:
    """Return the causal language model of a configuration with edits, its weights not initialized."""
    with no_init_weights():
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.tie_weights()
    for change in changes:
        edit(model, change)
    return model


def unexplained(model: PreTrainedModel) -> list[str]:
    """Return what neither the configuration nor the edits of a model account for, a line each: modules, shapes, ties and hooks."""
    with torch.device("meta"):
        expected = architecture(model.config, None, edits(model))
    if type(expected) is not type(model):
        return [f"it is a {type(model).__name__}, which is loaded as a {type(expected).__name__}"]
    return [*_other_modules(model, expected), *_other_tensors(model, expected), *_other_ties(model, expected)]


def _other_modules(model: nn.Module, expected: nn.Module) -> list[str]:
    own, others = dict(model.named_modules()), dict(expected.named_modules())
    found = [f"module {name} is unknown" for name in own if name not in others]
    found += [f"module {name} is gone" for name in others if name not in own]
    for name in own.keys() & others.keys():
        if type(own[name]) is not type(others[name]):
            found.append(
                f"module {name} is a {type(own[name]).__name__}, not a {type(others[name]).__name__}"
            )
        if _hooks(own[name]) != _hooks(others[name]):
            found.append(
                f"module {name or 'of the whole model'} has hooks: {', '.join(map(_called, _hooks(own[name]))) or 'none'}"
            )
        if "forward" in vars(own[name]) and not hasattr(own[name], "_hf_hook"):
            found.append(f"module {name} has a forward of its own")
    return found


def _hooks(module: nn.Module) -> list[Callable[..., Any]]:
    """Return the hooks of a module that change what it computes, but for those of libraries."""
    kinds = (
        module._forward_pre_hooks,
        module._forward_hooks,
        module._backward_pre_hooks,
        module._backward_hooks,
    )
    hooks = [hook for kind in kinds for hook in kind.values()]
    return [hook for hook in hooks if not f"{getattr(hook, '__module__', '')}.".startswith(FOREIGN)]


def _called(hook: Callable[..., Any]) -> str:
    return getattr(hook, "__qualname__", type(hook).__name__)


def _other_tensors(model: nn.Module, expected: nn.Module) -> list[str]:
    own, others = model.state_dict(), expected.state_dict()
    found = [f"tensor {name} is unknown" for name in own if name not in others]
    found += [f"tensor {name} is gone" for name in others if name not in own]
    for name in own.keys() & others.keys():
        if own[name].shape != others[name].shape:
            found.append(f"tensor {name} is {list(own[name].shape)}, not {list(others[name].shape)}")
    return found


def _other_ties(model: nn.Module, expected: nn.Module) -> list[str]:
    """Return pairs of names that are one tensor in one of two models only."""
    own, others = _first_names(model), _first_names(expected)
    return [
        f"tensors {name} and {first} are {'not one' if own[name] == name else 'one'}, against the configuration"
        for name in own.keys() & others.keys()
        if own[name] != others[name]
        for first in {own[name], others[name]} - {name}
    ]


def _first_names(model: nn.Module) -> dict[str, str]:
    """Return the first name, in the state dict, of the tensor behind each name."""
    first: dict[object, str] = {}
    return {
        name: first.setdefault(tensor_identity(tensor), name)
        for name, tensor in model.state_dict(keep_vars=True).items()
    }


def tensor_identity(tensor: Tensor) -> object:
    """Return what is equal for two names of one stored tensor."""
    if tensor.is_meta or not tensor.numel():
        return id(tensor)
    return tensor.data_ptr(), tensor.shape, tensor.stride()
