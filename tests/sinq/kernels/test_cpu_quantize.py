"""The Numba kernels against their definitions, on the same inputs."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numba import njit
from torch import Tensor

from sinq import SINQ, Grid, Kernel, Levels, Sinkhorn, chosen, using
from sinq.algorithms.sinkhorn import sinkhorn_scales as definition
from sinq.formats.grid import BITS
from sinq.formats.packing import unpack
from sinq.formats.rounding import divide
from sinq.kernels import round_scaled, sinkhorn_scales
from sinq.kernels.cpu.column_sums import column_sums

TILES = [
    ((64, 64), (64, 64)),
    ((96, 128), (96, 64)),
    ((128, 192), (64, 64)),
    ((33, 24), (33, 12)),
    ((1, 16), (1, 8)),
    ((7, 20), (7, 10)),
]


def uneven(rows: int, columns: int, seed: int = 0, spread: float = 0.4) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    row, column = torch.randn(rows, 1, generator=generator), torch.randn(1, columns, generator=generator)
    return 0.02 * torch.randn(rows, columns, generator=generator) * (spread * (row + column)).exp()


def same_scales(weight: Tensor, tile: tuple[int, int], options: Sinkhorn, tolerance: float = 1e-5) -> None:
    for ours, theirs in zip(
        sinkhorn_scales(weight, tile, options), definition(weight, tile, options), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=0)


@pytest.mark.parametrize(("shape", "tile"), TILES)
@pytest.mark.parametrize("early_stop", [True, False])
@pytest.mark.parametrize("relative_floors", [True, False])
def test_scales_are_those_of_the_definition(
    shape: tuple[int, int], tile: tuple[int, int], early_stop: bool, relative_floors: bool
) -> None:
    options = Sinkhorn(early_stop=early_stop, relative_floors=relative_floors)
    for seed in range(5):
        same_scales(uneven(*shape, seed=seed), tile, options)


@given(
    st.integers(1, 40),
    st.integers(1, 4),
    st.integers(2, 20),
    st.integers(0, 2**31),
    st.floats(0, 2),
    st.floats(-4, 4),
)
@settings(max_examples=60, deadline=None)
def test_without_the_early_stop_scales_agree_whatever_the_matrix(
    rows: int, groups: int, width: int, seed: int, spread: float, log_size: float
) -> None:
    """The stop turns on a comparison: where two scores are equal to the last digits either answer is right.

    And in the std of two numbers that are almost equal there are few right digits to compare.
    """
    weight = uneven(rows, groups * width, seed, spread) * 10**log_size
    same_scales(weight, (rows, width), Sinkhorn(iterations=1), 1e-5)
    assume(_imbalance(weight, torch.ones(rows, groups), torch.ones(1, groups * width)).max() < 100)
    options = Sinkhorn(early_stop=False)
    ours, theirs = (scales(weight, (rows, width), options) for scales in (sinkhorn_scales, definition))
    torch.testing.assert_close(_imbalance(weight, *ours), _imbalance(weight, *theirs), rtol=1e-3, atol=0)


def _imbalance(weight: Tensor, row: Tensor, col: Tensor) -> Tensor:
    groups = divide(weight, row, col).double().reshape(len(weight), row.shape[1], -1)
    stds = [
        torch.cat([part.std(1), part.std(0)]) if len(part) > 1 else part.std(1) for part in groups.unbind(1)
    ]
    return torch.stack([s.max() / s.min() for s in stds])


@pytest.mark.parametrize("offset", [1.0, -50.0])
def test_a_large_common_offset_costs_no_digits(offset: float) -> None:
    weight = uneven(512, 128, spread=0.1)
    same_scales(weight + offset * weight.std(), (512, 64), Sinkhorn())


def test_rows_and_columns_of_zeros() -> None:
    weight = uneven(64, 128)
    weight[3], weight[:, 70], weight[10:20, :64] = 0, 0, 0
    same_scales(weight, (64, 64), Sinkhorn())
    assert all(scale.isfinite().all() for scale in sinkhorn_scales(torch.zeros(8, 8), (8, 8)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_float_type_and_any_strides(dtype: torch.dtype) -> None:
    weight = uneven(64, 128).to(dtype)
    same_scales(weight, (64, 64), Sinkhorn())
    same_scales(weight.T, (128, 64), Sinkhorn())


@given(
    st.sampled_from(BITS),
    st.integers(1, 19),
    st.integers(1, 4),
    st.integers(2, 21),
    st.booleans(),
    st.sampled_from([8, 16]),
    st.integers(0, 999),
)
@settings(max_examples=80, deadline=None)
def test_rounding_is_the_definitions(
    bits: int, rows: int, groups: int, size: int, scaled: bool, auxiliary_bits: int, seed: int
) -> None:
    weight = uneven(rows, groups * size, seed)
    weight[0, :size] = 0
    weight[-1, -size:] = 3.0
    grid = Grid(bits, size, auxiliary_bits=auxiliary_bits)
    row, col = definition(weight, (rows, size)) if scaled else (None, None)
    ours, theirs = round_scaled(weight, row, col, grid), round_scaled.definition(weight, row, col, grid)
    assert torch.equal(unpack(ours[0], bits, weight.shape), unpack(theirs[0], bits, weight.shape))
    assert torch.equal(ours[0], theirs[0])
    assert torch.equal(ours[1], theirs[1])
    assert torch.equal(ours[2], theirs[2])


@pytest.mark.parametrize(
    "grid",
    [
        Grid(4, 64, range_floor=1e-1),
        Grid(4, 64, tiling=2),
        Grid(8, 32),
        Grid(4, 64, symmetric=True),
        Grid(4, 64, levels=Levels.nf4),
    ],
)
def test_sinq_is_the_same_with_either_kernel(grid: Grid) -> None:
    weight = uneven(192, 128)
    fast = SINQ(grid).quantize(weight)
    with using(Kernel.reference):
        slow = SINQ(grid).quantize(weight)
    assert (fast.codes() != slow.codes()).float().mean() < 1e-3  # ties
    assert torch.linalg.norm(fast.dequantize() - slow.dequantize()) < 1e-2 * torch.linalg.norm(
        weight - slow.dequantize()
    )


def test_auto_is_the_fast_kernel_and_another_can_be_asked_for() -> None:
    cpu = torch.device("cpu")
    assert chosen(cpu) is Kernel.cpu
    with using(Kernel.reference):
        assert chosen(cpu) is Kernel.reference
    assert chosen(cpu) is Kernel.cpu


def test_a_kernel_that_cannot_run_is_refused() -> None:
    with (
        using(Kernel.cpu),
        pytest.raises(ValueError, match="kernel=cpu cannot run on cuda here; possible are auto, reference"),
    ):
        chosen(torch.device("cuda"))


def test_threads_change_nothing() -> None:
    weight, threads = uneven(256, 512), torch.get_num_threads()
    results = []
    for number in (1, 2):
        torch.set_num_threads(number)
        results.append(SINQ().quantize(weight).tensors)
    torch.set_num_threads(threads)
    assert all(torch.equal(results[0][key], results[1][key]) for key in results[0])


@njit
def of_columns(entries, factors, means, sums, squares):  # type: ignore[no-untyped-def]
    rows, width = entries.shape
    column_sums(
        entries.ctypes.data, 4 * width, rows, factors.ctypes.data, means.ctypes.data, sums.ctypes.data,
        squares.ctypes.data, width // 16,
    )  # fmt: skip


@pytest.mark.parametrize("registers", [1, 3, 4, 5, 11])  # fewer than four, four, and a rest behind fours
def test_sums_of_columns_are_exact_for_whole_numbers(registers: int) -> None:
    width, random = 16 * registers, np.random.default_rng(registers)
    entries, factors, means = (
        random.integers(-8, 9, shape).astype(np.float32) for shape in ((7, width), 7, width)
    )
    found = np.full((2, width), np.nan, np.float32)
    of_columns(entries, factors, means, *found)
    shifted = factors[:, None] * entries - means
    np.testing.assert_array_equal(found, [shifted.sum(0), np.square(shifted).sum(0)])
