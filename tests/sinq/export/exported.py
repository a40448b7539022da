"""Models for tests of exporters, and their logits."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from baselines.rtn import RTN
from sinq import Grid, LayerMethod, Levels, PreSINQ
from tests.conftest import tiny_tokens
from tests.sinq.decoders import random_decoder

NF4 = Grid(4, 32, levels=Levels.nf4, symmetric=True)


@dataclass(frozen=True)
class FinerDown(RTN):
    """Rounding to nearest, with 8 bits in `down`."""

    name: ClassVar[str] = "toy_finer_down"

    def for_layer(self, name: str) -> LayerMethod:
        return RTN(replace(self.grid, bits=8)) if "down_proj" in name else self


def logits(model: Any) -> Tensor:
    """Logits of a few tokens, float32."""
    with torch.no_grad():
        found: Tensor = model(tiny_tokens()).logits
    return found.float()


def balanced(name: str, grid: Grid, method: type[RTN] = RTN) -> Any:
    """A decoder of random weights, rounded to nearest after PreSINQ: no column scales, whole zeros."""
    model = random_decoder(name)
    PreSINQ(method(grid)).compress(model)
    return model
