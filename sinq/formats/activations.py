"""Activation formats: the values that the inputs of a layer may take, and what shares their scale.

    x ≈ (code − zero) · scale,    code in −2^(bits−1) … 2^(bits−1) − 1, one signed byte

Scales are *dynamic*, from the extremes of what shares one (a token, a group of a token's channels, or the
whole tensor), or *static*: one number for a layer's inputs, found on calibration text and stored. A dynamic
scale costs a reduction at run time, a static one nothing, and a token far from the text spoils it.

- symmetric: scale = clip · max|x| / (2^(bits−1) − 1), zero = 0 (SmoothQuant, arXiv 2211.10438; QuaRot,
  arXiv 2404.00456, whose clip ratio is 0.9 at 4 bits);
- asymmetric: scale = clip · (max − min) / (2^bits − 1), zero = the code of 0, where the range includes 0.

Activations cost no bytes of a checkpoint. `model/activations.py` has the module that rounds. What is NaN
stays NaN, in all that shares a scale with it: codes are bytes, which have none.
"""

import enum
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from sinq.common.errors import NotApplicable
from sinq.common.options import check, number, one_of, whole
from sinq.common.reading import entry
from sinq.common.reading import options as typed_options
from sinq.formats.checks import require_tensor

UNROUNDED = 16
"""Bits of activations that are left as they are."""
ACTIVATION_BITS = (2, 3, 4, 5, 6, 7, 8, UNROUNDED)


class Per(enum.Enum):
    """The inputs that share a scale."""

    token = "token"
    """All inputs of a layer for one token."""
    tensor = "tensor"
    """All inputs of a layer in a call, or in the text where the scale is static."""


@dataclass(frozen=True, eq=False)
class QuantizedActivations:
    """Rounded inputs of a layer, x ≈ (code − zero) · scale.

    Raises:
        ValueError: the tensors are of another type, or their shapes do not fit.
    """

    codes: Tensor
    """int8 (..., in_features)."""
    scale: Tensor
    """float32 (..., groups), one for in_features / groups consecutive channels of a token."""
    zero: Tensor | None = None
    """Whole numbers of one signed byte, float32 (..., groups); None for 0."""
    bits: int = 8
    """Bits of a code, which is in −2^(bits−1) … 2^(bits−1) − 1."""

    def __post_init__(self) -> None:
        *tokens, columns = self.codes.shape
        groups = self.scale.shape[-1] if self.scale.ndim else 0
        if not groups or columns % groups:
            raise ValueError(f"{groups} scales of a token do not divide its {columns} inputs")
        require_tensor("codes", self.codes, torch.int8, (*tokens, columns))
        for name, tensor in (("scale", self.scale), ("zero", self.zero)):
            if tensor is not None:
                require_tensor(name, tensor, torch.float32, (*tokens, groups))

    @property
    def group_size(self) -> int:
        """Consecutive channels of a token that share a scale."""
        return self.codes.shape[-1] // self.scale.shape[-1]

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the inputs (..., in_features) that this value stands for; computed in float32, then cast."""
        whole = self.codes.unflatten(-1, (-1, self.group_size)).float()
        if self.zero is not None:
            whole -= self.zero[..., None]
        return whole.mul_(self.scale[..., None]).reshape(self.codes.shape).to(dtype)


@dataclass(frozen=True)
class ActivationFormat:
    """The way inputs of layers are rounded.

    Raises:
        ValueError: an option is out of its range.
        NotApplicable: options exclude each other.
    """

    bits: int = 8
    """Bits per code: 2 to 8; 16 leaves activations as they are."""
    per: Per = Per.token
    group_size: int = 0
    """Consecutive channels of a token that share a scale; 0 for all."""
    symmetric: bool = True
    """Have no zero-point."""
    static: bool = False
    """Find the scale on calibration text, with `per: tensor` only."""
    clip_ratio: float = 1.0
    """Share of the range that is kept; larger values are cut to its ends."""
    search_windows: int = 0
    """Windows of calibration text on which the share that a static scale keeps is searched, by the error of
    the block's output (PrefixQuant, arXiv 2410.05265); 0 keeps all of `clip_ratio`."""

    def __post_init__(self) -> None:
        check(
            self,
            "activation",
            bits=one_of(*ACTIVATION_BITS),
            group_size=whole(0),
            clip_ratio=number(above=0, most=1),
            search_windows=whole(0),
        )
        if self.search_windows and not self.static:
            raise NotApplicable(
                f"activation.search_windows={self.search_windows} is not possible with"
                " activation.static=false: dynamic scales are not searched"
            )
        if self.group_size and self.per is not Per.token:
            raise NotApplicable(
                f"activation.group_size={self.group_size} is not possible with"
                f" activation.per={self.per.value}: groups are channels of a token; use activation.per=token"
            )
        if self.static and self.per is not Per.tensor:
            raise NotApplicable(
                f"activation.static=true is not possible with activation.per={self.per.value}: tokens are not"
                " known beforehand; use activation.per=tensor, or activation.static=false"
            )

    @property
    def rounds(self) -> bool:
        """True unless activations are left as they are."""
        return self.bits != UNROUNDED

    @property
    def label(self) -> str:
        """A short label for people, after the field's W4A8: "A8", "A4 g64", "A8 static"."""
        shared = f" g{self.group_size}" if self.group_size else ""
        static = " static, searched" if self.search_windows else " static"
        return f"A{self.bits}{shared if self.per is Per.token else static if self.static else ' tensor'}"

    def extremes(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the smallest and the largest value that share a scale, float32, 0 among them.

        Args:
            x: (..., in_features).

        Returns:
            Both (..., 1) for tokens, (..., groups, 1) for groups, () for the tensor.
        """
        x = x.float()
        if self.per is Per.tensor:
            low, high = x.aminmax() if x.numel() else (x.new_zeros(()), x.new_zeros(()))
        else:
            low, high = self.grouped(x).aminmax(dim=-1, keepdim=True)
        return low.clamp_max(0), high.clamp_min(0)

    def scales(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Return scale and zero of ranges, float32 of the shape of the extremes; zero is a whole number."""
        scale = self.scale(low, high)
        return scale, self.zero(low, scale)

    def scale(self, low: Tensor, high: Tensor) -> Tensor:
        """Return the scale of ranges, float32, above 0."""
        if self.symmetric:
            return _positive(torch.maximum(-low, high) * (self.clip_ratio / (2 ** (self.bits - 1) - 1)))
        return _positive((high - low) * (self.clip_ratio / (2**self.bits - 1)))

    def zero(self, low: Tensor, scale: Tensor) -> Tensor:
        """Return the code of 0, a whole number in float32, of ranges that begin at `low`."""
        if self.symmetric:
            return torch.zeros_like(scale)
        return torch.round(-low * self.clip_ratio / scale) - 2 ** (self.bits - 1)

    def codes(self, x: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
        """Return the nearest codes of numbers, float32, whole numbers in the shape of x."""
        half = 2 ** (self.bits - 1)
        return (x / scale + zero).round_().clamp_(-half, half - 1)

    def quantize(self, x: Tensor, scale: Tensor, zero: Tensor) -> QuantizedActivations:
        """Return x (..., in_features) with the nearest codes.

        Args:
            scale, zero: of the shapes that `scales` returns.
        """
        x = x.float().contiguous()
        codes = self.codes(self.grouped(x), scale, zero)
        if self.per is Per.tensor:  # other scales are found from x, and are NaN where it is
            scale = torch.where(x.isnan().any(-1, keepdim=True), torch.nan, scale)
            zero = zero.expand(scale.shape).contiguous()
        elif self.group_size:
            scale, zero = scale.squeeze(-1), zero.squeeze(-1)
        return QuantizedActivations(
            codes.to(torch.int8).reshape(x.shape), scale, None if self.symmetric else zero, self.bits
        )

    def rounded(self, x: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
        """Return x (..., in_features) after rounding, in the dtype of x."""
        return self.quantize(x, scale, zero).dequantize(x.dtype)

    def grouped(self, x: Tensor) -> Tensor:
        """Return x with the channels that share a scale in the last dimension."""
        return x.unflatten(-1, (-1, self.group_size)) if self.group_size else x

    def as_json(self) -> dict[str, Any]:
        """Return the options as plain JSON values; `from_json` is the inverse."""
        return asdict(self) | {"per": self.per.name}

    @classmethod
    def from_json(cls, options: Mapping[str, Any]) -> "ActivationFormat":
        """Return the format that a file describes.

        Raises:
            ValueError: an option is unknown, or has a value of another type or that no format could have.
        """
        name = entry(options, "per", str)
        if name not in Per.__members__:
            raise ValueError(f"per={name} is not possible; it must be one of {', '.join(Per.__members__)}")
        return cls(**typed_options(cls, dict(options) | {"per": Per[name]}, "activation format"))


def _positive(scale: Tensor) -> Tensor:
    """Return scales with 1 in place of 0, which any scale of zeros may be."""
    return torch.where(scale == 0, 1.0, scale)
