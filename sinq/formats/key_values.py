"""Formats of keys and values: the numbers that attention keeps of every token it has seen.

    x ≈ (code − zero) · scale,    codes packed, scale in float16, zero in a byte

A scale is shared by a token's channels (of one head, or of a group in it), by a group of tokens in one
channel (KIVI, arXiv 2402.02750: keys have outliers in few channels), or by all of a head, found on
calibration text (PrefixQuant, arXiv 2410.05265). The last tokens may stay dense (`window`). Channels may fire
as neurons (SpikeLLM, `spikes.py`): what is kept are their spikes.

Which tokens are rounded depends on how many are known, and on nothing else: with `count` tokens, the first
`KeyValueFormat.rounded(count)`. So a text in one pass and the same text token by token have the same numbers.

`StoredStates` is the value: keys or values of some tokens, as they are kept.
"""

import enum
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn.functional import pad

from sinq.common.errors import NotApplicable
from sinq.common.options import check, number, one_of, whole
from sinq.common.reading import entry
from sinq.common.reading import options as typed_options
from sinq.formats.activations import UNROUNDED, ActivationFormat
from sinq.formats.packing import CODES_PER_WORD, unpack
from sinq.formats.packing import pack as pack_codes
from sinq.formats.spikes import LONGEST, fire

STATE_BITS = (2, 3, 4, 8, UNROUNDED)
LARGEST_SCALE = torch.finfo(torch.float16).max


class Sharing(enum.Enum):
    """The numbers that share a scale."""

    token = "token"
    """Channels of one token in a head."""
    channel = "channel"
    """Consecutive tokens of one channel."""
    head = "head"
    """All of a head, in any text: a static scale."""


@dataclass(frozen=True)
class StateFormat:
    """The way keys, or values, are rounded.

    Raises:
        ValueError: an option is out of its range.
        NotApplicable: options exclude each other.
    """

    bits: int = UNROUNDED
    """Bits per code: 2, 3, 4, 8; 16 leaves numbers as they are."""
    sharing: Sharing = Sharing.token
    group_size: int = 0
    """Channels of a token that share a scale (0 for all of a head), or tokens of a channel."""
    symmetric: bool = False
    """Have no zero-point."""
    clip_ratio: float = 1.0
    """Share of the range that is kept; larger numbers are cut to its ends."""
    search: bool = False
    """Search the share that a static scale keeps, by the squared error of each head on calibration text."""
    steps: int = 1
    """Steps in which salient channels fire as neurons (SpikeLLM, arXiv 2407.04752); 1 for codes alone."""
    share: float = 0.1
    """Share of a token's channels, of all heads together, that are salient where there are steps."""

    def __post_init__(self) -> None:
        check(
            self,
            "kv",
            bits=one_of(*STATE_BITS),
            group_size=whole(0),
            clip_ratio=number(above=0, most=1),
            steps=whole(1, LONGEST),
            share=number(least=0, most=1),
        )
        if self.fires and (self.sharing is not Sharing.token or self.group_size or self.symmetric):
            raise NotApplicable(
                f"kv steps={self.steps} is possible with one asymmetric scale of a token's head only; use"
                " sharing=token group_size=0 symmetric=false, or steps=1"
            )
        if self.group_size % CODES_PER_WORD:
            raise NotApplicable(
                f"kv group_size={self.group_size} is not possible: codes are packed by 8; use a multiple of 8"
            )
        if self.sharing is Sharing.channel and not self.group_size:
            raise NotApplicable("kv sharing=channel needs group_size, the number of tokens, such as 32")
        if self.sharing is Sharing.head and self.group_size:
            raise NotApplicable(
                f"kv group_size={self.group_size} is not possible with sharing=head; use group_size=0"
            )

        if self.search and not self.static:
            raise NotApplicable(
                "kv search=true needs static scales: use sharing=head, and fewer than 16 bits"
            )

    @property
    def rounds(self) -> bool:
        """True unless numbers are left as they are."""
        return self.bits != UNROUNDED

    @property
    def static(self) -> bool:
        """True if scales come from calibration text."""
        return self.rounds and self.sharing is Sharing.head

    @property
    def fires(self) -> bool:
        """True if some channels fire as neurons for more than one step."""
        return self.rounds and self.steps > 1

    @property
    def tokens(self) -> int:
        """Number of tokens that are rounded together."""
        return self.group_size if self.rounds and self.sharing is Sharing.channel else 1

    @property
    def label(self) -> str:
        """Bits, and what shares a scale unless it is a token's head: "4", "2 channel g32", "4 static"."""
        if not self.rounds or self == StateFormat(self.bits):
            return str(self.bits)
        if self.fires:
            return f"{self.bits} T{self.steps} {100 * self.share:.4g}%"
        shared = {Sharing.token: "", Sharing.channel: " channel", Sharing.head: " static"}[self.sharing]
        shared += ", searched" if self.search else ""
        return f"{self.bits}{shared}" + (f" g{self.group_size}" if self.group_size else "")

    @property
    def numbers(self) -> ActivationFormat:
        """The arithmetic of codes that share a scale, which are in the last dimension."""
        return ActivationFormat(self.bits, symmetric=self.symmetric, clip_ratio=self.clip_ratio)

    def require_width(self, width: int) -> None:
        """Raise `NotApplicable` if heads of `width` channels cannot be stored."""
        size = self.group_size if self.sharing is Sharing.token and self.group_size else CODES_PER_WORD
        if self.rounds and width % size:
            raise NotApplicable(
                f"kv group_size={self.group_size} is not possible: heads have {width} channels, and groups of"
                f" {size} do not divide them"
            )

    def scales(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Return scale, a float16 number above 0 in float32, and zero, a whole number, of ranges."""
        scale = self.numbers.scale(low, high).clamp_max(LARGEST_SCALE).half().float()
        scale = torch.where(scale > 0, scale, 1.0)
        return scale, self.numbers.zero(low, scale)

    def grouped(self, x: Tensor) -> Tensor:
        """Return x (batch, heads, tokens, width) in five dimensions; the last one shares a scale."""
        if self.sharing is Sharing.channel:
            return x.unflatten(2, (-1, self.group_size)).transpose(-1, -2)
        return x.unflatten(-1, (-1, self.group_size or x.shape[-1]))

    def ungrouped(self, x: Tensor) -> Tensor:
        """Return what `grouped` was made of."""
        return x.transpose(-1, -2).flatten(2, 3) if self.sharing is Sharing.channel else x.flatten(-2)


@dataclass(frozen=True)
class KeyValueFormat:
    """The way keys and values are kept.

    Raises:
        NotApplicable: rotated keys that are not rounded.
    """

    keys: StateFormat = StateFormat()
    values: StateFormat = StateFormat()
    window: int = 0
    """Number of last tokens that stay dense."""
    rotate: bool = False
    """Round keys after a Hadamard transform of each head, which no product of queries and keys sees (QuaRot,
    arXiv 2404.00456; R3 of SpinQuant, arXiv 2405.16406)."""
    search_attention: bool = False
    """Search scales of keys by the squared error of attention's probabilities, not by that of the keys
    (PrefixQuant, arXiv 2410.05265)."""
    queries: StateFormat = StateFormat()
    """Rounding of queries at attention, which keeps none; with `rotate`, after the keys' transform."""

    def __post_init__(self) -> None:
        check(self, "kv", window=whole(0))
        if self.queries.rounds and (self.queries.sharing is not Sharing.token or self.queries.fires):
            raise NotApplicable(
                f"kv.queries={self.queries.label} is not possible: queries are rounded token by token; use"
                " kv.queries.sharing=token kv.queries.steps=1"
            )
        if self.queries.rounds and not self.rounds:
            raise NotApplicable(
                f"kv.queries.bits={self.queries.bits} is not possible where keys and values have 16 bits; use"
                " kv=kv8 or another"
            )
        if self.rotate and not self.keys.rounds:
            raise NotApplicable("kv.rotate=true is not possible with kv.keys.bits=16: nothing is rounded")
        if self.search_attention and not self.keys.search:
            raise NotApplicable(
                "kv.search_attention=true is not possible with kv.keys.search=false: no scale of keys is"
                " searched; use kv.keys.search=true"
            )
        if self.rotate and self.keys.fires:
            raise NotApplicable(
                f"kv.rotate=true is not possible with kv.keys.steps={self.keys.steps}: behind a rotation no"
                " channel stands out; use kv.keys.steps=1"
            )

    @property
    def rounds(self) -> bool:
        return self.keys.rounds or self.values.rounds

    @property
    def static(self) -> bool:
        return self.keys.static or self.values.static

    @property
    def fires(self) -> bool:
        return self.keys.fires or self.values.fires

    @property
    def label(self) -> str:
        """A short label for people: "KV4", "KV4 rotated", "K2 channel g32 V2 g32, last 128 dense"."""
        same = self.keys.label == self.values.label
        label = f"KV{self.keys.label}" if same else f"K{self.keys.label} V{self.values.label}"
        rotated = (" by attention" if self.search_attention else "") + (" rotated" if self.rotate else "")
        queries = f" Q{self.queries.label}" if self.queries.rounds else ""
        return label + rotated + queries + (f", last {self.window} dense" if self.window else "")

    def rounded(self, count: int) -> int:
        """Return how many of the first tokens are rounded when `count` are known."""
        if not self.rounds:
            return 0
        step = math.lcm(self.keys.tokens, self.values.tokens)
        return max(0, count - self.window) // step * step

    @property
    def immediate(self) -> bool:
        """True if a token is rounded as soon as it is known, so that no token is seen dense."""
        return self.rounds and self.rounded(1) == 1

    def as_json(self) -> dict[str, Any]:
        """Return the options as plain JSON values; `from_json` is the inverse."""
        states = {name: _as_json(getattr(self, name)) for name in ("keys", "values", "queries")}
        plain = {"window": self.window, "rotate": self.rotate, "search_attention": self.search_attention}
        return states | plain

    @classmethod
    def from_json(cls, options: Mapping[str, Any]) -> Self:
        """Return the format that a file describes.

        Raises:
            ValueError: an option is unknown, or has a value of another type or that no format could have.
        """
        names = ("keys", "values", *(["queries"] if "queries" in options else []))  # files before had none
        states = {name: _from_json(entry(options, name, dict)) for name in names}
        return cls(**typed_options(cls, {**options, **states}, "key-value format"))


def _as_json(states: StateFormat) -> dict[str, Any]:
    return vars(states) | {"sharing": states.sharing.name}


def _from_json(options: Mapping[str, Any]) -> StateFormat:
    name = entry(options, "sharing", str)
    if name not in Sharing.__members__:
        raise ValueError(
            f"sharing={name} is not possible; it must be one of {', '.join(Sharing.__members__)}"
        )
    return StateFormat(**typed_options(StateFormat, {**options, "sharing": Sharing[name]}, "states"))


@dataclass(frozen=True, eq=False)
class StoredStates:
    """Keys or values of consecutive tokens, (batch, heads, tokens, width), as they are kept.

    Dimension 0 of every tensor is the batch, dimension 2 tokens or groups of them.
    """

    format: StateFormat
    codes: Tensor
    """Packed, uint8 (batch, heads, …, bytes); the numbers themselves where nothing is rounded."""
    scale: Tensor | None = None
    """float16 (batch, heads, …, 1); None where scales are static."""
    zero: Tensor | None = None
    """int8 of the same shape; None for symmetric codes, and where zeros are static."""
    later: Tensor | None = None
    """Spikes of salient channels after the first step, packed, uint8 (batch, steps − 1, tokens, bytes)."""

    @classmethod
    def of(
        cls,
        format: StateFormat,
        x: Tensor,
        static: tuple[Tensor, Tensor] | None = None,
        salient: Tensor | None = None,
    ) -> Self:
        """Round keys or values (batch, heads, tokens, width).

        Args:
            static: scale and zero, float32 (heads, 1, 1, 1), where the format has static scales.
            salient: numbers of the channels that fire for more steps, int64, heads one after the other.
        """
        if not format.rounds:
            return cls(format, x)
        if salient is not None:
            return cls._fired(format, x.float(), salient)
        numbers, grouped = format.numbers, format.grouped(x.float())
        scale, zero = static or format.scales(*numbers.extremes(grouped))
        codes = numbers.codes(grouped, scale, zero)
        packed = _packed((codes + 2 ** (format.bits - 1)).to(torch.uint8), format.bits)
        if static is not None:
            return cls(format, packed)
        return cls(format, packed, scale.half(), None if format.symmetric else zero.to(torch.int8))

    @classmethod
    def _fired(cls, format: StateFormat, x: Tensor, salient: Tensor) -> Self:
        """Let a neuron fire for each channel: the first spike of all is stored as codes are, then the others.

        A salient channel is charged in units of scale / T, with T times the zero, so that both populations
        share what is stored of a token.
        """
        levels, steps = 2**format.bits, format.steps
        scale, zero = format.scales(*format.numbers.extremes(format.grouped(x)))
        offset, step = (zero + levels // 2).squeeze(-1), scale.squeeze(-1)
        first = (x / step + offset).round_().clamp_(0, levels - 1)
        charge = (_channels(x / step + offset)[..., salient] * steps).round_().clamp_(0, steps * (levels - 1))
        spikes = fire(charge, levels, steps)
        joint = _channels(first)
        joint[..., salient] = spikes[0]
        codes = _packed(_heads(joint, x.shape[1]).unsqueeze(-2).to(torch.uint8), format.bits)
        filled = pad(spikes[1:].transpose(0, 1), (0, -len(salient) % CODES_PER_WORD)).to(torch.uint8)
        return cls(format, codes, scale.half(), zero.to(torch.int8), _packed(filled, format.bits))

    def read(
        self,
        dtype: torch.dtype,
        static: tuple[Tensor, Tensor] | None = None,
        salient: Tensor | None = None,
    ) -> Tensor:
        """Return the numbers that are stored, (batch, heads, tokens, width).

        Args:
            static, salient: those of `of`.
        """
        if not self.format.rounds:
            return self.codes.to(dtype)
        codes = _unpacked(self.codes, self.format.bits).float() - 2 ** (self.format.bits - 1)
        if static is not None:
            scale, zero = static
        else:
            assert self.scale is not None
            scale = self.scale.float()
            zero = torch.zeros_like(scale) if self.zero is None else self.zero.float()
        if self.later is not None:
            assert salient is not None
            codes = self._summed(codes, salient)
        return self.format.ungrouped((codes - zero) * scale).to(dtype)

    def _summed(self, codes: Tensor, salient: Tensor) -> Tensor:
        """Return centred codes (batch, heads, tokens, 1, width), of salient channels the means of spikes."""
        assert self.later is not None
        half, steps, heads = 2 ** (self.format.bits - 1), self.format.steps, codes.shape[1]
        later = _unpacked(self.later, self.format.bits)[..., : len(salient)].float().sum(1)
        joint = _channels(codes.squeeze(-2))
        joint[..., salient] = (joint[..., salient] + half + later) / steps - half
        return _heads(joint, heads).unsqueeze(-2)

    def followed_by(self, other: Self) -> Self:
        """Return these tokens and those of another value after them."""
        pairs = {name: (tensor, getattr(other, name)) for name, tensor in self.tensors().items()}
        return self._with({name: torch.cat(pair, dim=2) for name, pair in pairs.items()})

    def changed(self, change: Callable[[Tensor], Tensor]) -> Self:
        """Return this value with a change of each tensor, such as a selection in the batch."""
        return self._with({name: change(tensor) for name, tensor in self.tensors().items()})

    def _with(self, tensors: Mapping[str, Tensor]) -> Self:
        optional = (tensors.get(name) for name in ("scale", "zero", "later"))
        return type(self)(self.format, tensors["codes"], *optional)

    def tensors(self) -> dict[str, Tensor]:
        """Return all stored tensors by name."""
        named = {"codes": self.codes, "scale": self.scale, "zero": self.zero, "later": self.later}
        return {name: tensor for name, tensor in named.items() if tensor is not None}


def _channels(x: Tensor) -> Tensor:
    """Return states (batch, heads, tokens, width) with all channels of a token in one dimension."""
    return x.transpose(1, 2).flatten(2)


def _heads(x: Tensor, heads: int) -> Tensor:
    """Return what `_channels` was made of."""
    return x.unflatten(2, (heads, -1)).transpose(1, 2)


def _packed(codes: Tensor, bits: int) -> Tensor:
    """Return codes packed along the last dimension, whose size is a multiple of 8."""
    if bits == 8:
        return codes
    return pack_codes(codes, bits).reshape(*codes.shape[:-1], codes.shape[-1] * bits // 8)


def _unpacked(packed: Tensor, bits: int) -> Tensor:
    if bits == 8:
        return packed
    return unpack(packed.reshape(-1), bits, (*packed.shape[:-1], packed.shape[-1] * 8 // bits))
