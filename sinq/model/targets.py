"""The matrices of a model to compress, and the policy for a matrix that the format does not fit.

In any Hugging Face causal language model these are `nn.Linear`; GPT-2's `Conv1D`, which stores (in, out);
and fused experts, one 3-D parameter for all experts of a layer. Every matrix is returned as (out, in).

A parameter that several modules share is one target. The output head stays dense by default, under any name,
and so does what chooses or weighs experts. Linear layers that cannot be replaced (`unfit.py`) stay dense too;
the report lists them with the reason. Embeddings, norms, convolutions, and routers that are bare parameters
are never compressed.
"""

import enum
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn

from sinq.common.options import check
from sinq.formats.base import CompressedWeight
from sinq.model.conv1d import is_conv1d, is_linear
from sinq.model.edits import Edit, replace_weights, weights_edit
from sinq.model.experts import CompressedExperts
from sinq.model.linear import CompressedLinear
from sinq.model.preconditions import require_constant_weights
from sinq.model.unfit import Unfit, has_experts

HEAD = "lm_head"


class OnMisfit(enum.Enum):
    """Policy for a layer that the format does not fit: raise, use a smaller format, or leave it dense."""

    error = "error"
    shrink = "shrink"
    skip = "skip"


@dataclass(frozen=True)
class Layers:
    """The choice of layers, and the policy for a layer that the format does not fit."""

    exclude: tuple[str, ...] = (HEAD,)
    """Layers left dense: shell patterns for a full name or its last parts. `lm_head` matches the output
    head under any name."""
    on_misfit: OnMisfit = OnMisfit.error
    routers: bool = False
    """Compress also the linear layers that choose or weigh experts."""

    def __post_init__(self) -> None:
        check(self, "layers")


@dataclass(frozen=True)
class Target:
    """A parameter of a model that holds one matrix, or (fused experts) several of the same shape.

    `parameter` names the 3-D parameter of fused experts; it is None for a linear layer.
    """

    name: str
    module: nn.Module
    parameter: str | None = None
    others: tuple[tuple[str, nn.Module], ...] = ()
    """Other names of the same parameter, each with its module, which may be the same too."""

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        """The different modules that have the parameter."""
        return tuple(dict.fromkeys([self.module, *(module for _, module in self.others)]))

    @property
    def names(self) -> tuple[str, ...]:
        return (self.name, *(name for name, _ in self.others))

    @property
    def _transposed(self) -> bool:
        return is_conv1d(self.module) if self.parameter is None else bool(self.module.is_transposed)

    @property
    def tensor(self) -> nn.Parameter:
        """The model's parameter, in its stored layout."""
        tensor: nn.Parameter = getattr(self.module, self.parameter or "weight")
        return tensor

    def matrices(self) -> dict[str, Tensor]:
        """Return name → matrix (out, in), views of the model's parameter."""
        return self.split(self.tensor.detach())

    def split(self, tensor: Tensor) -> dict[str, Tensor]:
        """Return name → matrix (out, in), views of a tensor in the layout of the model's parameter."""
        if self.parameter is None:
            return {self.name: tensor.T if self._transposed else tensor}
        return {
            f"{self.name}.{k}": (matrix.T if self._transposed else matrix) for k, matrix in enumerate(tensor)
        }

    @property
    def tensor_name(self) -> str:
        """The parameter's name in the model's `state_dict`."""
        return self.name if self.parameter is not None else f"{self.name}.weight"

    @property
    def numel(self) -> int:
        """Number of weights in all matrices together."""
        return self.tensor.numel()

    @property
    def shape(self) -> tuple[int, int]:
        """Shape (out, in) of each matrix."""
        rows, columns = next(iter(self.matrices().values())).shape
        return rows, columns

    def stored_tensors(self, weights: Sequence[CompressedWeight]) -> dict[str, Tensor]:
        """Return the tensors of compressed weights under the names that they have in the model's state."""
        experts = self.parameter is not None
        stores = [f"{self.name}.{k}" for k in range(len(weights))] if experts else [f"{self.name}.weight"]
        pairs = zip(stores, weights, strict=True)
        return {
            f"{store}.{key}": tensor for store, value in pairs for key, tensor in value.state_dict().items()
        }

    def edit(self, weights: Sequence[CompressedWeight]) -> Edit:
        """Return the edit that replaces the matrices by compressed weights, in the order of `matrices`."""
        others = self.names[1:] if self.parameter is None else ()
        return weights_edit(self.name, weights, self.parameter is not None, others)

    def replace(self, model: nn.Module, weights: Sequence[CompressedWeight]) -> None:
        """Replace the dense matrices by compressed weights, in the order of `matrices`."""
        replace_weights(model, self.name, weights, self.edit(weights))


@dataclass(frozen=True)
class Selection:
    """The targets to compress, in the order of the model's modules, and those that stay dense."""

    targets: tuple[Target, ...]
    left_dense: Mapping[str, str]
    """Reason by name; layers that were excluded are not in it."""


def find_targets(model: nn.Module, exclude: tuple[str, ...] = (HEAD,), routers: bool = False) -> list[Target]:
    """Return all targets to compress, in the order of the model's modules.

    Raises:
        ValueError: see `select`.
    """
    return list(select(model, Layers(exclude, routers=routers)).targets)


def select(model: nn.Module, layers: Layers) -> Selection:
    """Return the targets to compress, and the reasons why other linear layers stay dense.

    Raises:
        ValueError: nothing to compress; a pattern that matches nothing; a head that shares its weight with
            the embedding; a 3-D parameter of experts whose layout is not known; a model whose code changes
            its weights.
    """
    require_constant_weights(model)
    head, candidates = output_head(model), list(linear_places(model))
    wanted = [
        target
        for target in candidates
        if not (_matches(target, layers.exclude) or (HEAD in layers.exclude and target.module is head))
    ]
    _refuse_unmatched(layers.exclude, candidates)
    unfit = Unfit(model, layers.routers)
    left_dense: dict[str, str] = {}
    for target in wanted:
        _refuse_tied(model, target, head)
        if reason := unfit.reason(target.modules, target.parameter, target.tensor):
            _refuse_experts(target)
            left_dense[target.name] = reason
    targets = tuple(target for target in wanted if target.name not in left_dense)
    if not targets:
        raise ValueError(_nothing_left(model, candidates, left_dense))
    return Selection(targets, left_dense)


def output_head(model: nn.Module) -> nn.Module | None:
    """Return the module that turns hidden states into logits, under any name, or None."""
    getter: Any = getattr(model, "get_output_embeddings", None)
    return getter() if getter else None


def linear_places(model: nn.Module) -> Iterator[Target]:
    """Yield every parameter that holds matrices of linear layers once, the output head included."""
    found: dict[int, list[tuple[str, nn.Module, str | None]]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if is_linear(module):
            weight = module._parameters.get("weight")  # a parametrized one is made at every reading
            found.setdefault(id(module if weight is None else weight), []).append((name, module, None))
        elif not isinstance(module, nn.modules.conv._ConvNd):
            for key, parameter in module.named_parameters(recurse=False):
                if parameter.ndim == 3:
                    found.setdefault(id(parameter), []).append((f"{name}.{key}", module, key))
    for (name, module, key), *others in found.values():
        yield Target(name, module, key, tuple((other, shared) for other, shared, _ in others))


def _matches(target: Target, patterns: tuple[str, ...]) -> bool:
    return any(is_named(name, patterns) for name in target.names)


def is_named(name: str, patterns: tuple[str, ...]) -> bool:
    """Return True if a shell pattern is for a layer's full name or its last parts."""
    return any(fnmatchcase(name, pattern) or fnmatchcase(name, f"*.{pattern}") for pattern in patterns)


def _refuse_unmatched(exclude: tuple[str, ...], candidates: Sequence[Target]) -> None:
    for pattern in exclude:
        if pattern != HEAD and not any(_matches(target, (pattern,)) for target in candidates):
            example = f"; layers are named like {candidates[0].name!r}" if candidates else ""
            raise ValueError(f"layers.exclude={pattern!r} matches no layer{example}")


def _nothing_left(model: nn.Module, candidates: Sequence[Target], left_dense: Mapping[str, str]) -> str:
    name = type(model).__name__
    if compressed := sum(
        isinstance(module, CompressedLinear | CompressedExperts) for module in model.modules()
    ):
        return (
            f"{name} is already compressed: {compressed} of its layers hold compressed weights;"
            " start from the dense model"
        )
    reasons = "; ".join(dict.fromkeys(left_dense.values()))
    return (
        f"no layer to compress in {name}: it has {len(candidates)} linear layers,"
        f" of which {len(candidates) - len(left_dense)} are excluded"
        + (f", and the others stay dense: {reasons}" if reasons else "")
    )


def _refuse_tied(model: nn.Module, target: Target, head: nn.Module | None) -> None:
    embedding = model.get_input_embeddings() if head in target.modules else None  # type: ignore[operator]
    if embedding is not None and embedding.weight is target.module.weight:
        raise ValueError(
            f"{target.name} shares its weight with the input embedding; compressing it would untie them."
            " Add it to layers.exclude"
        )


def _refuse_experts(target: Target) -> None:
    """Raise `ValueError` for experts that stay dense: most of a model's weights may be in them."""
    if target.parameter is not None and has_experts(target.name, target.module):
        raise ValueError(
            f"{target.name} is a 3-D parameter of {type(target.module).__name__},"
            " which does not say how its experts lie;"
            f" leave it dense with layers.exclude=['{target.name.rsplit('.', 1)[-1]}']"
        )
