"""Edits that give an attention module another form."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from sinq.common.options import check, number, whole
from sinq.model.attention_forms.estimator import SHRINK, EstimatorShape
from sinq.model.attention_forms.form import AttentionForm, install_form
from sinq.model.attention_forms.linear import LinearAttention
from sinq.model.attention_forms.sparse import EstimatedAttention, HighestAttention, LocalAttention
from sinq.model.edits import Edit


@dataclass(frozen=True)
class ReplaceAttention(Edit):
    """Attention of another form in one module."""

    attention: str
    """Name of the module."""

    def apply(self, model: nn.Module) -> None:
        form = self.form()
        install_form(model, self.attention, form.to(next(model.parameters()).device))

    @abstractmethod
    def form(self) -> AttentionForm:
        """Return the form; its parameters and buffers have any content."""


@dataclass(frozen=True)
class EstimateAttention(ReplaceAttention):
    """Attention to blocks of keys that an estimator chooses (SEA)."""

    name: ClassVar[str] = "estimate_attention"

    heads: int
    width: int
    """Width of a head."""
    keys: int
    blocks: int
    tokens: int
    fraction: float

    def __post_init__(self) -> None:
        sizes = {name: whole(1) for name in ("heads", "width", "keys", "blocks", "tokens")}
        check(self, self.name, **sizes, fraction=number(above=0))
        if self.blocks % SHRINK:
            raise ValueError(f"{self.name}: blocks={self.blocks} is no multiple of {SHRINK}")

    def form(self) -> AttentionForm:
        shape = EstimatorShape(self.heads, self.width, self.blocks, self.tokens, self.fraction)
        return EstimatedAttention(shape, self.keys)


@dataclass(frozen=True)
class LinearizeAttention(ReplaceAttention):
    """Linear attention with random features (a Performer's)."""

    name: ClassVar[str] = "linearize_attention"

    width: int
    fraction: float

    def __post_init__(self) -> None:
        check(self, self.name, width=whole(1), fraction=number(above=0))

    def form(self) -> AttentionForm:
        return LinearAttention(self.width, self.fraction)


@dataclass(frozen=True)
class NarrowAttention(ReplaceAttention):
    """Attention to the last keys."""

    name: ClassVar[str] = "narrow_attention"

    keys: int

    def __post_init__(self) -> None:
        check(self, self.name, keys=whole(1))

    def form(self) -> AttentionForm:
        return LocalAttention(self.keys)


@dataclass(frozen=True)
class HighestKeys(ReplaceAttention):
    """Attention to the keys of the highest true scores: an upper bound."""

    name: ClassVar[str] = "highest_keys"

    keys: int

    def __post_init__(self) -> None:
        check(self, self.name, keys=whole(1))

    def form(self) -> AttentionForm:
        return HighestAttention(self.keys)
