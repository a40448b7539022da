"""Numbers of heads and neurons of each block, for a target of multiply-accumulates (MACs).

Units of all blocks are compared by scores, and those above a threshold stay, so each block gets the number it
needs. A block's scores fall in the order in which its units are kept:

- neuron j: |R_jj|, the part of it that the neurons before it do not explain, as large as behind `down`;
- head b: the error of the attention's output if only the b heads before it stay.

Blocks differ in the size of their scores and in what follows them, so scores are weighted by depth
(`Depth`). Many pairs of numbers of heads and of neurons meet a target; taken is the one where the largest
score of a removed head is nearest to twice the mean over blocks of ‖R22‖, the neurons' error. Both are
weighted here; the released code for OPT compares weighted scores of heads with unweighted errors of neurons,
in another unit.

Each block keeps a head and a chunk of neurons, whatever their scores.
"""

import enum
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import floor

import torch
from torch import Tensor

from sinq import NotApplicable

HEAD_GROWTH = 1.125
"""Ratio between the weights of one head of a block and the next, with `Depth.fitted`."""
BALANCE = 2.0
"""Weight of the neurons' error against the heads' threshold."""
TINY = 1e-30


class Depth(enum.Enum):
    """Weights of scores by block."""

    fitted = "fitted"
    """1 / the largest score of a block, as a line fits its logarithm over the blocks; a head counts 1.125
    times as much as the next (the released code for OPT)."""
    linear = "linear"
    """√(blocks from here to the end + 1) + 1 (the released code for BERT)."""
    none = "none"


class Allocation(enum.Enum):
    """Distribution of the kept units over blocks."""

    threshold = "threshold"
    """Units of all blocks above one score."""
    uniform = "uniform"
    """Equally many in each block."""


@dataclass(frozen=True, eq=False)
class Scores:
    """Scores of one kind of units, block by block."""

    values: tuple[Tensor, ...]
    """(units,), falling."""
    errors: tuple[Tensor, ...]
    """Error of the output for each number of kept units, 0 to all, (units + 1,)."""

    def weighted(self, depth: Depth, growth: float = 1.0) -> "Scores":
        """Return scores and errors weighted by depth.

        Args:
            growth: ratio between the weights of a unit and the next, with `Depth.fitted`.
        """
        weights = _weights([float(values[0]) for values in self.values], depth)
        base = growth if depth is Depth.fitted else 1.0
        values = tuple(
            weight * each * base ** torch.arange(len(each), 0, -1, dtype=each.dtype)
            for weight, each in zip(weights, self.values, strict=True)
        )
        errors = tuple(weight * each for weight, each in zip(weights, self.errors, strict=True))
        return Scores(values, errors)

    @property
    def total(self) -> int:
        return sum(map(len, self.values))


@dataclass(frozen=True)
class Limits:
    """The target and the steps in which it is met."""

    head: float
    """MACs per token of one head."""
    neuron: float
    """MACs per token of one neuron."""
    target: float
    """Share of the MACs of all heads and neurons that stays."""
    chunk: int = 1
    """Number of neurons of a block that stay or go together."""
    whole_heads: bool = True
    """Try only whole numbers of heads per block, on average."""


@dataclass(frozen=True)
class Budget:
    """Numbers of units that each block keeps."""

    heads: tuple[int, ...]
    neurons: tuple[int, ...]


def allocate(heads: Scores, neurons: Scores, limits: Limits, allocation: Allocation) -> Budget:
    """Return the numbers of heads and neurons that meet a target and balance the errors best.

    Args:
        heads, neurons: weighted scores.

    Raises:
        NotApplicable: no numbers meet the target.
    """
    even = allocation is Allocation.uniform
    count = _uniform if even else _above_threshold
    found: list[tuple[float, Budget]] = []
    for number, chunks in _totals(heads, neurons, limits, even):
        budget = Budget(
            count(heads.values, number, 1),
            tuple(limits.chunk * each for each in count(neurons.values, chunks, limits.chunk)),
        )
        found.append((_imbalance(heads, neurons, budget), budget))
    if not found:
        raise NotApplicable(
            f"method.target={limits.target:g} cannot be met by some of {heads.total} heads and"
            f" {neurons.total} neurons in {len(heads.values)} blocks, each of which keeps a head and"
            f" {limits.chunk} neurons;"
            " use a target nearer to 1, method.whole_heads=false, or a smaller method.chunk"
        )
    return min(found, key=lambda each: each[0])[1]


def _totals(heads: Scores, neurons: Scores, limits: Limits, even: bool) -> Iterator[tuple[int, int]]:
    """Yield total numbers of heads and of chunks of neurons that meet the target.

    Args:
        even: yield only multiples of the number of blocks.
    """
    blocks = len(heads.values)
    budget = limits.target * (limits.head * heads.total + limits.neuron * neurons.total)
    step = blocks if (even or limits.whole_heads) and heads.total % blocks == 0 else 1
    once = blocks if even else 1
    least = max(blocks, floor(limits.target * heads.total / step) * step)
    for number in range(least, heads.total + 1, step):
        chunks = once * round((budget - limits.head * number) / limits.neuron / limits.chunk / once)
        if blocks <= chunks <= neurons.total // limits.chunk:
            yield number, chunks


def _above_threshold(values: Sequence[Tensor], total: int, chunk: int) -> tuple[int, ...]:
    """Return how many chunks of each block are among the `total` with the largest scores of all blocks.

    A chunk has the score of its first unit, and the first chunk of each block stays.
    """
    later = [each[::chunk][1:] for each in values]
    owners = torch.cat([torch.full((len(each),), block) for block, each in enumerate(later)])
    best = torch.cat(later).argsort(descending=True, stable=True)[: total - len(values)]
    kept = torch.bincount(owners[best], minlength=len(values)) + 1
    return tuple(int(each) for each in kept)


def _uniform(values: Sequence[Tensor], total: int, chunk: int) -> tuple[int, ...]:
    each, more = divmod(total, len(values))
    return tuple(each + (block < more) for block in range(len(values)))


def _imbalance(heads: Scores, neurons: Scores, budget: Budget) -> float:
    """Return |largest score of a removed head − 2 · mean ‖R22‖|."""
    removed = [
        float(values[kept])
        for values, kept in zip(heads.values, budget.heads, strict=True)
        if kept < len(values)
    ]
    errors = [float(errors[kept]) for errors, kept in zip(neurons.errors, budget.neurons, strict=True)]
    return abs(max(removed, default=0.0) - BALANCE * sum(errors) / len(errors))


def _weights(largest: Sequence[float], depth: Depth) -> list[float]:
    """Return the weight of each block, given the largest score of each."""
    blocks = len(largest)
    if depth is Depth.none:
        return [1.0] * blocks
    if depth is Depth.linear:
        return [(blocks - block + 1) ** 0.5 + 1 for block in range(blocks)]
    logs = torch.tensor(largest, dtype=torch.float64).clamp(min=TINY).log()
    line = torch.stack(
        [torch.arange(blocks, dtype=torch.float64), torch.ones(blocks, dtype=torch.float64)], 1
    )
    fit = line @ (torch.linalg.pinv(line) @ logs)
    return [float(each) for each in (-fit).exp()]
