"""Detection of outlier tokens: those with an input of a block's last layer far above the text's median.

    M_t = max_c |x_{t,c}|,    R_t = M_t / median_t(M),    outliers: R_t > η

A few tokens of every text have such massive activations: the first one, whatever it is, and often the first
delimiter. They take the range of any scale that is shared by tokens.
"""

import math
from collections import Counter
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from sinq import Context, collect
from sinq.calibration.sites import Site, SiteKind
from sinq.model.blocks import find_blocks
from sinq.model.targets import linear_places


@dataclass
class Peaks:
    """An observer of a block: ratios of each token's largest input to the median of its window."""

    kind: SiteKind = field(default=SiteKind.inputs, init=False)
    ratios: list[Tensor] = field(default_factory=list, init=False)
    """One (seqlen,) for each window."""

    def update(self, inputs: Tensor, /) -> None:
        """Take the inputs of one window, (1, seqlen, features) or (seqlen, features)."""
        largest = inputs.detach().flatten(0, -2).abs().amax(dim=-1).float()
        self.ratios.append((largest / largest.median()).cpu())


@dataclass(frozen=True)
class Detection:
    """Outlier tokens of a model on some windows."""

    ratios: Tensor
    """R_t, float32 (blocks, windows, seqlen)."""
    tokens: Tensor
    """Ids (windows, seqlen)."""
    threshold: float
    """η."""

    @property
    def outliers(self) -> Tensor:
        """True for outliers, (blocks, windows, seqlen)."""
        return self.ratios > self.threshold

    @property
    def per_block(self) -> list[float]:
        """Mean number of outliers of a window, for each block."""
        return self.outliers.float().sum(2).mean(1).tolist()

    @property
    def largest_ratio(self) -> float:
        """Mean over windows of the largest R_t of any block."""
        return self.ratios.amax(dim=(0, 2)).mean().item()

    @property
    def calm_windows(self) -> float:
        """Share of windows without outliers."""
        return 1 - self.outliers.any(dim=2).any(dim=0).float().mean().item()

    def candidates(self) -> Counter[int]:
        """Count the outliers by token id, in all windows and blocks.

        The first position is not counted: it is an outlier whatever its token.
        """
        _, windows, positions = self.outliers[:, :, 1:].nonzero(as_tuple=True)
        return Counter(self.tokens[windows, positions + 1].tolist())

    def prefix(self, begin: int, rare: float) -> list[int]:
        """Return the ids to put before every text: the most frequent outliers, then `begin`.

        As many as the block with the most outliers has in a mean window. A single candidate that is rarer
        than in a share `rare` of the windows is none.

        Args:
            begin: id of the token that begins texts.
        """
        count, found = math.ceil(max(self.per_block)), self.candidates()
        if len(found) == 1 and found.total() < rare * len(self.tokens):
            return [begin]
        del found[begin]
        return [token for token, _ in found.most_common(count)] + [begin]


def detect(model: nn.Module, tokens: Tensor, threshold: float, context: Context) -> Detection:
    """Run a model on windows of ids (windows, seqlen), and find its outlier tokens."""
    peaks = {name: Peaks() for name in watched_modules(model)}
    sites = {Site(SiteKind.inputs, name): each for name, each in peaks.items()}
    collect(model, sites, tokens, context)
    ratios = torch.stack([torch.stack(each.ratios) for each in peaks.values()])
    return Detection(ratios, tokens.cpu(), threshold)


def watched_modules(model: nn.Module) -> list[str]:
    """Return, for each block, the name of its last linear layer.

    Where that is a parameter of fused experts, whose inputs no hook sees, it is the block itself.
    """
    blocks, names = find_blocks(model), _names(model)
    members = [set(block.modules()) for block in blocks]
    last = {
        index: target
        for target in linear_places(model)
        for index, inside in enumerate(members)
        if target.module in inside
    }
    return [
        last[index].name if index in last and last[index].parameter is None else names[block]
        for index, block in enumerate(blocks)
    ]


def _names(model: nn.Module) -> dict[nn.Module, str]:
    return {module: name for name, module in model.named_modules()}
