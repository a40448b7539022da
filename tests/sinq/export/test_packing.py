"""Bytes of exported matrices against packers written from the formats' descriptions, bit by bit."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from baselines.rtn import RTN
from sinq import MLX, SINQ, AWQFolder, BitsAndBytesNF4, CompressedTensors, GPTQFolder, Grid, Levels, TorchAO
from sinq.export.view import MatrixView
from sinq.export.words import int32_words

GOLDEN_CODES = torch.tensor([[0, 1, 2, 3, 4, 5, 6, 7] * 4, [7, 6, 5, 4, 3, 2, 1, 0] * 4], dtype=torch.uint8)


def stream(codes: list[int], bits: int) -> list[int]:
    """Words of 32 bits of a list of codes, lowest bits first, by one large integer; unsigned."""
    number = sum(code << (bits * place) for place, code in enumerate(codes))
    return [(number >> (32 * word)) & 0xFFFFFFFF for word in range(-(-len(codes) * bits // 32))]


def unsigned(words: Tensor) -> list[list[int]]:
    return [[word & 0xFFFFFFFF for word in row] for row in words.tolist()]


def view(grid: Grid, rows: int = 64, columns: int = 128) -> MatrixView:
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(1))
    return MatrixView.of("layer", RTN(grid).quantize(weight))


def test_words_are_the_golden_ones() -> None:
    """0–7 in 3 bits, lowest first, are 24 bits, 0xFAC688; 7–0 are 0x053977."""
    assert unsigned(int32_words(GOLDEN_CODES, 4)) == [[0x76543210] * 4, [0x01234567] * 4]
    assert unsigned(int32_words(GOLDEN_CODES, 3)) == [
        [0x88FAC688, 0xC688FAC6, 0xFAC688FA],
        [0x77053977, 0x39770539, 0x05397705],
    ]


@given(st.sampled_from([2, 3, 4, 5, 6, 8]), st.integers(1, 3), st.integers(1, 70), st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_words_are_a_stream_of_bits(bits: int, rows: int, columns: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 2**bits, (rows, columns), generator=generator, dtype=torch.uint8)
    assert unsigned(int32_words(codes, bits)) == [stream(row, bits) for row in codes.tolist()]


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_compressed_tensors(bits: int) -> None:
    given_view = view(Grid(bits, 32))
    assert CompressedTensors().check(given_view, torch.float32) is None
    tensors = CompressedTensors().tensors(given_view, torch.float32)
    codes, zeros = given_view.codes, given_view.zero.int()
    assert unsigned(tensors["layer.weight_packed"]) == [stream(row, bits) for row in codes.tolist()]
    columns = [stream(column, bits) for column in zeros.T.tolist()]
    assert unsigned(tensors["layer.weight_zero_point"].T) == columns
    assert tensors["layer.weight_shape"].tolist() == [64, 128]
    assert torch.equal(tensors["layer.weight_scale"], given_view.scale)


def test_centred_zeros_are_left_out() -> None:
    tensors = CompressedTensors().tensors(view(Grid(4, 32, symmetric=True)), torch.float32)
    assert set(tensors) == {"layer.weight_packed", "layer.weight_scale", "layer.weight_shape"}


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_gptq(bits: int) -> None:
    given_view = view(Grid(bits, 32))
    assert GPTQFolder().check(given_view, torch.float32) is None
    tensors = GPTQFolder().tensors(given_view, torch.float32)
    by_input = [stream(column, bits) for column in given_view.codes.tolist()]
    assert unsigned(tensors["layer.qweight"].T) == by_input
    assert unsigned(tensors["layer.qzeros"]) == [
        stream(row, bits) for row in given_view.zero.int().T.tolist()
    ]
    assert tensors["layer.g_idx"].tolist() == [column // 32 for column in range(128)]
    assert torch.equal(tensors["layer.scales"], given_view.scale.T.half())


def test_awq() -> None:
    given_view = view(Grid(4, 32))
    tensors = AWQFolder().tensors(given_view, torch.float32)
    for name, wanted in (("qweight", given_view.codes.T), ("qzeros", given_view.zero.int().T)):
        words = unsigned(tensors[f"layer.{name}"])
        for row, found in zip(wanted.tolist(), words, strict=True):
            for word, number in enumerate(found):
                nibbles = [(number >> (4 * k)) & 15 for k in range(8)]
                assert nibbles == [row[8 * word + k] for k in (0, 2, 4, 6, 1, 3, 5, 7)]


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_mlx_and_any_zero(bits: int) -> None:
    given_view = view(Grid(bits, 64))
    tensors = MLX().tensors(given_view, torch.float32)
    assert unsigned(tensors["layer.weight"].view(torch.int32)) == [
        stream(row, bits) for row in given_view.codes.tolist()
    ]
    groups = given_view.codes.reshape(64, 2, 64).double()
    found = groups * tensors["layer.scales"].double()[..., None] + tensors["layer.biases"].double()[..., None]
    assert torch.allclose(found.reshape(64, 128).float(), given_view.dense(), atol=1e-6)


def test_bitsandbytes() -> None:
    given_view = view(Grid(4, 64, levels=Levels.nf4, symmetric=True))
    tensors = BitsAndBytesNF4().tensors(given_view, torch.float16)
    packed = tensors["layer.weight"].flatten().tolist()
    codes = [nibble for byte in packed for nibble in (byte >> 4, byte & 15)]
    table, absmax = tensors["layer.weight.quant_map"], tensors["layer.weight.absmax"]
    found = table[codes].reshape(-1, 64) * absmax[:, None]
    assert torch.equal(found.reshape(64, 128), given_view.dense())
    state = bytes(tensors["layer.weight.quant_state.bitsandbytes__nf4"].tolist())
    assert json.loads(state) == {"quant_type": "nf4", "blocksize": 64, "dtype": "float16", "shape": [64, 128]}


def test_torchao_has_the_column_scale() -> None:
    weight = torch.randn(64, 128, generator=torch.Generator().manual_seed(2))
    given_view = MatrixView.of("layer", SINQ(Grid(4, 32)).quantize(weight))
    assert TorchAO().check(given_view, torch.bfloat16) is None
    tensors = TorchAO().tensors(given_view, torch.float32)
    for found, codes in zip(tensors["layer._weight_qdata"].tolist(), given_view.codes.tolist(), strict=True):
        nibbles = [nibble for byte in found for nibble in (byte & 15, (byte >> 4) & 15)]
        assert [nibble - 16 * (nibble > 7) for nibble in nibbles] == [code - 8 for code in codes]
    signed = (given_view.codes.float() - 8).reshape(64, 4, 32)
    scale, zero = tensors["layer._weight_scale"].T, tensors["layer._weight_zero_point"].T
    matrix = (signed * scale[..., None] + zero[..., None]).reshape(64, 128)
    assert torch.allclose(matrix * tensors["layer._weight_act_pre_scale"], given_view.dense(), atol=1e-5)
