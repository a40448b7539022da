"""Additively quantized matrices: against loops, through storage, in bits, and by look-up tables."""

import pytest
import torch

from sinq.formats.additive import AdditiveTensor
from sinq.formats.codebooks import Codebooks
from sinq.kernels.cpu import additive


def parts(
    format: Codebooks, rows: int = 70, columns: int = 48
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(
        format.vectors, (rows, columns // format.group, format.codebooks), generator=generator
    )
    codebooks = torch.randn(format.codebooks, format.vectors, format.group, generator=generator).half()
    return codes, codebooks, (torch.rand(rows, generator=generator) + 0.5).half()


FORMATS = [Codebooks(2, 8, 8), Codebooks(1, 3, 4), Codebooks(3, 5, 8), Codebooks(1, 12, 8)]


@pytest.mark.parametrize("format", FORMATS, ids=lambda f: f.label)
def test_dequantized_is_the_sum_in_a_loop(format: Codebooks) -> None:
    codes, codebooks, scale = parts(format)
    expected = torch.zeros(70, 48 // format.group, format.group, dtype=torch.float64)
    for r in range(70):
        for j in range(48 // format.group):
            for m in range(format.codebooks):
                expected[r, j] += codebooks[m, codes[r, j, m]].double() * scale[r].double()
    value = AdditiveTensor.store(codes, codebooks, scale, format)
    assert torch.equal(value.codes(), codes)
    torch.testing.assert_close(value.dequantize().double(), expected.reshape(70, 48), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("format", FORMATS, ids=lambda f: f.label)
def test_reloads_bit_exact_and_costs_what_the_formula_says(format: Codebooks) -> None:
    value = AdditiveTensor.store(*parts(format), format)
    again = AdditiveTensor.from_state(value.config(), value.state_dict())
    assert torch.equal(again.dequantize(), value.dequantize())
    stored = 8 * sum(tensor.nbytes for tensor in value.state_dict().values())
    # streams are padded to eight codes
    assert 0 <= stored - format.bits_per_weight(value.shape) * 70 * 48 < 8 * format.bits_per_codebook


@pytest.mark.parametrize("format", FORMATS[:3], ids=lambda f: f.label)
@pytest.mark.parametrize("tokens", [1, 3, 9])
def test_tables_equal_dequantize_and_multiply(format: Codebooks, tokens: int) -> None:
    value = AdditiveTensor.store(*parts(format), format)
    x, bias = torch.randn(tokens, 48, generator=torch.Generator().manual_seed(1)), torch.randn(70)
    expected = x.double() @ value.dequantize().double().T + bias
    torch.testing.assert_close(additive.product(value, x, bias).double(), expected, rtol=1e-4, atol=1e-4)


def test_codebooks_that_dwarf_the_layer_do_not_fit() -> None:
    incompatibility = Codebooks(1, 16, 8).incompatibility((576, 576))
    assert incompatibility is not None
    assert "weigh more" in str(incompatibility)
    assert Codebooks(1, 16, 8).incompatibility((1024, 4096)) is None
