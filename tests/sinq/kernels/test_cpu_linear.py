import copy
import io
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sinq import SINQ, CompressedLinear, Grid
from sinq.formats.grid import BITS, Levels
from sinq.formats.scalar import QuantizedTensor
from sinq.kernels import Kernel, using
from sinq.kernels.cpu import linear
from sinq.kernels.product import kernel_of, product

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 1e-2, torch.float16: 2e-3}
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def the_same_numbers_every_time() -> None:
    torch.manual_seed(0)


def quantized(grid: Grid, rows: int, columns: int, col_scale: bool = False) -> QuantizedTensor:
    generator = torch.Generator().manual_seed(rows * columns)
    value = QuantizedTensor.round(torch.randn(rows, columns, generator=generator) * 0.1 + 0.02, grid)
    if not col_scale:
        return value
    tiles = 1 if grid.tiling == 1 else rows // grid.group_size
    scales = torch.rand(tiles, columns, generator=generator) + 0.5
    zero = value.zero()
    return QuantizedTensor.store(
        value.codes(), grid, value.scale(), zero if isinstance(zero, Tensor) else None, col_scale=scales
    )


def error(x: Tensor, value: QuantizedTensor, bias: Tensor | None = None) -> float:
    """Error against the product of x, as it was given, with the dequantized matrix in float64.

    It is relative to that product or, where terms cancel, to the size of sums of that many terms. One number
    alone may be four such sizes, and is rounded twice, without and with the bias.
    """
    matrix, added = value.dequantize().double(), torch.zeros(1) if bias is None else bias.double()
    exact = x.double() @ matrix.T + added
    size = (x.double().square() @ matrix.T.square() + added.square()).sqrt()
    with using(Kernel.cpu):
        found = product(value, x, bias)
    assert found.dtype == x.dtype
    assert found.shape == exact.shape
    return float((found.double() - exact).norm() / max(size.norm(), exact.norm()))


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("group_size", [8, 16, 24, 32, 64, 128])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_it_is_the_product_with_the_dequantized_matrix(
    bits: int, group_size: int, dtype: torch.dtype
) -> None:
    for rows, groups in ((1, 1), (37, 3), (17, 2), (18, 4)):  # of 2 and 4 some fill a block
        columns = groups * group_size
        value = quantized(Grid(bits=bits, group_size=group_size), rows, columns, col_scale=True)
        for tokens in (1, 2, linear.FEW, linear.FEW + 1, 64):
            for bias in (None, torch.randn(rows)):
                assert error(torch.randn(tokens, columns).to(dtype), value, bias) < TOLERANCE[dtype], (
                    rows,
                    tokens,
                )


@pytest.mark.parametrize("tokens", [1, 3, 20])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("auxiliary_bits", [8, 16, 32])
def test_every_way_to_store_scales_and_zeros(tokens: int, symmetric: bool, auxiliary_bits: int) -> None:
    for bits in BITS:
        value = quantized(
            Grid(bits=bits, group_size=16, symmetric=symmetric, auxiliary_bits=auxiliary_bits),
            19,
            112,
            col_scale=True,
        )
        assert error(torch.randn(tokens, 112), value) < 1e-4


@pytest.mark.parametrize("tokens", [1, 3, 20])
def test_square_tiles_and_tiny_weights(tokens: int) -> None:
    square = quantized(Grid(group_size=16, tiling=2), 48, 64, col_scale=True)
    assert error(torch.randn(tokens, 64), square) < 1e-4
    tiny = QuantizedTensor.round(torch.randn(7, 64) * 1e-6, Grid(group_size=32))
    assert "scale_exponent" in tiny.tensors
    assert error(torch.randn(tokens, 64), tiny) < 1e-4


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_any_shape(data: st.DataObject) -> None:
    grid = Grid(bits=data.draw(st.sampled_from(BITS)), group_size=8 * data.draw(st.integers(1, 20)))
    rows, columns = data.draw(st.integers(1, 40)), grid.group_size * data.draw(st.integers(1, 4))
    value = quantized(grid, rows, columns)
    leading = data.draw(st.lists(st.integers(1, 4), max_size=3))
    assert error(torch.randn(*leading, columns), value) < 1e-4


def test_pieces_of_a_matrix_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "PIECE", 5 * 64)
    for rows in (5, 13, 20):
        assert error(torch.randn(20, 64), quantized(Grid(), rows, 64, col_scale=True)) < 1e-4


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch has no oneDNN here")
@pytest.mark.parametrize("tokens", [17, 130])
def test_both_libraries_multiply_by_pieces_in_float32(tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    value, x = quantized(Grid(), 48, 192, col_scale=True), torch.randn(tokens, 192)
    exact = x.double() @ value.dequantize().double().T
    for piece, by_onednn in ((1 << 20, False), (1 << 20, True), (7 * 192, False), (7 * 192, True)):
        monkeypatch.setattr(linear, "PIECE", piece)
        monkeypatch.setattr(linear, "BY_ONEDNN", by_onednn)
        with using(Kernel.cpu):
            found = product(value, x)
        assert (found - exact).abs().max() < 2e-6 * exact.abs().max()


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
def test_threads_share_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "SMALL", 0)
    for rows in (1, 2, 37):
        value = quantized(Grid(), rows, 128)
        for tokens in (1, 5, 20):
            assert error(torch.randn(tokens, 128), value) < 1e-4


def test_any_layout_of_x() -> None:
    value = quantized(Grid(), 5, 64)
    assert error(torch.randn(64, 3).T, value) < 1e-4
    assert error(torch.randn(4, 3, 128)[:, 1:, ::2], value) < 1e-4
    with using(Kernel.cpu):
        assert product(value, torch.randn(0, 64)).shape == (0, 5)


def test_x_of_another_width_is_refused() -> None:
    with using(Kernel.cpu), pytest.raises(ValueError, match="x has 32 features; the matrix takes 64"):
        product(quantized(Grid(), 5, 64), torch.randn(2, 32))


def test_the_name_is_that_of_what_runs() -> None:
    covered = quantized(Grid(), 5, 64)
    assert (kernel_of(covered, CPU).kernel, kernel_of(covered, CPU).refusals) == ("cpu", ())
    with using(Kernel.reference):
        chosen = kernel_of(covered, CPU)
    assert (chosen.kernel, chosen.refusals) == ("reference", ("kernel=reference was asked for",))
    for grid, reason in (
        (Grid(levels=Levels.nf4), "levels=nf4 is a table"),
        (Grid(group_size=4), "group_size=4 is no multiple of 8"),
    ):
        value = QuantizedTensor.round(torch.randn(5, 64), grid)
        chosen = kernel_of(value, CPU)
        assert (chosen.kernel, chosen.refusals) == ("reference", (reason,))
        torch.testing.assert_close(product(value, torch.eye(64)).T, value.dequantize())
    assert "kernel=cpu" in repr(CompressedLinear(covered, None))


def test_a_gradient_is_not_lost() -> None:
    value, x = quantized(Grid(), 5, 64), torch.randn(3, 64, requires_grad=True)
    product(value, x).sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, value.dequantize().sum(0).expand(3, 64))


def test_copies_and_loaded_layers_read_their_own_codes() -> None:
    layer = CompressedLinear(SINQ(Grid(auxiliary_bits=8)).quantize(torch.randn(5, 64)), torch.randn(5))
    x = torch.randn(1, 64)
    expected = layer(x)
    other = CompressedLinear(SINQ(Grid(auxiliary_bits=8)).quantize(torch.randn(5, 64)), torch.randn(5))
    assert not torch.allclose(other(x), expected)
    other.load_state_dict(layer.state_dict())
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    for twin in (other, copy.deepcopy(layer), torch.load(file, weights_only=False), layer.to("cpu")):
        assert torch.equal(twin(x), expected)


@pytest.mark.parametrize("tokens", [1, 20])
def test_it_is_one_node_of_a_compiled_graph(tokens: int) -> None:
    layer = CompressedLinear(quantized(Grid(), 5, 64, col_scale=True), torch.randn(5))
    x = torch.randn(tokens, 64)
    with torch.no_grad():
        compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(x), layer(x))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_does_not_come_out_finite(bad: float) -> None:
    x = torch.randn(2, 128)
    x[1, 70] = bad
    y = linear.product(quantized(Grid(), 5, 128), x)
    assert y[0].isfinite().all()
    assert not y[1].isfinite().any()


def test_one_huge_entry_costs_only_its_own_group_digits() -> None:
    x = torch.randn(1, 256)
    x[0, 3] = 1e4
    value = quantized(Grid(), 16, 256)
    weight = value.dequantize(torch.float64)
    wrong = linear.product(value, x).double() - x.double() @ weight.T
    assert wrong.abs().max() < 2**-16 * 1e4 * weight[:, :64].abs().sum(1).max()
    x[0, :64] = 0
    assert error(x, value) < 1e-4
