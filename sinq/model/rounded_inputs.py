"""The edit that rounds the inputs of compressed layers, and the finding of static scales."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from sinq.common.reading import typed
from sinq.formats.activations import ActivationFormat
from sinq.kernels.integer import Products
from sinq.model.activations import ActivationQuantizer
from sinq.model.edits import Edit
from sinq.model.linear import CompressedLinear


@dataclass(frozen=True)
class RoundInputs(Edit):
    """Rounding of the inputs of a compressed layer."""

    name: ClassVar[str] = "round_inputs"

    layer: str
    """Name of the layer's module."""
    format: Mapping[str, Any]
    """The format, as `ActivationFormat.as_json` gives it."""
    products: str = Products.simulated.name
    """Name of one of `Products`."""

    def apply(self, model: nn.Module) -> None:
        name = typed(self.layer, str, "layer")
        layer = dict(model.named_modules(remove_duplicate=False)).get(name)
        if not isinstance(layer, CompressedLinear):
            raise ValueError(f"{name} is a {type(layer).__name__}; inputs of compressed layers are rounded")
        products = typed(self.products, str, "products")
        if products not in Products.__members__:
            raise ValueError(
                f"products={products} is not possible; it must be one of {', '.join(Products.__members__)}"
            )
        format = ActivationFormat.from_json(typed(self.format, Mapping, "format"))  # type: ignore[type-abstract]
        layer.inputs = ActivationQuantizer(format, Products[products])


def quantizers(model: nn.Module) -> dict[str, ActivationQuantizer]:
    """Return the activation quantizers of a model by name."""
    return {name: part for name, part in model.named_modules() if isinstance(part, ActivationQuantizer)}


def static_quantizers(model: nn.Module) -> dict[str, ActivationQuantizer]:
    """Return the quantizers with a static scale by name."""
    return {name: part for name, part in quantizers(model).items() if part.format.static}


@contextmanager
def watching_extremes(static: Mapping[str, ActivationQuantizer]) -> Iterator[None]:
    """Let static quantizers note extremes within the context; at its end, set their scales.

    Args:
        static: by name, or by that of their layer.

    Raises:
        ValueError: a layer saw no inputs, or some that are not finite; the message names it.
    """
    for quantizer in static.values():
        quantizer.watches = True
    try:
        yield
    finally:
        for quantizer in static.values():
            quantizer.watches = False
    for name, quantizer in static.items():
        try:
            quantizer.settle()
        except ValueError as error:
            raise ValueError(f"{name.removesuffix('.inputs')}: {error} on the calibration text") from error
