"""Edits: every lasting change to a model, stored with it and repeated when it is loaded.

    edit(model, ReplaceLinear("model.layers.0.mlp.down_proj", describe_weight(value)))   # compress a layer
    edits(model)                                                                         # all edits, in order

An edit has plain options and no tensors. It puts modules into the model whose parameters and buffers have
the right shapes and any content; the content is stored in the state dict. So a saved model is its
configuration, its edits and its tensors, and `load` is architecture → edits → tensors.

`unexplained` checks this: it builds the architecture anew, without weights, repeats the edits, and names
every difference between the model and the copy. `save` refuses a model with differences, because `load`
could not restore it.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from sinq.common.library_errors import library_errors, reason
from sinq.common.named import Named, described, named
from sinq.common.reading import entry, typed
from sinq.formats.base import CompressedWeight
from sinq.model.conv1d import is_conv1d, is_linear
from sinq.model.descriptions import StoredWeight, describe_weight, empty_weight
from sinq.model.experts import CompressedExperts
from sinq.model.language_model import auto_class
from sinq.model.linear import CompressedLinear, WeightStore

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

REMEMBERED = "_sinq_edits"
"""Attribute of a model that holds its edits; a deep copy of the model has them too."""
FOREIGN = ("transformers.", "accelerate.", "torch.")
"""Packages whose hooks come and go with the use of a model, and do not change it."""


class Edit(Named, ABC):
    """A lasting change to a model; a frozen dataclass of plain options."""

    @abstractmethod
    def apply(self, model: nn.Module) -> None:
        """Change the model in place. New parameters and buffers have the right shapes and any content."""


def edit(model: nn.Module, change: Edit) -> None:
    """Apply a change to a model, and record it in the model."""
    change.apply(model)
    record(model, change)


def record(model: nn.Module, change: Edit) -> None:
    """Remember a change that was made to a model, such that `apply` would make it."""
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
        ValueError: the name, version or options are not known to this code.
    """
    kind = named(Edit, entry(content, "name", str))  # type: ignore[type-abstract]
    if entry(content, "version", int) != kind.version:
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
    """Replacement of a linear layer by a `CompressedLinear`."""

    name: ClassVar[str] = "replace_linear"

    layer: str
    """Name of the layer's module."""
    weight: StoredWeight
    others: Sequence[str] = ()
    """Other names of the layer, and layers that share its weight."""

    def apply(self, model: nn.Module) -> None:
        others: list[str] = list(typed(self.others, Sequence, "others"))  # type: ignore[type-abstract]
        linear = {name: _linear(model, name) for name in (self.layer, *others)}
        rows, columns = _shape(linear[self.layer])
        if unlike := [name for name, layer in linear.items() if _shape(layer) != (rows, columns)]:
            raise ValueError(f"{unlike[0]} has another shape than {self.layer}; they shared a weight")
        value = empty_weight(self.layer, self.weight, (rows, columns))
        store = WeightStore(value, linear[self.layer].weight.dtype)
        compressed = {id(layer): CompressedLinear(store, layer.bias) for layer in linear.values()}
        for name, layer in linear.items():
            model.set_submodule(name, compressed[id(layer)])


@dataclass(frozen=True)
class ReplaceExperts(Edit):
    """Replacement of a fused 3-D parameter of a mixture of experts by `CompressedExperts`."""

    name: ClassVar[str] = "replace_experts"

    parameter: str
    """Full name of the parameter."""
    weights: Sequence[StoredWeight]
    """Stored weights, one for each expert."""

    def apply(self, model: nn.Module) -> None:
        module, _, parameter = typed(self.parameter, str, "parameter").rpartition(".")
        owner: Any = _part(model, module)
        experts = owner._parameters.get(parameter)
        if experts is None or experts.ndim != 3 or not hasattr(owner, "is_transposed"):
            raise ValueError(f"{self.parameter} is not a parameter of experts, which were compressed")
        count, *matrix = experts.shape
        if len(typed(self.weights, Sequence, "weights")) != count:  # type: ignore[type-abstract]
            raise ValueError(f"{self.parameter} has {count} experts; {len(self.weights)} were compressed")
        shape = (matrix[1], matrix[0]) if owner.is_transposed else (matrix[0], matrix[1])
        values = [
            empty_weight(f"{self.parameter}.{k}", weight, shape) for k, weight in enumerate(self.weights)
        ]
        CompressedExperts(values, bool(owner.is_transposed), experts.dtype).install(owner, parameter)


def replace_weights(model: nn.Module, name: str, values: Sequence[CompressedWeight], change: Edit) -> None:
    """Make an edit that replaces a weight, or a fused parameter of experts; hold compressed weights there.

    Args:
        name: of the layer's module, or of the parameter.
        values: one value (out, in), or one for each expert.
        change: the edit, from `weights_edit`.
    """
    edit(model, change)
    for store, value in zip(weight_stores(model.get_submodule(name)), values, strict=True):
        store.hold(value)


def weights_edit(
    name: str, values: Sequence[CompressedWeight], experts: bool, others: Sequence[str] = ()
) -> Edit:
    """Return the edit that replaces a layer's weight, or a fused parameter of experts.

    Args:
        experts: True if `name` is a fused parameter.
        others: see `ReplaceLinear`.
    """
    stored = [describe_weight(value) for value in values]
    return ReplaceExperts(name, stored) if experts else ReplaceLinear(name, stored[0], list(others))


def weight_stores(module: nn.Module) -> list[WeightStore]:
    """Return the stores of all compressed weights in a module, in the order of its modules."""
    return [part for part in module.modules() if isinstance(part, WeightStore)]


def _linear(model: nn.Module, name: Any) -> Any:
    """Return a linear layer by name, or raise `ValueError` if it is another module."""
    layer = _part(model, name)
    if not is_linear(layer):
        raise ValueError(f"{name} is a {type(layer).__name__}; a linear layer was compressed")
    return layer


def _shape(layer: Any) -> tuple[int, int]:
    """Return (out_features, in_features) of a linear layer."""
    rows, columns = layer.weight.shape
    return (columns, rows) if is_conv1d(layer) else (rows, columns)


def _part(model: nn.Module, name: Any) -> nn.Module:
    """Return a module by name, or raise `ValueError` if the model has none of this name."""
    try:
        return model.get_submodule(typed(name, str, "the name of a layer"))
    except AttributeError as error:
        raise ValueError(f"{type(model).__name__} has no layer {name}") from error


def architecture(
    config: "PretrainedConfig", dtype: torch.dtype | str | None, changes: Sequence[Edit] = ()
) -> "PreTrainedModel":
    """Return the language model of a configuration with edits, weights not initialized.

    Raises:
        ValueError: transformers makes no language model of the configuration, or an edit does not fit.
    """
    from transformers.initialization import no_init_weights

    try:
        with no_init_weights():
            made = auto_class(config).from_config(config, dtype=dtype, trust_remote_code=False)
        model: PreTrainedModel = made
        model.tie_weights()
    except library_errors() as error:
        raise ValueError(
            f"transformers makes no causal language model of a {type(config).__name__}: {reason(error)}"
        ) from error
    for change in changes:
        edit(model, change)
    return model


def unexplained(model: "PreTrainedModel") -> list[str]:
    """Return the differences between a model and its configuration with its edits, one line each.

    Compared are modules, shapes of tensors, ties and hooks; contents of tensors are not.
    """
    with torch.device("meta"):
        expected = architecture(model.config, None)
        if type(expected) is not type(model):
            return [f"it is a {type(model).__name__}, which is loaded as a {type(expected).__name__}"]
        for change in edits(model):
            edit(expected, change)
    return [*_other_modules(model, expected), *_other_tensors(model, expected), *_other_ties(model, expected)]


def _other_modules(model: nn.Module, expected: nn.Module) -> list[str]:
    actual, wanted = dict(model.named_modules()), dict(expected.named_modules())
    found = [f"module {name} is unknown" for name in actual if name not in wanted]
    found += [f"module {name} is gone" for name in wanted if name not in actual]
    for name in actual.keys() & wanted.keys():
        module, other = actual[name], wanted[name]
        if type(module) is not type(other):
            found.append(f"module {name} is a {type(module).__name__}, not a {type(other).__name__}")
        if lasting_hooks(module) != lasting_hooks(other):
            hooks = ", ".join(map(_hook_name, lasting_hooks(module))) or "none"
            found.append(f"module {name or 'of the whole model'} has hooks: {hooks}")
        if "forward" in vars(module) and not hasattr(module, "_hf_hook"):
            found.append(f"module {name} has a forward of its own")
    return found


def lasting_hooks(module: nn.Module) -> list[Callable[..., Any]]:
    """Return the hooks of a module that may change its output, except those of `FOREIGN` packages."""
    kinds = (
        module._forward_pre_hooks,
        module._forward_hooks,
        module._backward_pre_hooks,
        module._backward_hooks,
    )
    hooks = [hook for kind in kinds for hook in kind.values()]
    return [hook for hook in hooks if not f"{getattr(hook, '__module__', '')}.".startswith(FOREIGN)]


def _hook_name(hook: Callable[..., Any]) -> str:
    return getattr(hook, "__qualname__", type(hook).__name__)


def _other_tensors(model: nn.Module, expected: nn.Module) -> list[str]:
    actual, wanted = model.state_dict(), expected.state_dict()
    found = [f"tensor {name} is unknown" for name in actual if name not in wanted]
    found += [f"tensor {name} is gone" for name in wanted if name not in actual]
    for name in actual.keys() & wanted.keys():
        if actual[name].shape != wanted[name].shape:
            found.append(f"tensor {name} is {list(actual[name].shape)}, not {list(wanted[name].shape)}")
    return found


def _other_ties(model: nn.Module, expected: nn.Module) -> list[str]:
    """Return a line for each pair of names that are one tensor in only one of the two models."""
    actual, wanted = _first_names(model), _first_names(expected)
    return [
        f"tensors {name} and {first} are {'not one' if actual[name] == name else 'one'},"
        " against the configuration"
        for name in actual.keys() & wanted.keys()
        if actual[name] != wanted[name]
        for first in {actual[name], wanted[name]} - {name}
    ]


def _first_names(model: nn.Module) -> dict[str, str]:
    """Return, for each name in the state dict, the first name of the same tensor."""
    first: dict[object, str] = {}
    return {
        name: first.setdefault(tensor_identity(tensor), name)
        for name, tensor in model.state_dict(keep_vars=True).items()
    }


def tensor_identity(tensor: Tensor) -> object:
    """Return a key that is equal for two names of one stored tensor."""
    if tensor.is_meta or not tensor.numel():
        return id(tensor)
    return tensor.data_ptr(), tensor.shape, tensor.stride()
