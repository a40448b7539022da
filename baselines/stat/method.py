"""STAT (arXiv 2406.00061): heads and neurons that the others can stand in for are removed, without training.

What a removed unit would have said is nearly a linear combination of what the kept ones say, on calibration
text. The combination is found by an interpolative decomposition and folded into the next matrix, so the
output of each block is nearly the same, and all matrices are plain, smaller ones:

    Z ≈ Z[:, I] T            Z: what enters `down`, or the output matrix of attention
    W' = W Tᵀ                the matrix that reads Z, for the kept columns I

    method=stat                              target=0.8: four fifths of the MACs stay
    method=stat method@method.then=sinq      and the rest is quantized

`ranking.py` orders the units of a block, `budget.py` decides how many each block keeps, `sketch.py` makes the
tall matrix of activations small. Activations are those of the dense model, position 0 with its massive ones
included. MACs are those of all matrices in the blocks, and of attention over `context` tokens; embeddings and
output head are not counted.

Choices that the paper and its released code leave open: all decompositions are in float64; one sketch of the
heads' outputs serves both stages; where the kept columns depend on each other, a pseudo-inverse solves; with
grouped-query attention, kv heads go with all their query heads. Text of the kind that is evaluated flatters
the result: take another one to compare with methods that see none.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from baselines.stat.budget import HEAD_GROWTH, Allocation, Budget, Depth, Limits, Scores, allocate
from baselines.stat.cutting import cut_heads, cut_neurons
from baselines.stat.ranking import Correction, Ranking, Selection, other_order, rank_heads, rank_neurons
from baselines.stat.sketch import Sketch, SketchKind
from sinq import Calibration, Context, Decision, Method, NotApplicable
from sinq.calibration.collect import watching
from sinq.common.errors import PASS_CALIBRATION
from sinq.common.options import SEED, check, number, whole
from sinq.common.timing import Clock
from sinq.methods.slicing import Removed, Slicing
from sinq.model.units import Units, macs_per_token, matrix_of
from sinq.model.walk import walk

LARGE = 10.0
"""Entry of T from which the kept columns are nearly dependent, and the row counts the layer."""


@dataclass(frozen=True)
class STAT(Slicing):
    """Heads and neurons removed by interpolative decompositions, then `then`.

    Raises:
        NotApplicable: the units of the model are not known, the target leaves a block without heads or
            neurons, or the text has fewer tokens than a matrix has columns.
    """

    name: ClassVar[str] = "stat"

    then: Method
    target: float = 0.8
    """Share of the MACs that stays."""
    context: int | None = None
    """Tokens that a token attends to, for MACs; None: those of a calibration window; 0: matrices alone."""
    selection: Selection = Selection.pivots
    correction: Correction = Correction.interpolation
    allocation: Allocation = Allocation.threshold
    depth: Depth = Depth.fitted
    whole_heads: bool = True
    """Try only whole numbers of heads per block, on average."""
    chunk: int = 1
    weigh_columns: bool = True
    """Multiply neurons by the norms of their columns of `down` before they are ranked."""
    sketch: SketchKind = SketchKind.gaussian
    sketch_rows: int | None = None
    """Rows of a sketch; None: four for each column, at least 4096. A shorter text is kept whole."""
    heads_after_neurons: bool = False
    """Rank heads again behind blocks whose neurons are removed (the released code for BERT)."""
    seed: int = 0

    def __post_init__(self) -> None:
        check(
            self,
            "method",
            target=number(above=0, most=1),
            context=whole(0),
            chunk=whole(1),
            sketch_rows=whole(1),
            seed=SEED,
        )

    @property
    def needs_calibration(self) -> bool:
        return True

    def require_possible(self, units: Sequence[Units], calibration: Calibration | None) -> None:
        if calibration is None:
            raise NotApplicable(f"STAT ranks heads and neurons on calibration text; {PASS_CALIBRATION}")
        widest, tokens = max(max(_columns(each)) for each in units), calibration.tokens.numel()
        if tokens < widest:
            raise NotApplicable(
                f"the calibration text has {tokens} tokens, and a matrix has {widest} columns, which fewer"
                " tokens cannot tell apart; use more windows (calibration.samples)"
            )
        if len({_macs(each, 0) for each in units}) > 1:
            raise NotApplicable("heads or neurons of some blocks have other sizes; STAT compares equal ones")

    def remove(
        self,
        model: nn.Module,
        units: Sequence[Units],
        calibration: Calibration | None,
        context: Context,
        clock: Clock,
    ) -> Removed:
        assert calibration is not None  # require_possible
        tokens = calibration.tokens
        attended = tokens.shape[1] if self.context is None else self.context
        before = sum(macs_per_token(each, attended) for each in units)
        ranked = list(self._ranked(model, units, tokens, context, clock))
        budget = self._budget(units, ranked, attended)
        cut = self.correction
        largest = [
            cut_neurons(model, each, neurons, kept, cut)
            for each, (_, neurons), kept in zip(units, ranked, budget.neurons, strict=True)
        ]
        if self.heads_after_neurons:
            ranked = list(self._ranked(model, units, tokens, context, clock))
        largest += [
            cut_heads(model, each, heads, kept, cut)
            for each, (heads, _), kept in zip(units, ranked, budget.heads, strict=True)
        ]
        after = sum(macs_per_token(each, attended) for each in units)
        decisions = (
            Decision("mac_ratio", round(after / before, 6), chosen=True),
            Decision("heads", sum(budget.heads), chosen=True),
            Decision("neurons", sum(budget.neurons), chosen=True),
            *(Decision("large_correction", each) for each in largest if each > LARGE),
        )
        return Removed(decisions)

    def _ranked(
        self, model: nn.Module, units: Sequence[Units], tokens: Tensor, context: Context, clock: Clock
    ) -> Iterator[tuple[Ranking, Ranking]]:
        """Yield the rankings of the heads and neurons of each block, in a walk through the present model."""
        generator = torch.Generator().manual_seed(self.seed)
        blocks = zip(walk(model, tokens, context, clock=clock), units, strict=True)
        for view, each in context.progress(blocks, "ranking heads and neurons", len(units)):
            names = (each.names.output, each.names.down)
            sketches = [self._sketches(each, name, tokens, generator) for name in names]
            pairs = [
                (each.layer(name), sketch)
                for name, both in zip(names, sketches, strict=True)
                for sketch in both
            ]
            with watching(pairs):
                view.advance()
            (heads, *all_heads), (neurons, *all_neurons) = (
                [sketch.matrix() for sketch in both] for both in sketches
            )
            orders = other_order(each, self.selection, generator)
            yield (
                rank_heads(each, heads, next(iter(all_heads), None), orders[0]),
                rank_neurons(each, neurons, next(iter(all_neurons), None), orders[1], self.weigh_columns),
            )

    def _sketches(self, units: Units, name: str, tokens: Tensor, generator: torch.Generator) -> list[Sketch]:
        """Return the sketch of a layer's inputs, and with a refit one that keeps all tokens."""
        windows, seqlen = tokens.shape
        rows = self.sketch_rows or max(4 * matrix_of(units.layer(name)).shape[1], 4096)
        kinds = [self.sketch] + [SketchKind.none] * (self.correction is Correction.refit)
        layer = f"{units.name}.{name}"
        return [Sketch(layer, kind, rows, seqlen, windows, generator) for kind in kinds]

    def _budget(
        self, units: Sequence[Units], ranked: Sequence[tuple[Ranking, Ranking]], attended: int
    ) -> Budget:
        heads, neurons = (
            Scores(tuple(each.scores for each in kind), tuple(each.errors for each in kind))
            for kind in zip(*ranked, strict=True)
        )
        head, neuron = _macs(units[0], attended)
        limits = Limits(head, neuron, self.target, self.chunk, self.whole_heads)
        return allocate(
            heads.weighted(self.depth, HEAD_GROWTH), neurons.weighted(self.depth), limits, self.allocation
        )


def _columns(units: Units) -> tuple[int, int]:
    """Return the numbers of columns of the output matrix and of `down`."""
    names = units.names
    return matrix_of(units.layer(names.output)).shape[1], matrix_of(units.layer(names.down)).shape[1]


def _macs(units: Units, attended: int) -> tuple[float, float]:
    """Return the MACs per token of one head, with its keys and values, and of one neuron."""
    names, counts = units.names, units.counts
    neurons = sum(units.layer(name).weight.numel() for name in (*names.up, names.down))
    return (macs_per_token(units, attended) - neurons) / counts.kv_heads, neurons / counts.neurons
