"""Sparse outliers beside a compressed weight: what they stand for, what they cost, and their product."""

import json
import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sinq import CompressedLinear, Grid, Kernel, QuantizedTensor, SparseOutliers, using
from sinq.formats.rotation import Rotated, Rotation
from sinq.kernels.product import product, sparse_product
from tests.forked import fork


def made(
    rows: int = 96, columns: int = 576, share: float = 0.01, bits: int = 3
) -> tuple[SparseOutliers, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(rows, columns, generator=generator)
    mask = torch.rand(rows, columns, generator=generator) < share
    inner = QuantizedTensor.round(weight.masked_fill(mask, 0.0), Grid(bits, 64), {"odd": 1.0})
    return SparseOutliers.store(inner, weight, mask, {"kept": 2.0}), weight, mask


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 1.0])
def test_it_is_the_weight_in_float16_where_the_mask_says_and_the_inner_value_elsewhere(share: float) -> None:
    value, weight, mask = made(share=share)
    assert (value.inner.dequantize()[mask] == 0).all()
    assert torch.equal(value.dequantize(), torch.where(mask, weight.half().float(), value.inner.dequantize()))
    assert value.dequantize(torch.bfloat16).dtype == torch.bfloat16


def test_parts_are_added_where_the_inner_value_is_not_0() -> None:
    value, weight, mask = made()
    other = SparseOutliers(
        QuantizedTensor.round(weight, Grid(3, 64)), value.values, value.columns, value.row_starts
    )
    rows, columns = mask.nonzero().T.tolist()
    expected = other.inner.dequantize()
    for i, j in zip(rows, columns, strict=True):
        expected[i, j] += weight[i, j].half().item()
    assert torch.equal(other.dequantize(), expected)


def test_every_byte_is_counted() -> None:
    value, _, mask = made()
    outliers = int(mask.sum())
    assert outliers > 400
    assert value.nbytes == value.inner.nbytes + 4 * outliers + 4 * 97
    assert value.bits_per_weight == pytest.approx(
        3 + 32 / 64 + 32 * outliers / mask.numel() + 32 * 97 / mask.numel()
    )
    assert value.notes == {"odd": 1.0, "kept": 2.0}


@pytest.mark.parametrize("share", [0.0, 0.01])
def test_state_and_config_rebuild_it_even_inside_another(share: float) -> None:
    value = Rotated(Rotation.random(576, seed=0), made(share=share)[0])
    assert not any("." in name for name in value.state_dict())  # names of buffers
    again = Rotated.from_state(json.loads(json.dumps(value.config())), value.state_dict())
    assert torch.equal(again.dequantize(), value.dequantize())
    assert again.notes == value.notes


@pytest.mark.parametrize(("columns", "dtype"), [(1 << 16, torch.uint16), ((1 << 16) + 64, torch.int32)])
def test_columns_are_as_wide_as_they_must(columns: int, dtype: torch.dtype) -> None:
    weight, mask = torch.randn(2, columns), torch.zeros(2, columns, dtype=torch.bool)
    mask[0, [0, 40000, -1]] = mask[1, -1] = True
    value = SparseOutliers.store(QuantizedTensor.round(weight.masked_fill(mask, 0.0), Grid()), weight, mask)
    assert value.columns.dtype == dtype
    assert torch.equal(value.dequantize()[mask], weight[mask].half().float())
    x = torch.randn(3, columns)
    torch.testing.assert_close(product(value, x), x @ value.dequantize().T, rtol=1e-3, atol=0.1)


# few rows and many take other ways in the inner kernel
@pytest.mark.parametrize("shape", [(576,), (1, 576), (2, 3, 576), (40, 576)])
@pytest.mark.parametrize("share", [0.0, 0.01, 1.0])
def test_the_sum_of_the_products_is_the_product_with_the_sum(
    shape: tuple[int, ...], share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    value, _, _ = made(share=share)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    bias = torch.randn(96, generator=torch.Generator().manual_seed(2))
    exact = x.double() @ value.dequantize(torch.float64).T + bias
    monkeypatch.setattr(SparseOutliers, "dequantize", None)
    layer = CompressedLinear(value, bias)
    assert layer.kernel == "cpu+csr"
    assert layer(x).shape == exact.shape
    assert (layer(x) - exact).norm() <= 1e-4 * exact.norm()
    assert layer(x.bfloat16()).dtype == torch.bfloat16


def test_the_reference_kernel_dequantizes() -> None:
    value, _, _ = made()
    x = torch.randn(3, 576)
    with using(Kernel.reference):
        layer = CompressedLinear(value, None)
        assert layer.kernel == "reference"
        assert torch.equal(layer(x), x @ value.dequantize().T)


def test_a_compiled_graph_has_the_product_as_one_node() -> None:
    layer, x = CompressedLinear(made()[0], None), torch.randn(3, 576)
    with torch.no_grad():
        compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
        assert torch.equal(compiled(x), layer(x))


def test_what_float16_cannot_hold_is_refused() -> None:
    weight, mask = torch.tensor([[1e5, 1.0]]), torch.tensor([[True, False]])
    with pytest.raises(ValueError, match=r"an outlier of 1e\+05 is beyond float16"):
        SparseOutliers.store(QuantizedTensor.round(weight.masked_fill(mask, 0.0), Grid(4, 2)), weight, mask)


def first_product() -> None:
    """Multiply where every warning is an error, in a process that has not done so before."""
    warnings.simplefilter("error")
    sparse_product(torch.ones(2), torch.ones(1), torch.tensor([1]), torch.tensor([0, 1]))


def test_torch_does_not_tell_the_user_that_sparse_tensors_are_in_beta(tmp_path: Path) -> None:
    process = fork(tmp_path, first_product)
    assert process.done() == 0, process.output
