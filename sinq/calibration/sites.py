"""Sites: names of the tensors of a model that statistics are taken of."""

import enum
from dataclasses import dataclass


class SiteKind(enum.Enum):
    """Kinds of tensors a module has. `collect.py` defines how each is seen."""

    inputs = "inputs"
    """First argument of a module, (..., in_features)."""
    gradient = "gradient"
    """Gradient of the language-model loss by a layer's weight, (out_features, in_features)."""


@dataclass(frozen=True)
class Site:
    """A tensor of a model, as in `Site(SiteKind.inputs, "model.layers.0.self_attn.q_proj")`."""

    kind: SiteKind
    module: str
    """Name of the module, or, for fused experts, of their parameter."""
