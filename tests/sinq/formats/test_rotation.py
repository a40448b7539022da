from pathlib import Path

import pytest
import torch

from sinq import CompressedLinear, Grid, NotApplicable, QuantizedTensor
from sinq.formats.rotation import Rotated, Rotation, factors, hadamard
from sinq.kernels.product import kernel_of

SIZES = {
    576: 36,
    1536: 12,
    5120: 20,
    17408: 68,
    14336: 28,
    9728: 76,
    11008: 344,
    18944: 148,
    53248: 52,
    4096: 64,
    1: 1,
    2: 2,
}
"""Inputs of layers of real models, and the order of the first Kronecker factor."""
UNKNOWN = {92, 116, 156, 172, 184, 188}
"""Multiples of 4 up to 200 that neither construction reaches, also not with powers of two.

Paley 1933; 116 and 172 are Williamson's.
"""
KNOWN = [1, 2, *(n for n in range(4, 201, 4) if n not in UNKNOWN)]


@pytest.mark.parametrize("size", KNOWN)
def test_every_claimed_order_is_a_hadamard_matrix(size: int) -> None:
    dense = Rotation.random(size, seed=0).matrix() * size**0.5
    torch.testing.assert_close(dense.abs(), torch.ones(size, size))
    for order in factors(size):
        matrix = hadamard(order)
        assert set(matrix.unique().tolist()) <= {-1.0, 1.0}
        assert torch.equal(matrix @ matrix.T, order * torch.eye(order))


@pytest.mark.parametrize(("size", "first"), SIZES.items())
def test_real_sizes_have_small_factors(size: int, first: int) -> None:
    found = factors(size)
    assert torch.tensor(found).prod() == size
    assert (found or (1,))[0] == first
    for order in found:
        matrix = hadamard(order)
        assert torch.equal(matrix @ matrix.T, order * torch.eye(order))


@pytest.mark.parametrize("size", [*sorted(UNKNOWN), 3, 7, 50, 127, 0])
def test_a_size_without_a_construction_is_named(size: int) -> None:
    with pytest.raises(NotApplicable, match=f"for {size} inputs"):
        Rotation.random(size, seed=0)


@pytest.mark.parametrize("size", [1, 2, 12, 48, 576, 1024])
def test_the_fast_product_is_the_dense_one(size: int) -> None:
    rotation = Rotation.random(size, seed=3)
    product = torch.ones(1, 1, dtype=torch.float64)
    for order in factors(size):
        product = torch.kron(product, hadamard(order).double())
    flips = [1 - 2 * ((rotation.signs[j // 8].item() >> (j % 8)) & 1) for j in range(size)]
    dense = product @ torch.diag(torch.tensor(flips, dtype=torch.float64)) / size**0.5
    rows = torch.randn(3, 5, size, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(rotation.apply(rows).double(), rows.double() @ dense.T, rtol=0, atol=1e-5)
    torch.testing.assert_close(rotation.undo(rows).double(), rows.double() @ dense, rtol=0, atol=1e-5)
    torch.testing.assert_close(rotation.matrix().double(), dense, rtol=0, atol=1e-6)
    torch.testing.assert_close(rotation.undo(rotation.apply(rows)), rows, rtol=0, atol=1e-5)


def test_a_seed_decides_the_signs() -> None:
    one, same, other = (Rotation.random(576, seed).signs for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert (one.dtype, one.numel()) == (torch.uint8, 72)
    flipped = sum(int(byte).bit_count() for byte in one)
    assert 230 < flipped < 346  # binomial: within five standard deviations


def test_an_outlier_is_spread_over_the_row() -> None:
    row = torch.zeros(1, 576)
    row[0, 7] = 1.0
    torch.testing.assert_close(Rotation.random(576, seed=0).apply(row).abs(), torch.full((1, 576), 1 / 24))


class TestRotated:
    @pytest.fixture
    def value(self, weight: torch.Tensor) -> Rotated:
        rotation = Rotation.random(128, seed=0)
        return Rotated(rotation, QuantizedTensor.round(rotation.apply(weight), Grid(3, 32), {"gated": 1.0}))

    def test_it_stands_for_the_weight_before_rotation(self, value: Rotated, weight: torch.Tensor) -> None:
        expected = value.inner.dequantize() @ value.rotation.matrix()
        torch.testing.assert_close(value.dequantize(), expected, rtol=0, atol=1e-6)
        assert (value.dequantize() - weight).norm() < 0.2 * weight.norm()
        assert value.dequantize(torch.float16).dtype == torch.float16

    def test_its_signs_are_counted(self, value: Rotated) -> None:
        assert value.shape == (96, 128)
        assert value.nbytes == value.inner.nbytes + 128 // 8
        assert value.notes == {"gated": 1.0}

    def test_state_and_config_rebuild_it_even_when_nested(self, value: Rotated, tmp_path: Path) -> None:
        twice = Rotated(Rotation.random(128, seed=1), value)
        assert not any("." in name for name in twice.state_dict())  # names of buffers
        again = Rotated.from_state(twice.config(), twice.state_dict())
        assert isinstance(again.inner, Rotated)
        assert torch.equal(again.dequantize(), twice.dequantize())

    def test_only_compressed_weights_are_rebuilt(self, value: Rotated) -> None:
        with pytest.raises(
            ValueError,
            match=r"'subprocess.Popen' is not the name of a known CompressedWeight; known are additive, ",
        ):
            Rotated.from_state(
                {"inner": {"name": "subprocess.Popen", "version": 1, "config": {}}}, value.state_dict()
            )


def test_the_product_turns_x_and_reads_the_codes_of_what_is_inside() -> None:
    generator = torch.Generator().manual_seed(0)
    inner = QuantizedTensor.round(torch.randn(96, 576, generator=generator), Grid())
    value = Rotated(Rotation.random(576, seed=0), inner)
    x, bias = torch.randn(3, 576, generator=generator), torch.randn(96)
    layer = CompressedLinear(value, bias)
    exact = x.double() @ value.dequantize(torch.float64).T + bias
    assert layer.kernel == kernel_of(inner, x.device).kernel == "cpu"
    assert (layer(x) - exact).norm() <= 1e-3 * exact.norm()
