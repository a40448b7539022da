"""Methods that make matrices smaller, and what follows them: a pipeline of methods, in order, as one value.

    STAT(then=SINQ())       remove heads and neurons, then compress the smaller matrices

The second method sees an ordinary, smaller model, and there is one report: a part for each matrix, with the
dense model's parameters and those that are left.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from sinq.calibration.data import Calibration
from sinq.common.errors import NotApplicable
from sinq.common.timing import Clock, timed
from sinq.methods.base import Method
from sinq.methods.plan import require_usable_weights
from sinq.methods.report import CompressionReport, Decision, PartReport
from sinq.methods.wrapper import let_refuse
from sinq.model.context import Context
from sinq.model.edits import architecture, edit, edits
from sinq.model.slicing import SliceBlock
from sinq.model.targets import select
from sinq.model.units import Units, find_units, matrix_of
from sinq.training.log import TrainingLog


@dataclass(frozen=True)
class Removed:
    """Results of a method besides the sliced blocks."""

    decisions: tuple[Decision, ...]
    """Decisions for the whole model."""
    training: TrainingLog | None = None
    """Steps of a method that trains."""


class Slicing(Method):
    """A method that removes heads and neurons of all blocks; `then` compresses what is left.

    Subclasses are dataclasses with a field `then`. `layers.exclude` concerns `then` alone.
    """

    then: Method
    chunk: int
    """Number of neurons of a block that stay or go together, so that a group size fits what is left."""

    @abstractmethod
    def remove(
        self,
        model: nn.Module,
        units: Sequence[Units],
        calibration: Calibration | None,
        context: Context,
        clock: Clock,
    ) -> Removed:
        """Slice the blocks of a model, in place.

        Args:
            clock: receives the time of running the model.
        """

    def require_possible(self, units: Sequence[Units], calibration: Calibration | None) -> None:
        """Raise `NotApplicable` for options that these units, or this text, do not allow."""

    @property
    def format(self) -> Any:
        """Storage of the weights, for labels; None where they have no one format."""
        return getattr(self.then, "format", None)

    @property
    def label(self) -> str:
        name = type(self).__name__
        return f"{name}, then {self.then.label}" if self.then.changes_model else name

    @property
    def changes_shapes(self) -> bool:
        return True

    @property
    def compresses_layers(self) -> bool:
        return self.then.compresses_layers

    def compress(
        self,
        model: nn.Module,
        calibration: Calibration | None = None,
        context: Context = Context(),
    ) -> CompressionReport:
        self.check_given(model, calibration)
        select(model, context.layers)  # refuses a model that is compressed already
        units = find_units(model)
        require_usable_weights(model)
        self.require_possible(units, calibration)
        self._require_chunks(units)
        self._let_next_refuse(model, units, calibration, context)
        self.check_running(model, calibration)
        before, clock = _sizes(units), Clock()
        with torch.no_grad(), timed(context.device_for(model)) as whole:
            removed = self.remove(model, units, calibration, context, clock)
        parts = _parts(before, _sizes(units), whole.seconds)
        report = self.then.compress(model, calibration, context)
        summary = PartReport("slicing", "slicing", 0, 0, 0, None, 0.0, removed.decisions)
        return replace(
            report,
            parts=(*_joined(parts, report.parts), summary),
            seconds_statistics=report.seconds_statistics + clock.seconds,
            seconds_quantize=report.seconds_quantize + whole.seconds - clock.seconds,
            training=removed.training,
            method=self.label,
        )

    def _require_chunks(self, units: Sequence[Units]) -> None:
        """Raise `NotApplicable` if the neurons of a block are no whole number of chunks."""
        for each in units:
            if each.counts.neurons % self.chunk:
                raise NotApplicable(
                    f"method.chunk={self.chunk} does not divide the {each.counts.neurons} neurons of a block"
                )

    def _let_next_refuse(
        self,
        model: Any,
        units: Sequence[Units],
        calibration: Calibration | None,
        context: Context,
    ) -> None:
        """Let `then` refuse a model whose blocks have one group of heads and one chunk of neurons.

        What fits these sizes fits all multiples of them.
        """
        with torch.device("meta"):
            small = architecture(model.config, model.dtype, edits(model))
            for each in units:
                counts = each.counts
                edit(small, SliceBlock(each.name, counts.heads // counts.kv_heads, 1, self.chunk))
        try:
            let_refuse(self.then, small, calibration, context)
        except NotApplicable as error:
            raise NotApplicable(
                f"{self.then.label} must be possible with one head of keys and values, and with"
                f" method.chunk={self.chunk} neurons, of which blocks keep multiples: {error}"
            ) from error


@dataclass(frozen=True)
class _Size:
    """Shape (out, in) and bytes of a matrix."""

    shape: tuple[int, int]
    nbytes: int

    @property
    def numel(self) -> int:
        return self.shape[0] * self.shape[1]


def _sizes(units: Sequence[Units]) -> dict[str, _Size]:
    """Return name → size of all matrices that have units."""
    found = {}
    for each in units:
        for name in each.matrices:
            matrix = matrix_of(each.layer(name))
            found[f"{each.name}.{name}"] = _Size((matrix.shape[0], matrix.shape[1]), matrix.nbytes)
    return found


def _parts(before: Mapping[str, _Size], after: Mapping[str, _Size], seconds: float) -> dict[str, PartReport]:
    """Return the report of each matrix; the time is shared out by the dense parameters."""
    total = sum(size.numel for size in before.values())
    return {
        name: PartReport(
            kind="weight",
            name=name,
            dense_parameters=dense.numel,
            parameters=after[name].numel,
            nbytes=after[name].nbytes,
            relative_error=None,
            seconds=seconds * dense.numel / total,
            shape=after[name].shape,
        )
        for name, dense in before.items()
    }


def _joined(sliced: Mapping[str, PartReport], compressed: Sequence[PartReport]) -> tuple[PartReport, ...]:
    """Return one part for each matrix: as it was compressed, if it was, against the dense model."""
    rest = dict(sliced)
    joined = [_both(rest.pop(part.name, None), part) for part in compressed]
    return (*joined, *rest.values())


def _both(sliced: PartReport | None, compressed: PartReport) -> PartReport:
    """Return a compressed part with the size and the time of its slicing, if it was sliced."""
    if sliced is None:
        return compressed
    seconds = compressed.seconds + sliced.seconds
    return replace(compressed, dense_parameters=sliced.dense_parameters, seconds=seconds)
