"""ABQ-LLM (arXiv 2408.08554): OmniQuant with corrections of distributions, for any number of bits.

    loss           DLC of outputs + AKL of attention (`losses.py`), in place of the squared error
    transformation OmniQuant's, between up and down too
    compensation   Ŵ = Q(W + a bᵀ) for down of the first 3 and the last 4 blocks; nothing more is stored
    bit balance    fewer levels than codes: five at "2 bits", the paper's W2*, three at 1 bit

Five levels need three bit planes. The authors store W2* in 3 bits, and so does `grid.bits=3 method.levels=5`:
its row says 3 bits. `method.repacked=true` stores three codes in 7 bits, 2.333 a weight, and unpacks them to
planes. Plain W2 has four levels. The released code balances 2-bit activations too; here they have 4 levels.

Rates, α, AdamW, 20 epochs of 128 × 2048 tokens of WikiText-2 train (40 at 2 bits and W8A8) are those of the
released code and its scripts. It also adds squared errors of both outputs, which the paper does not mention
(`method.squared_errors`), and takes the softmax of probabilities again (`method.released_attention`). Where
query heads share a kv head, it starts from the first of them, here from the largest.

Choices and differences are those listed in `baselines/omniquant/`: groups of weights, rotary pairs that share
their scale, keys and values rounded by `kv=…` and not in training, and queries by `kv.queries.bits=…` alone
(the paper rounds all three in its rows of WxAy). Integer products of bits are a matter of kernels, not of the
method.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Self

from torch import nn

from baselines.abq.rounding import Repacking
from baselines.abq.trainer import ABQTrainer
from baselines.omniquant import OmniQuant
from baselines.omniquant.clipping import Clipping
from sinq import Context, NotApplicable
from sinq.common.options import check, number, one_of, several, whole
from sinq.formats.base import Format
from sinq.formats.repacked import WORDS, Repacked
from sinq.model.decoder import Block


@dataclass(frozen=True)
class ABQ(OmniQuant):
    """OmniQuant with the losses, the compensation and the levels of ABQ-LLM.

    Raises:
        ValueError: an option is out of its range.
        NotApplicable: the grid has not the bits that the levels need.
    """

    name: ClassVar[str] = "abq"

    down: bool = True
    levels: int = 0
    """Levels of a code (bit balance): 5 with `grid.bits=3`, 3 with `grid.bits=2`; 0 for all of the grid's."""
    repacked: bool = False
    """Store several codes of 5 or 3 levels in one word: 2.333 or 1.6 bits a weight."""
    compensated: tuple[int, int] = (3, 4)
    """First and last blocks whose down matrices are compensated."""
    compensation_rate: float = 1e-2
    """Learning rate of the compensation."""
    squared_errors: bool = False
    """Add the squared errors of both outputs to the loss, as the released code does."""
    released_attention: bool = False
    """Take the softmax of probabilities once more, and the mean over keys, as the released code does."""

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "compensated", tuple(self.compensated))  # a file has a list
        check(
            self,
            "method",
            levels=one_of(0, *WORDS),
            compensated=several(whole(0), length=2),
            compensation_rate=number(above=0, most=10),
        )
        if self.levels and (self.grid.bits != (self.levels - 1).bit_length() or self.grid.symmetric):
            raise NotApplicable(
                f"method.levels={self.levels} is not possible with grid.bits={self.grid.bits}"
                f" grid.symmetric={str(self.grid.symmetric).lower()}; its codes have"
                f" bits={(self.levels - 1).bit_length()} and a zero-point"
            )
        if self.repacked and not self.levels:
            raise NotApplicable(
                "method.repacked=true is not possible with method.levels=0; use levels=5 or 3"
            )

    @property
    def format(self) -> Format:
        return Repacked(self.grid, self.levels) if self.repacked else self.grid

    def with_format(self, format: Any) -> Self:
        return self.with_grid(format.grid if isinstance(format, Repacked) else format)

    @property
    def needs_connections(self) -> bool:
        return self.transformation or self.compensated != (0, 0)

    def rounding(self) -> Clipping:
        top = (self.levels or 2**self.grid.bits) - 1
        return Repacking(self.grid, top) if self.repacked else Clipping(self.grid, top)

    def trainer(self, blocks: dict[nn.Module, Block], context: Context) -> ABQTrainer:
        return ABQTrainer(self, blocks, context.inputs)
