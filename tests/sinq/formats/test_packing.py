import torch
from hypothesis import given
from hypothesis import strategies as st

from sinq.formats.grid import BITS
from sinq.formats.packing import pack, unpack


@given(st.sampled_from(BITS), st.integers(1, 7), st.integers(1, 43), st.integers(0, 2**31))
def test_unpacking_gives_the_codes_back(bits: int, rows: int, columns: int, seed: int) -> None:
    codes = torch.randint(
        2**bits, (rows, columns), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )
    packed = pack(codes, bits)
    assert packed.numel() == -(-codes.numel() // 8) * bits
    assert torch.equal(unpack(packed, bits, (rows, columns)), codes)


def test_three_bits_cost_three_bits() -> None:
    assert 8 * pack(torch.zeros(576, 1536, dtype=torch.uint8), 3).nbytes == 3 * 576 * 1536


def test_the_layout_is_little_endian_bits() -> None:
    codes = torch.tensor([1, 2, 3, 4, 5, 6, 7, 0], dtype=torch.uint8)
    word = sum(code << (3 * k) for k, code in enumerate(codes.tolist()))
    assert bytes(pack(codes, 3).tolist()) == word.to_bytes(3, "little")
