"""Blocks of GGUF, against bytes written by hand and against the dequantization of the package `gguf`."""

import struct

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, dequantize
from hypothesis import given, settings
from hypothesis import strategies as st

from sinq import Grid
from sinq.export.gguf.blocks import PACKERS, Q4_0, Q4_1, Q4_K, Q5_0, Q5_1, Q8_0, BlockType, signed_bytes
from sinq.export.gguf.k_quants import pack_q4_k, refit
from sinq.export.view import MatrixView
from sinq.formats.scalar import QuantizedTensor

CASES = [(4, True, Q4_0), (2, False, Q4_1), (3, False, Q4_1), (4, False, Q4_1), (4, True, Q4_1)]
CASES += [
    (5, False, Q5_1),
    (5, True, Q5_1),
    (5, True, Q5_0),
    (6, False, Q8_0),
    (6, True, Q8_0),
    (8, True, Q8_0),
]


def view(bits: int, symmetric: bool, rows: int, columns: int, group: int, seed: int) -> MatrixView:
    grid = Grid(bits=bits, group_size=group, symmetric=symmetric, auxiliary_bits=32)
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 2**bits, (rows, columns), dtype=torch.uint8, generator=generator)
    scale = (torch.randn(rows, columns // group, generator=generator).exp() * 0.01).half().float()
    zero = torch.randint(0, 2**bits, scale.shape, generator=generator).float()
    value = QuantizedTensor.store(codes, grid, scale, None if symmetric else zero)
    return MatrixView.of("layer", value)


def read(packed: torch.Tensor, kind: BlockType) -> torch.Tensor:
    return torch.from_numpy(dequantize(packed.numpy(), GGMLQuantizationType(kind.number)))


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(CASES),
    st.integers(1, 5),
    st.sampled_from([32, 64, 128]),
    st.integers(1, 3),
    st.integers(0, 99),
)
def test_the_package_reads_our_codes(
    case: tuple[int, bool, BlockType], rows: int, group: int, groups: int, seed: int
) -> None:
    bits, symmetric, kind = case
    matrix = view(bits, symmetric, rows, group * groups, group, seed)
    packed = PACKERS[kind](matrix)
    assert packed.shape == (rows, kind.row_bytes(group * groups))
    # Scales are halves already; the offset zero · scale is rounded to a half.
    largest = (matrix.zero * matrix.scale).abs().max().item()
    exact = kind in (Q4_0, Q8_0)
    torch.testing.assert_close(
        read(packed, kind), matrix.dense(), rtol=1e-6, atol=0 if exact else largest * 2**-11 + 1e-7
    )


def one_block(bits: int, symmetric: bool, zero: float) -> MatrixView:
    """A block whose codes count up, with scale 0.5."""
    codes = (torch.arange(32) % 2**bits).to(torch.uint8)[None]
    grid = Grid(bits=bits, group_size=32, symmetric=symmetric, auxiliary_bits=32)
    zeros = None if symmetric else torch.tensor([[zero]])
    return MatrixView.of("layer", QuantizedTensor.store(codes, grid, torch.tensor([[0.5]]), zeros))


HALF = "0038"  # float16 0.5, little endian
# Element j and element j + 16 have the same code in 4 bits, so byte j is j and j.
COUNTED = "00112233445566778899aabbccddeeff"


@pytest.mark.parametrize(
    ("matrix", "kind", "expected"),
    [
        (one_block(4, True, 8), Q4_0, HALF + COUNTED),
        (one_block(4, False, 6), Q4_1, HALF + "00c2" + COUNTED),  # m = −3
        (one_block(5, True, 16), Q5_0, HALF + "0000ffff" + COUNTED),
        (one_block(5, False, 6), Q5_1, HALF + "00c2" + "0000ffff" + COUNTED),  # fifth bits of 16 … 31
        (one_block(8, True, 128), Q8_0, HALF + bytes(128 + j for j in range(32)).hex()),  # −128 … −97
        (one_block(6, False, 6), Q8_0, HALF + bytes((j - 6) % 256 for j in range(32)).hex()),
    ],
)
def test_golden_bytes(matrix: MatrixView, kind: BlockType, expected: str) -> None:
    assert PACKERS[kind](matrix).numpy().tobytes().hex() == expected


@pytest.mark.parametrize(
    ("bits", "zero", "fits"),
    [(8, 128, True), (8, 127, False), (8, 129, False), (6, 0, True), (6, 2.5, False)],
)
def test_signed_bytes(bits: int, zero: float, fits: bool) -> None:
    assert signed_bytes(one_block(bits, False, zero)) is fits


def k_block(matrix: MatrixView, row: int, start: int) -> bytes:
    """A super-block of Q4_K in plain Python and float64."""
    group = matrix.group_size
    weights = matrix.dense()[row, start : start + 256].double().numpy()
    scales = [float(matrix.scale[row, (start + 32 * b) // group]) for b in range(8)]
    mins = [s * float(matrix.zero[row, (start + 32 * b) // group]) for b, s in enumerate(scales)]
    d, dmin = (float(np.float16(np.float32(max(numbers)) / np.float32(63))) for numbers in (scales, mins))
    sixes = [min(63, round(s / d)) for s in scales], [min(63, round(m / dmin)) if dmin else 0 for m in mins]
    codes = [
        min(15, max(0, round((weights[i] + dmin * sixes[1][i // 32]) / (d * sixes[0][i // 32]))))
        for i in range(256)
    ]
    packed = bytearray(12)
    for i in range(4):
        packed[i] = sixes[0][i] | (sixes[0][i + 4] >> 4) << 6
        packed[i + 4] = sixes[1][i] | (sixes[1][i + 4] >> 4) << 6
        packed[i + 8] = (sixes[0][i + 4] & 15) | (sixes[1][i + 4] & 15) << 4
    halves = [codes[64 * p + j] | codes[64 * p + 32 + j] << 4 for p in range(4) for j in range(32)]
    return struct.pack("<ee", d, dmin) + bytes(packed) + bytes(halves)


@pytest.mark.parametrize("group", [32, 64, 256])
def test_q4_k_is_the_loop_over_blocks(group: int) -> None:
    matrix = view(4, False, 3, 512, group, seed=group)
    expected = b"".join(k_block(matrix, row, start) for row in range(3) for start in (0, 256))
    packed = pack_q4_k(matrix)
    assert packed.numpy().tobytes() == expected
    torch.testing.assert_close(refit(matrix).dense(), read(packed, Q4_K), rtol=1e-6, atol=1e-6)
    step = matrix.scale.repeat_interleave(group, 1)
    # The worst case: a scale and an offset that are off by 1/126 of the largest of their super-block.
    bound = step / 2 + (15 * matrix.scale + matrix.scale * matrix.zero).amax() / 63
    assert bool(((read(packed, Q4_K) - matrix.dense()).abs() <= bound).all())


def test_q4_k_of_equal_scales_keeps_the_codes() -> None:
    """With one scale and one zero for a super-block, s = m = 63 and only halves are rounded."""
    matrix = view(4, False, 4, 256, 256, seed=0)
    torch.testing.assert_close(read(pack_q4_k(matrix), Q4_K), matrix.dense(), rtol=1e-2, atol=2e-3)
