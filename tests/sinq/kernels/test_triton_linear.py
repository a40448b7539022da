"""What the Triton kernels on packed codes compute, against x · dequantize()ᵀ."""

import pytest
import torch
from torch import Tensor, nn

from sinq.formats.grid import Grid, Levels
from sinq.formats.scalar import QuantizedTensor

pytest.importorskip("triton")

from sinq.kernels.triton.linear import ROWS_OF_KERNEL, product, refusal, triton_linear

pytestmark = pytest.mark.interpreted  # see tests/interpreter.py

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BITS = (2, 3, 4, 5, 6, 8)
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}
COLUMNS = 192


def quantized(
    rows: int, grid: Grid, columns: int = COLUMNS, col_scale: bool = True, size: float = 1.0
) -> QuantizedTensor:
    """Random weights that are not centred on 0, and random column scales."""
    generator = torch.Generator().manual_seed(0)
    weight = (torch.randn(rows, columns, generator=generator) + 0.3) * size
    tiles = rows // grid.tile((rows, columns))[0]
    scale = torch.rand(tiles, columns, generator=generator) + 0.5 if col_scale else None
    value = QuantizedTensor.round(weight, grid)
    stored = QuantizedTensor.store(value.codes(), grid, value.scale(), _stored_zero(value), col_scale=scale)
    return QuantizedTensor(
        grid, stored.shape, {name: tensor.to(DEVICE) for name, tensor in stored.tensors.items()}
    )


def _stored_zero(value: QuantizedTensor) -> Tensor | None:
    zero = value.zero()
    return zero if isinstance(zero, Tensor) else None


def inputs(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1)).to(DEVICE, dtype)


def assert_product(x: Tensor, value: QuantizedTensor, bias: Tensor | None) -> None:
    found = product(value, x, bias)
    expected = nn.functional.linear(
        x.double(), value.dequantize().double(), None if bias is None else bias.double()
    )
    assert (found.dtype, found.shape) == (x.dtype, expected.shape)
    assert (found.double() - expected).norm() <= TOLERANCE[x.dtype] * expected.norm()


@pytest.mark.parametrize(
    ("batch", "dtype"),
    [(1, torch.bfloat16), (5, torch.float32), (5, torch.bfloat16), (5, torch.float16), (19, torch.bfloat16)],
)
@pytest.mark.parametrize("bits", BITS)
def test_every_number_of_bits(bits: int, batch: int, dtype: torch.dtype) -> None:
    assert_product(inputs(batch, COLUMNS, dtype=dtype), quantized(19, Grid(bits, 64)), None)


@pytest.mark.parametrize("auxiliary_bits", [8, 16, 32])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("batch", [1, ROWS_OF_KERNEL, ROWS_OF_KERNEL + 1])
def test_every_way_to_store_scales_and_zeros(auxiliary_bits: int, symmetric: bool, batch: int) -> None:
    assert_product(
        inputs(batch, COLUMNS),
        quantized(9, Grid(3, 24, symmetric=symmetric, auxiliary_bits=auxiliary_bits)),
        None,
    )


@pytest.mark.parametrize("batch", [1, 3, 40])
@pytest.mark.parametrize(("rows", "group_size"), [(1, 32), (16, 8), (45, 32), (33, COLUMNS)])
def test_rows_and_groups_of_any_number_with_a_bias(rows: int, group_size: int, batch: int) -> None:
    assert_product(
        inputs(batch, COLUMNS), quantized(rows, Grid(5, group_size)), inputs(rows, dtype=torch.float16)
    )


@pytest.mark.parametrize("batch", [1, 3, 20])
def test_more_columns_than_a_block_and_not_a_multiple_of_one(batch: int) -> None:
    assert_product(inputs(batch, 1600), quantized(4, Grid(4, 32), 1600), None)


@pytest.mark.parametrize("batch", [1, 3, 20])
def test_without_column_scales_and_with_an_exponent_of_scales(batch: int) -> None:
    value = quantized(8, Grid(4, 64), col_scale=False, size=1e-7)
    assert "scale_exponent" in value.tensors
    assert_product(inputs(batch, COLUMNS), value, None)


@pytest.mark.parametrize("batch", [1, 3, 20])
def test_zeros_that_are_fractions(batch: int) -> None:
    value = quantized(8, Grid(4, 64))
    value.tensors["zero"] += 0.375
    assert_product(inputs(batch, COLUMNS), value, None)


@pytest.mark.parametrize("shape", [(COLUMNS,), (2, 3, COLUMNS), (0, COLUMNS)])
def test_any_leading_dimensions(shape: tuple[int, ...]) -> None:
    assert_product(inputs(*shape), quantized(8, Grid(4, 64)), None)


def test_inputs_that_are_no_contiguous_matrix() -> None:
    assert_product(inputs(COLUMNS, 3).T, quantized(8, Grid(4, 64)), None)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (quantized(8, Grid(4, 64, levels=Levels.nf4)), "levels=nf4"),
        (quantized(8, Grid(4, 12)), "group_size=12"),
        (quantized(8, Grid(4, 8), columns=24), "in_features=24"),
        (quantized(64, Grid(4, 32, tiling=2)), "tiling=2"),
    ],
)
def test_what_is_not_supported_says_why(value: QuantizedTensor, reason: str) -> None:
    assert reason in (refusal(value) or "")
    with pytest.raises(ValueError, match=reason):
        product(value, inputs(1, value.shape[1]), None)


@pytest.mark.parametrize("x", [inputs(1, COLUMNS).double(), inputs(1, COLUMNS - 1)])
def test_inputs_that_do_not_fit_say_so(x: Tensor) -> None:
    with pytest.raises(ValueError, match=f"x is {x.dtype} with {x.shape[1]} features"):
        product(quantized(8, Grid(4, 64)), x, None)


def test_the_operation_is_what_torch_wants_of_one() -> None:
    value = quantized(8, Grid(4, 64))
    tensors = [
        value.tensors.get(name)
        for name in ("codes", "scale", "zero", "col_scale", "scale_range", "scale_exponent")
    ]
    torch.library.opcheck(triton_linear, (inputs(1, COLUMNS), *tensors, None, 8, 4, 64))


@pytest.mark.parametrize("batch", [1, 20])
def test_torch_compile_takes_it_in_one_graph(batch: int) -> None:
    value, x = quantized(8, Grid(4, 64)), inputs(batch, COLUMNS)
    whole = torch.compile(lambda x: product(value, x * 2, None) + 1, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(whole(x), product(value, x * 2, None) + 1)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")
@pytest.mark.parametrize("batch", [1, 20])
def test_a_graph_replays_it(batch: int) -> None:
    value, x = quantized(8, Grid(4, 64)), inputs(batch, COLUMNS)
    product(value, x, None)  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = product(value, x, None)
    x.copy_(inputs(batch, COLUMNS) * 2)
    graph.replay()
    torch.testing.assert_close(found, product(value, x, None))
