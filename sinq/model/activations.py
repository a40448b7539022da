"""Rounding of the inputs of compressed layers, in the space in which their codes see them.

Where a column scale is the same for all rows (SINQ's t, AWQ's 1/c) it belongs to the input: x·t meets the
codes. A rotation likewise. So x is transformed first (`CompressedWeight.core_inputs`), then rounded, then
multiplied by the rest (`CompressedWeight.core`).

The rest is multiplied in one of three ways. *Simulated*, the product is taken of the values that the codes
stand for, in the dtype of x. In *integers*, codes are multiplied by codes, and in *bit planes* bits by bits
(`kernels/integer.py`), where a kernel takes the pair and nothing asks for a gradient.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from sinq.formats.activations import ActivationFormat, QuantizedActivations
from sinq.formats.base import CompressedWeight
from sinq.formats.bitplanes import set_bits
from sinq.formats.checks import require_finite, require_names, require_tensor
from sinq.formats.rounding import round_through
from sinq.formats.scalar import QuantizedTensor
from sinq.kernels.activations import quantize
from sinq.kernels.integer import Products, integer_kernel_of, integer_product, multiplies_integers
from sinq.kernels.product import TRAINED, Choice, is_trained, kernel_of, product
from sinq.model.layer_inputs import LayerInputs, Work, work_of

LARGEST_ZERO = 128
"""Largest magnitude of a zero of a file: codes are signed bytes."""


class ActivationQuantizer(LayerInputs):
    """A module that rounds activations, (..., in_features).

    With a static scale, the buffers `scale` and `zero` (if not symmetric) are float32 numbers, 1 and 0 until
    `settle` sets them from what was seen.

    Args:
        products: the way a layer multiplies what this module rounds.

    Raises:
        ValueError: the format rounds nothing.
    """

    def __init__(self, format: ActivationFormat, products: Products = Products.simulated) -> None:
        super().__init__()
        if not format.rounds:
            raise ValueError(f"activations of {format.bits} bits are not rounded")
        self.format, self.products = format, products
        self._seen: tuple[Tensor, Tensor] | None = None
        self.watches = False
        """True while the module notes extremes and rounds nothing."""
        if format.static:
            self.register_buffer("scale", torch.ones(()))
            if not format.symmetric:
                self.register_buffer("zero", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """Return x after rounding, in its dtype.

        The gradient passes as if nothing were rounded, and where static numbers are trained, to them.
        """
        if self.watches:
            self._note(*self.format.extremes(x.detach()))
            return x
        if not self.rounds:
            return x
        if any(number.requires_grad for number in self.buffers()):
            return self.through(x)
        rounded = self.quantize(x).dequantize(x.dtype)
        return x + (rounded - x).detach() if x.requires_grad else rounded

    def through(self, x: Tensor) -> Tensor:
        wide = x.float()
        scale, zero = self._scales() or self.format.scales(*self.format.extremes(wide))
        half = 2 ** (self.format.bits - 1)
        codes = round_through(self.format.grouped(wide) / scale + zero).clamp(-half, half - 1)
        return ((codes - zero) * scale).reshape(x.shape).to(x.dtype)

    def quantize(self, x: Tensor) -> QuantizedActivations:
        """Return x as codes; no gradient flows through it."""
        # A compiler joins the passes of the definition by itself.
        run = quantize.definition if torch.compiler.is_compiling() else quantize
        return run(x.detach(), self.format, *self._scales())

    def multiply(self, core: CompressedWeight, x: Tensor, bias: Tensor | None) -> Tensor:
        if self._multiplies_codes(core, x, bias):
            size = self.format.group_size
            return integer_product(core, self.quantize(x), bias, x.dtype, size, self.products)
        return product(core, self(x), bias)

    def _multiplies_codes(self, core: CompressedWeight, x: Tensor, bias: Tensor | None) -> bool:
        if self.products is Products.simulated or self.watches or not self.rounds:
            return False
        if torch.is_grad_enabled() and (x.requires_grad or (bias is not None and bias.requires_grad)):
            return False  # integers have no gradient
        return multiplies_integers(core, self.format.group_size, x.device, self.products)

    def choice(self, core: CompressedWeight, device: torch.device) -> Choice:
        floats = TRAINED if is_trained(core) else kernel_of(core, device)
        if self.products is Products.simulated:
            return floats
        integers = integer_kernel_of(core, self.format.group_size, device, self.products)
        if integers.refusal is None:
            return Choice(integers.kernel)
        return Choice(floats.kernel, (integers.refusal, *floats.refusals), floats.multiply)

    def work(self, core: CompressedWeight, x: Tensor) -> Work:
        """Return the operations of `multiply`: with bit planes a step for each bit of an input."""
        plain, bits = work_of(core, x), self.format.bits
        if self.products is not Products.bitplanes or not self._multiplies_codes(core, x, None):
            return plain
        assert isinstance(core, QuantizedTensor)
        planes = core.grid.bits
        spikes = set_bits(self.quantize(x).codes, bits)
        return replace(
            plain,
            steps=bits * plain.inputs,
            spikes=spikes,
            synaptic_operations=spikes * planes * core.shape[0],
            bit_operations=planes * bits * plain.multiplications,
        )

    def settle(self) -> None:
        """Set the static scale from the extremes that were seen.

        Raises:
            ValueError: nothing was seen, or something that is not finite.
        """
        if self._seen is None or not all(extreme.isfinite() for extreme in self._seen):
            raise ValueError("no inputs were seen" if self._seen is None else "inputs are not finite")
        scale, zero = self.format.scales(*self._seen)
        self.take({"scale": scale} | ({} if self.format.symmetric else {"zero": zero}))
        self._seen = None

    def take(self, tensors: Mapping[str, Tensor]) -> None:
        require_names("static activations", dict(tensors), tuple(self._buffers))
        for name, tensor in tensors.items():
            require_tensor(name, tensor, torch.float32, ())
        require_finite(dict(tensors))
        if "scale" in tensors and not tensors["scale"] > 0:
            raise ValueError(f"scale is {tensors['scale'].item():g}; it must be above 0")
        if "zero" in tensors:
            _require_byte(tensors["zero"].item())
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor)

    def _scales(self) -> tuple[Tensor, Tensor] | tuple[()]:
        """Return the static scale and zero; nothing where they are found from the inputs."""
        if not self.format.static:
            return ()
        scale = self.get_buffer("scale")
        return scale, torch.zeros_like(scale) if self.format.symmetric else self.get_buffer("zero")

    def _note(self, low: Tensor, high: Tensor) -> None:
        if self._seen is not None:
            low, high = torch.minimum(low, self._seen[0]), torch.maximum(high, self._seen[1])
        self._seen = low, high

    def extra_repr(self) -> str:
        return self.format.label


def _require_byte(zero: float) -> None:
    if not (zero.is_integer() and -LARGEST_ZERO <= zero < LARGEST_ZERO):
        raise ValueError(
            f"zero is {zero:g}; it must be a whole number from -{LARGEST_ZERO} to {LARGEST_ZERO - 1}"
        )
