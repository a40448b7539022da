"""Scores and masks of a model's heads and neurons while its adapters are trained.

A group of heads is a kv head with all its query heads: rows of q, k and v, and columns of o. A neuron is a
row of gate and up, and a column of down. A group's score is the sum over its matrices of its share in each,
and a moving average over steps. In every prunable block the groups of lowest score are masked, as many as
the schedule says; one that is masked stays so.

A mask multiplies what enters o, or down. There a removed group has its only effect on the rest of the model,
so this is the same function, with the same gradients, as masking the outputs of q, k, v, gate and up.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from baselines.loraprune.importance import (
    Criterion,
    Power,
    element_importance,
    product_share,
    shared_out,
)
from baselines.loraprune.schedule import Sparsity
from sinq.model.units import Units, shape_of
from sinq.training.lora import LoRALinear


@dataclass(frozen=True)
class Span:
    """Rows or columns of a matrix that belong to the groups, equally many to each, in order."""

    layer: str
    """Full name of the layer."""
    rows: bool
    start: int
    stop: int

    def of(self, importance: Tensor) -> Tensor:
        """Return the importance of each row or column, from that of the elements (out, in)."""
        return importance.sum(int(self.rows))[self.start : self.stop]


@dataclass(frozen=True)
class Groups:
    """The heads, or the neurons, of a block."""

    name: str
    count: int
    spans: tuple[Span, ...]
    reader: str
    """Full name of the layer whose inputs are masked."""
    width: int
    """Columns of the reader for each group."""
    chunk: int = 1
    """Number of groups by which a block may become smaller."""

    def removed(self, sparsity: float) -> int:
        """Return how many groups a block loses at a sparsity."""
        return int(sparsity * self.count) // self.chunk * self.chunk


def groups_of(units: Units, chunk: int) -> tuple[Groups, Groups]:
    """Return the groups of heads and the neurons of a block, by its layers as they are now."""
    names, counts = units.names, units.counts
    full = {name: f"{units.name}.{name}" for name in units.matrices}
    width = units.head_width * counts.heads // counts.kv_heads
    queries, keys = counts.heads * units.head_width, counts.kv_heads * units.head_width
    if units.fused:
        (fused,) = names.inputs
        inputs = [Span(full[fused], True, k * queries, (k + 1) * queries) for k in range(3)]
    else:
        sizes = zip(names.inputs, (queries, keys, keys), strict=True)
        inputs = [Span(full[name], True, 0, size) for name, size in sizes]
    output, down = full[names.output], full[names.down]
    heads = (*inputs, Span(output, False, 0, queries))
    neurons = [Span(full[up], True, 0, shape_of(units.layer(up))[0]) for up in names.up]
    neurons.append(Span(down, False, 0, counts.neurons))
    return (
        Groups(f"{units.name}.heads", counts.kv_heads, heads, output, width),
        Groups(f"{units.name}.neurons", counts.neurons, tuple(neurons), down, 1, chunk),
    )


class Pruner:
    """A companion of the training, which scores and masks groups between gradients and updates."""

    def __init__(
        self,
        groups: Sequence[Groups],
        adapters: Mapping[str, LoRALinear],
        sparsity: Sparsity,
        steps: int,
        criterion: Criterion = Criterion.lora,
        power: Power = Power.absolute,
        eta: float = 1.0,
        decay: float = 0.9,
    ) -> None:
        self.groups, self._adapters, self._sparsity, self._steps = groups, adapters, sparsity, steps
        self._criterion, self._power, self._eta, self._decay = criterion, power, eta, decay
        device = next(iter(adapters.values())).a.device
        self.scores = {each.name: torch.zeros(each.count, device=device) for each in groups}
        self.masks = {each.name: torch.ones(each.count, device=device) for each in groups}
        self.product_share = torch.zeros(steps)
        """Mean over layers of ‖gB·gA‖ / ‖gB·A‖, of each step."""

    @torch.no_grad()
    def before_update(self, step: int) -> None:
        if self._sparsity.ratio:
            self._score(step)
        if (sparsity := self._sparsity.update(step, self._steps)) is not None:
            for each in self.groups:
                self._mask(each, each.removed(sparsity))

    def state(self) -> dict[str, Tensor]:
        named = {f"score/{name}": score for name, score in self.scores.items()}
        named |= {f"mask/{name}": mask for name, mask in self.masks.items()}
        return named | {"product_share": self.product_share}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        self.product_share = state["product_share"].clone()
        for each in self.groups:
            device = self.scores[each.name].device
            self.scores[each.name] = state[f"score/{each.name}"].to(device)
            self._put(each, state[f"mask/{each.name}"].to(device))

    def kept(self, groups: Groups) -> Tensor:
        """Return the indices of the groups that are not masked."""
        return self.masks[groups.name].nonzero().flatten()

    def _score(self, step: int) -> None:
        """Take the importance of all groups in this step into the moving average, one layer at a time."""
        found = {each.name: torch.zeros_like(self.scores[each.name]) for each in self.groups}
        shares = []
        for name, spans in self._by_layer().items():
            adapter = self._adapters[name]
            importance = element_importance(adapter, self._criterion, self._power, self._eta)
            for each, span in spans:
                found[each.name] += shared_out(span.of(importance), each.count)
            if adapter.a.grad is not None and adapter.b.grad is not None:
                shares.append(product_share(adapter.a, adapter.a.grad, adapter.b.grad))
        self.product_share[step] = sum(shares) / max(1, len(shares))
        for name, score in found.items():
            self.scores[name] = self._decay * self.scores[name] + (1 - self._decay) * score

    def _by_layer(self) -> dict[str, list[tuple[Groups, Span]]]:
        spans: dict[str, list[tuple[Groups, Span]]] = {}
        for each, span in self._spans():
            spans.setdefault(span.layer, []).append((each, span))
        return spans

    def _spans(self) -> Iterator[tuple[Groups, Span]]:
        return ((each, span) for each in self.groups for span in each.spans)

    def _mask(self, groups: Groups, removed: int) -> None:
        """Mask the groups of lowest score; masked ones come first, so that they stay masked."""
        masked = self.masks[groups.name] == 0
        order = self.scores[groups.name].masked_fill(masked, -1.0).argsort(stable=True)
        mask = torch.ones_like(self.scores[groups.name])
        mask[order[:removed]] = 0
        self._put(groups, mask)

    def _put(self, groups: Groups, mask: Tensor) -> None:
        self.masks[groups.name] = mask
        self._adapters[groups.reader].input_mask = mask.repeat_interleave(groups.width)
