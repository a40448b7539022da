"""No compression: the dense model as a method, so that it is run, recorded and tabulated like the others.

`Dense` leaves the model alone; `Cast` computes with it in 16 bits.
"""

import enum
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sinq import Calibration, CompressionReport, Context, Method, NotApplicable
from sinq.calibration.data import check_calibration
from sinq.model.targets import select


@dataclass(frozen=True)
class Dense(Method):
    """Absence of compression: the model stays unchanged."""

    name: ClassVar[str] = "dense"
    changes_model: ClassVar[bool] = False

    def compress(
        self,
        model: nn.Module,
        calibration: Calibration | None = None,
        context: Context = Context(),
    ) -> CompressionReport:
        check_calibration(calibration)
        return CompressionReport(method="Dense")


class HalfPrecision(enum.Enum):
    """Number formats of 16 bits."""

    bfloat16 = "bfloat16"
    float16 = "float16"


@dataclass(frozen=True)
class Cast(Method):
    """The dense model in 16 bits: what rounding by the number format alone does, a floor below other methods.

    Weights and activations are in `dtype` afterwards. Against a dense model in float32 the divergence of this
    row is the noise that nothing can be told from; against one that is in `dtype` already it is zero.

    Raises:
        NotApplicable: a weight is out of range of `dtype`.
    """

    name: ClassVar[str] = "cast"

    dtype: HalfPrecision = HalfPrecision.bfloat16

    @property
    def label(self) -> str:
        return f"Cast {self.dtype.value}"

    @property
    def compresses_layers(self) -> bool:
        return False

    def compress(
        self,
        model: Any,
        calibration: Calibration | None = None,
        context: Context = Context(),
    ) -> CompressionReport:
        self.check_given(model, calibration)
        select(model, context.layers)  # refuses a model that is compressed already
        dtype = getattr(torch, self.dtype.value)
        largest = torch.finfo(dtype).max
        stored = set(model.state_dict(keep_vars=True).values())
        if any(each.abs().max() > largest for each in stored if each.is_floating_point() and each.numel()):
            raise NotApplicable(f"a weight is larger than {largest:g}, the largest number of {dtype}")
        _replace(model, {each: each.detach().to(dtype) for each in stored if each.is_floating_point()})
        model.config.dtype = dtype  # a saved model is loaded in it
        return CompressionReport(method=self.label)


def _replace(model: nn.Module, others: dict[Tensor, Tensor]) -> None:
    """Put other tensors in place of a model's parameters and buffers; tied ones stay tied."""
    others = {old: nn.Parameter(new) if isinstance(old, nn.Parameter) else new for old, new in others.items()}
    for module in model.modules():
        for kind in (module._parameters, module._buffers):
            named: dict[str, Any] = kind
            named.update({name: others[old] for name, old in named.items() if old in others})
