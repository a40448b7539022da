"""The layer that transformers' `SinqConfig` asks a package named `sinq` for: it quantizes its own weight.

    AutoModelForCausalLM.from_pretrained(name, quantization_config=SinqConfig(nbits=4, group_size=64))

transformers (`quantizers/quantizer_sinq.py`, `integrations/sinq.py`) puts a `SINQLinear` in place of every
linear layer, and hands it the layer's weight as soon as it is read, on the device of the layer: no more than
one weight is dense at a time. `SINQLinear.quantize` is `SINQ.quantize` in float32, so codes and scales are
those of `SINQ().compress`, and the products are ours.

Which layers are quantized is decided there: all linear ones that `modules_to_not_convert` does not name, so
also an output head that has a weight of its own. A head that is tied to the embedding has none, and stays as
it is. `method="sinq"` there means scales of 8 bits in the official package; here they have 16, as in
`conf/method/sinq.yaml`.
"""

from typing import Any

import torch
from torch import Tensor, nn

from sinq.checkpoint.foreign.official_sinq import SIDECAR
from sinq.formats.grid import Grid
from sinq.methods.plan import require_usable
from sinq.methods.sinq import SINQ
from sinq.model.descriptions import describe_weight
from sinq.model.edits import ReplaceLinear, record
from sinq.model.linear import CompressedLinear, WeightStore

TILINGS = {"1D": 1, "2D": 2}


def sinq_base_quant_config(
    nbits: int = 4,
    group_size: int = 64,
    quant_zero: bool = False,
    quant_scale: bool = False,
    view_as_float: bool = False,
    axis: int = 1,
    tiling_mode: str = "1D",
    method: str = "sinq",
) -> SINQ:
    """Return the method that `SinqConfig` describes.

    Raises:
        ValueError: an option has a value that SINQ does not have.
    """
    others: dict[str, tuple[object, object]] = {
        "quant_zero": (quant_zero, False),
        "quant_scale": (quant_scale, False),
        "view_as_float": (view_as_float, False),
        "axis": (axis, 1),
        "method": (method, "sinq"),
    }
    for name, (given, only) in others.items():
        if given != only:
            raise ValueError(f"{name}={given} is not possible; here it is {only}")
    if tiling_mode not in TILINGS:
        raise ValueError(f"tiling_mode={tiling_mode} is not possible; it must be one of {', '.join(TILINGS)}")
    return SINQ(Grid(bits=nbits, group_size=group_size, tiling=TILINGS[tiling_mode]))


class SINQLinear(CompressedLinear):
    """A linear layer that has no weight yet, a dense one (a head that is tied), or a compressed one.

    Args:
        in_features, out_features, bias: of the layer that it replaces.
        quant_config: the method, from `sinq_base_quant_config`.
        compute_dtype: dtype of the model.
        device: where the layer will be; `quantize` keeps to the device of the weight it is given.
        use_unpack_kernel: of the official package; here the kernel is chosen by the device.

    Raises:
        ValueError: the layer is one of a folder that is quantized already, or groups do not fit it.
    """

    def __init__(
        self,
        in_features: int | None,
        out_features: int | None,
        bias: bool,
        quant_config: SINQ | None,
        compute_dtype: torch.dtype = torch.float32,
        device: str = "cpu",
        use_unpack_kernel: bool = True,
    ) -> None:
        nn.Module.__init__(self)
        if in_features is None or out_features is None or quant_config is None:
            raise ValueError(
                "the weights are quantized by the official SINQ package: load its files from a folder with"
                f" {SIDECAR} (huggingface_hub.snapshot_download), after import sinq.transformers"
            )
        if (misfit := quant_config.grid.incompatibility((out_features, in_features))) is not None:
            raise ValueError(
                f"{misfit.reason} {out_features}×{in_features}; {misfit.accepted},"
                " or name the layer in modules_to_not_convert"
            )
        self.method = quant_config
        self.register_module("inputs", None)
        self.weight = _awaited(out_features, in_features, dtype=compute_dtype)  # type: ignore[assignment]
        self.bias = _awaited(out_features, dtype=compute_dtype) if bias else None

    @property
    def ready(self) -> bool:
        """True if the weight is compressed."""
        return isinstance(self.weight, WeightStore)

    def quantize(self, weight: Tensor) -> None:
        """Hold a weight (out, in), quantized on its device."""
        require_usable(f"{self.out_features}×{self.in_features}", weight)
        value = self.method.quantize(weight.detach().float().contiguous())
        del self.weight
        self.weight = WeightStore(value, weight.dtype)

    def forward(self, x: Tensor) -> Tensor:
        if self.ready:
            return super().forward(x)
        dense: Any = self.weight
        return nn.functional.linear(x, dense, self.bias)

    def extra_repr(self) -> str:
        shape = f"in_features={self.in_features}, out_features={self.out_features}"
        return super().extra_repr() if self.ready else f"{shape}, dense"


def _awaited(*shape: int, dtype: torch.dtype) -> nn.Parameter:
    """Return a parameter without memory, which transformers replaces."""
    return nn.Parameter(torch.empty(shape, dtype=dtype, device="meta"), requires_grad=False)


def adopt(model: nn.Module) -> None:
    """Turn the layers of `SinqConfig` into edits, with which a model is saved; others stay as they are."""
    for name, layer in [pair for pair in model.named_modules() if isinstance(pair[1], SINQLinear)]:
        if layer.ready:
            model.set_submodule(name, CompressedLinear(layer.weight, layer.bias))
            record(model, ReplaceLinear(name, describe_weight(layer.weight.value)))
        else:
            model.set_submodule(name, _plain(layer))


def _plain(layer: SINQLinear) -> nn.Linear:
    """Return a dense layer as the model had it, with the same parameters."""
    with torch.device("meta"):
        linear = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None)
    weight: Any = layer.weight
    linear.weight, linear.bias = weight, layer.bias  # type: ignore[assignment]
    return linear
