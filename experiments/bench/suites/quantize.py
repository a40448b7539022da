"""The suites `quantize` and `quantize-model`: the time for a matrix, and for all linear layers of a model.

The work is `LayerMethod.quantize`: a float32 matrix in, packed codes and stored scales out. Statistics of
calibrated methods are collected before, from random inputs, and are not timed. "(torch)" is the definition in
plain torch; the others run the kernel of the device, where there is one. Weights are Gaussian, with rows and
columns of different scales, unless a model is named.

The floor reads the weight and writes RTN's result once (column scales are left out; they are below 1 %).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from baselines.awq import AWQ
from baselines.gptq import GPTQ, ActOrder
from baselines.hqq import HQQ
from baselines.rtn import RTN
from experiments.bench.case import Case
from experiments.bench.models import Named
from experiments.bench.peers.manager import Peers, title
from experiments.bench.timing import Implementation, clocked
from sinq import SINQ, Grid, HalfQuadratic, Kernel, LayerMethod, SINQRefined, chosen, find_targets, using
from sinq.calibration.statistics import InputStatistic, Statistic

Shape = tuple[int, int]
CPU_SHAPES: tuple[Shape, ...] = ((1024, 4096),)
CUDA_SHAPES: tuple[Shape, ...] = ((5120, 5120), (1024, 5120), (17408, 5120), (5120, 17408))
"""Shapes in Qwen3-14B: query and output, key and value, gate and up, and down projection."""
BASELINE = "RTN (torch)"
TOKENS = 512


@dataclass(frozen=True)
class Entry:
    """A method of ours, the kernel to run it with, and the peer (of `peers/worker.py`) to compare it with."""

    name: str
    method: LayerMethod
    kernel: Kernel = Kernel.auto
    peer: str | None = None


def calibration_free(grid: Grid) -> list[Entry]:
    """Return the methods without calibration, the baseline first; they are also timed on whole models."""
    return [
        Entry(BASELINE, RTN(grid), Kernel.reference),
        Entry("RTN", RTN(grid)),
        Entry("SINQ (torch)", SINQ(grid), Kernel.reference, "sinq"),
        Entry("SINQ", SINQ(grid), peer="sinq"),
        Entry("HQQ", HQQ(grid), peer="hqq"),
    ]


def others(grid: Grid) -> list[Entry]:
    """Return refined and calibrated methods, with the options of `conf/method/`."""
    return [
        Entry("SINQ + HQQ", SINQ(grid, refinement=HalfQuadratic())),
        Entry("SINQ refined", SINQRefined(grid)),
        Entry("GPTQ", GPTQ(RTN(grid), act_order=ActOrder.full)),
        Entry("AWQ", AWQ(RTN(grid)), peer="autoawq"),
        Entry("A-SINQ", AWQ(SINQ(grid), norm=1, weight_term=False, clip=False), peer="asinq"),
    ]


def matrix_case(shape: Shape, grid: Grid, peers: Peers, device: torch.device) -> Case:
    """Return the case of a matrix of a shape (out, in), by every method.

    Raises:
        ValueError: the group size does not divide the shape.
    """
    weight = random_weight(shape, device)
    name = f"{shape[0]}×{shape[1]}, {grid.bits} bits, groups of {grid.group_size}"
    return _case("quantize", name, [weight], [*calibration_free(grid), *others(grid)], peers)


def model_case(model: Named, grid: Grid, peers: Peers, device: torch.device) -> Case:
    """Return the case of all matrices of a model's linear layers but the head.

    Raises:
        ValueError: the group size does not divide a matrix.
    """
    weights = [
        matrix.to(device, torch.float32)
        for target in find_targets(model.dense)
        for matrix in target.matrices().values()
    ]
    name = f"all {len(weights)} linear layers of {model.name}, {grid.bits} bits, groups of {grid.group_size}"
    return _case("quantize-model", name, weights, calibration_free(grid), peers)


def random_weight(shape: Shape, device: torch.device) -> Tensor:
    """Return a float32 matrix (out, in), Gaussian, with row and column scales that differ as in real layers.

    Every call returns the same numbers.
    """
    generator = torch.Generator().manual_seed(0)
    rows, columns = (torch.randn(size, generator=generator).mul(0.3).exp() for size in shape)
    return (0.02 * torch.randn(shape, generator=generator) * rows[:, None] * columns).to(device)


def _case(suite: str, name: str, weights: list[Tensor], entries: Sequence[Entry], peers: Peers) -> Case:
    grid = entries[0].method.grid
    _check(weights, grid)
    nbytes = sum(weight.nbytes + RTN(grid).quantize(weight).nbytes for weight in weights)
    wanted = {entry.peer for entry in entries if entry.peer}
    theirs, absent = peers.contenders(wanted, weights, grid.bits, grid.group_size, nbytes)
    ours = [_contender(entry, weights, nbytes) for entry in entries]
    return Case(suite, name, [*ours, *theirs], BASELINE, absent)


def _check(weights: list[Tensor], grid: Grid) -> None:
    for rows, columns in {(weight.shape[0], weight.shape[1]) for weight in weights}:
        if not grid.fits((rows, columns)):
            sizes = grid.fitting_sizes((rows, columns))
            raise ValueError(
                f"group_size={grid.group_size} does not divide {rows}×{columns}; sizes that fit are {sizes}"
            )


def _contender(entry: Entry, weights: list[Tensor], nbytes: int) -> Implementation:
    device = weights[0].device
    with using(entry.kernel):
        kernel = entry.kernel.value if entry.kernel is Kernel.reference else f"auto: {chosen(device).value}"
    work = clocked(_work(entry, weights), device)
    peer = None if entry.peer is None else title(entry.peer)
    return Implementation(entry.name, work, nbytes, kernel, peer)


def _work(entry: Entry, weights: list[Tensor]) -> Callable[[], object]:
    statistics = [_statistic(entry.method.statistic, weight) for weight in weights]

    def quantize() -> None:
        with using(entry.kernel):
            for weight, statistic in zip(weights, statistics, strict=True):
                entry.method.quantize(weight, statistic)

    return quantize


def _statistic(kind: type[Statistic] | None, weight: Tensor) -> Statistic | None:
    """Return a layer's statistic: of random inputs with channels of different magnitude, or else of noise."""
    if kind is None:
        return None
    if not issubclass(kind, InputStatistic):
        return kind.of_noise((weight.shape[0], weight.shape[1]), weight.device)
    generator, in_features = torch.Generator().manual_seed(1), weight.shape[1]
    inputs = torch.randn(TOKENS, in_features, generator=generator)
    magnitudes = torch.randn(in_features, generator=generator).exp()
    statistic = kind(in_features, weight.device)
    statistic.update(inputs * magnitudes)
    return statistic
