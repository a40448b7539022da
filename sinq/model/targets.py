"""The matrices of a model to compress, and the policy for a matrix that the format does not fit.

In any Hugging Face causal language model these are `nn.Linear`; GPT-2's `Conv1D`, which stores (in, out);
and fused experts, one 3-D parameter for all experts of a layer. Every matrix is returned as (out, in).

The output head stays dense by default, under any name. Embeddings, routers that are bare parameters, norms
and convolutions always stay dense.
"""

import enum
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from sinq.common.options import check
from sinq.formats.base import CompressedWeight
from sinq.model.edits import replace_weights

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

    @property
    def _transposed(self) -> bool:
        return isinstance(self.module, Conv1D) if self.parameter is None else bool(self.module.is_transposed)

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

    def replace(self, model: nn.Module, weights: list[CompressedWeight]) -> None:
        """Replace the dense matrices by compressed weights, in the order of `matrices`."""
        replace_weights(model, self.name, weights, experts=self.parameter is not None)


def find_targets(model: nn.Module, exclude: tuple[str, ...] = (HEAD,)) -> list[Target]:
    """Return all targets to compress, in the order of the model's modules.

    Raises:
        ValueError: nothing to compress; a pattern that matches nothing; a head that shares its weight with
            the embedding; a 3-D parameter that is not known to be experts.
    """
    head = output_head(model)
    candidates = list(linear_places(model))
    kept = [
        target
        for target in candidates
        if not (_matches(target.name, exclude) or (HEAD in exclude and target.module is head))
    ]
    for pattern in exclude:
        if pattern != HEAD and not any(_matches(target.name, (pattern,)) for target in candidates):
            raise ValueError(
                f"layers.exclude={pattern!r} matches no layer; layers are named like {candidates[0].name!r}"
            )
    if not kept:
        raise ValueError(
            f"no layer to compress in {type(model).__name__}:"
            f" all {len(candidates)} linear layers are excluded"
        )
    for target in kept:
        _refuse_tied(model, target, head)
        _refuse_unknown(target)
    return kept


def output_head(model: nn.Module) -> nn.Module | None:
    """Return the module that turns hidden states into logits, under any name, or None."""
    getter: Any = getattr(model, "get_output_embeddings", None)
    return getter() if getter else None


def linear_places(model: nn.Module) -> Iterator[Target]:
    """Yield every parameter that holds matrices of linear layers, the output head included."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | Conv1D):
            yield Target(name, module)
        elif not isinstance(module, nn.modules.conv._ConvNd):
            for key, parameter in module.named_parameters(recurse=False):
                if parameter.ndim == 3:
                    yield Target(f"{name}.{key}", module, key)


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) or fnmatchcase(name, f"*.{pattern}") for pattern in patterns)


def _refuse_tied(model: nn.Module, target: Target, head: nn.Module | None) -> None:
    embedding = model.get_input_embeddings() if target.module is head else None  # type: ignore[operator]
    if embedding is not None and embedding.weight is target.module.weight:
        raise ValueError(
            f"{target.name} shares its weight with the input embedding; compressing it would untie them."
            " Add it to layers.exclude"
        )


def _refuse_unknown(target: Target) -> None:
    if target.parameter is not None and not hasattr(target.module, "is_transposed"):
        raise ValueError(
            f"{target.name} is a 3-D parameter of {type(target.module).__name__},"
            " which does not say how its experts lie;"
            f" leave it dense with layers.exclude=['{target.name.rsplit('.', 1)[-1]}']"
        )
