"""Search of static scales of activations: the share of the range that is best for a block's output.

A static scale that reaches the largest value it has ever seen wastes most codes on few values. PrefixQuant
(arXiv 2410.05265) tries shares of the range, and keeps the one with which the block's output is nearest to
that of unrounded inputs: first 0.25 to 0.95 in 8 steps and the whole range, then 10 steps around the best.
Layers of a block are searched one after the other, each with the scales found before it.
"""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from sinq.common.timing import Clock
from sinq.model.activations import ActivationQuantizer
from sinq.model.context import Context
from sinq.model.walk import BlockView, walk

COARSE = (*torch.linspace(0.25, 0.95, 8).tolist(), 1.0)
FINE = torch.linspace(-0.05, 0.05, 10).tolist()


@torch.no_grad()
def search_scales(
    model: nn.Module,
    static: Collection[ActivationQuantizer],
    tokens: Tensor,
    context: Context,
    clock: Clock,
) -> None:
    """Narrow static scales of a model's activation quantizers, block by block.

    Args:
        tokens: ids (windows, seqlen) to search on; each block gets inputs from rounded blocks before it.
        clock: the time of running the model is added to it.
    """
    for block in walk(model, tokens, context, clock=clock):
        inside = [part for part in block.module.modules() if part in static]
        search_block(block, [part for part in inside if isinstance(part, ActivationQuantizer)], len(tokens))


@torch.no_grad()
def search_block(block: BlockView, static: Sequence[ActivationQuantizer], windows: int) -> None:
    """Narrow the static scales of a block's quantizers, one after the other, on its first windows."""
    with _unrounded(static):
        targets = _outputs(block, windows)
    for quantizer in static:
        _search(quantizer, block, targets)


def _search(quantizer: ActivationQuantizer, block: BlockView, targets: Sequence[Tensor]) -> None:
    """Set a quantizer's scale to the best share of what it is."""
    whole = quantizer.get_buffer("scale").clone()

    def error(share: float) -> float:
        quantizer.get_buffer("scale").copy_(whole * share)
        pairs = zip(_outputs(block, len(targets)), targets, strict=True)
        return sum((found - target).float().square().sum().item() for found, target in pairs)

    coarse = min(COARSE, key=error)
    best = min({coarse, *(coarse + step for step in FINE if 0 < coarse + step <= 1)}, key=error)
    quantizer.get_buffer("scale").copy_(whole * best)


def _outputs(block: BlockView, windows: int) -> list[Tensor]:
    return [block.run(block.inputs[window], window) for window in range(windows)]


@contextmanager
def _unrounded(quantizers: Sequence[ActivationQuantizer]) -> Iterator[None]:
    """Let inputs pass as they are within the context."""
    for quantizer in quantizers:
        quantizer.rounds = False
    try:
        yield
    finally:
        for quantizer in quantizers:
            quantizer.rounds = True
