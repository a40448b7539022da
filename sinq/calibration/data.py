"""Calibration text: windows of tokens, and the state of the model in which statistics are taken.

`sequential=True` (the default; GPTQ's own way): the statistics of a block are taken of inputs that went
through the *compressed* blocks before it, so later layers can compensate for earlier ones. Every setting of
the method needs a pass over the text.

`sequential=False`: all statistics are those of the dense model. They do not depend on the method's options,
so a `store` can keep them: a sweep over bits collects them once.

Gradients of the loss (`statistics.Gradient`) are the dense model's either way.

A method may require a stricter order, `true_sequential`: within a block, the output projection then sees the
compressed query, key and value, and so on, at the cost of one pass over the block for each group of layers.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from sinq.common.errors import PASS_CALIBRATION
from sinq.common.tensor_store import TensorStore

RIGHT = (
    "tokens must be a tensor of token ids (windows, seqlen), as in"
    " Calibration(tokenizer(text, return_tensors='pt').input_ids[:, :2048])"
)


@dataclass(frozen=True, eq=False)
class Calibration:
    """Text to calibrate on, and how statistics are taken.

    Raises:
        TypeError: the tokens are no tensor.
        ValueError: they are no whole numbers, not (windows, seqlen), or none.
    """

    tokens: Tensor
    """Token ids (windows, seqlen)."""
    sequential: bool = True
    """Take statistics behind compressed blocks; otherwise in the dense model."""
    store: TensorStore | None = None
    """Store of statistics of one dense model and one text; used where they are (`sequential=False`)."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What is known about the windows, such as the number of distinct tokens; recorded, not used."""

    def __post_init__(self) -> None:
        tokens = self.tokens
        if not isinstance(tokens, Tensor):
            raise TypeError(f"Calibration(tokens={_short(tokens)}) is not possible; {RIGHT}")
        if tokens.ndim != 2 or not tokens.numel() or tokens.is_floating_point() or tokens.is_complex():
            found = f"{str(tokens.dtype).removeprefix('torch.')} {list(tokens.shape)}"
            raise ValueError(f"Calibration(tokens={found}) is not possible; {RIGHT}")


def check_calibration(calibration: object) -> None:
    """Raise `TypeError` if an argument is neither a `Calibration` nor None."""
    if calibration is not None and not isinstance(calibration, Calibration):
        raise TypeError(
            f"calibration={_short(calibration)} is not possible; {PASS_CALIBRATION}, where {RIGHT}"
        )


def _short(value: Any) -> str:
    return f"<{type(value).__name__}>" if isinstance(value, Tensor) or len(repr(value)) > 40 else repr(value)
