"""What calibrated methods learn from: windows of text, and whether layers see the model as it was or as it is becoming.

`sequential=True` (the default; GPTQ's own way): the statistics of a block are taken of inputs that went through the *compressed* blocks
before it, so later layers can make up for earlier ones. Every setting of the method needs its own pass over the text.

`sequential=False`: all statistics are those of the dense model. They do not depend on the method's options, so a `store` can keep
them: a sweep over bits takes them once.

Gradients of the loss (`statistics.Gradient`) are the dense model's either way.

A method may ask for more order still, `true_sequential`: within a block, the output projection then sees the compressed query, key and
value, and so on, at the cost of one pass over the block for each such step.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


class StatisticStore(Protocol):
    """Keeps the tensors of statistics of one dense model and one text, by name. A dict is one."""

    def __contains__(self, name: object, /) -> bool: ...
    def __getitem__(self, name: str, /) -> Mapping[str, Tensor]: ...
    def __setitem__(self, name: str, tensors: Mapping[str, Tensor], /) -> None: ...


@dataclass(frozen=True, eq=False)
class Calibration:
    """Text to calibrate on, and how."""

    tokens: Tensor
    """Token ids (windows, seqlen)."""
    sequential: bool = True
    store: StatisticStore | None = None
    """Looked at only where the statistics are the dense model's (`sequential=False`)."""
