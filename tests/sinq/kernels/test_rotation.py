"""Rotation of rows by the kernels, against H in float64: scipy's, and the definition of a product."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import hadamard as sylvester
from torch import Tensor

from sinq import ActivationFormat, CompressedLinear, Grid, Kernel, QuantizedTensor, Rotated, Rotation, using
from sinq.formats.rotation import factors, hadamard, segment_length
from sinq.kernels.product import core_inputs
from sinq.kernels.rotation import rotated, rotated_rows
from sinq.model.activations import ActivationQuantizer

REAL = (64, 128, 576, 1536, 4096, 11008, 14336)
"""Widths of heads, and inputs of layers, of SmolLM2 and Llama."""


def explicit(rows: Tensor, rotation: Rotation, back: bool) -> Tensor:
    """Q·x or Qᵀ·x in float64: H = P ⊗ S, so that H·x is P X Sᵀ for x written as a matrix X."""
    size = rotation.size
    length = segment_length(size)
    paley = hadamard(size // length).double()
    power = torch.from_numpy(sylvester(length)).double()
    signs = torch.tensor([1.0 - 2 * (int(rotation.signs[j // 8]) >> j % 8 & 1) for j in range(size)]).double()
    x = (rows.double() if back else rows.double() * signs).reshape(-1, size // length, length)
    y = ((paley.T if back else paley) @ x @ power.T).reshape(rows.shape) / size**0.5
    return y * signs if back else y


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("back", [False, True])
@pytest.mark.parametrize("size", REAL)
def test_real_sizes(size: int, back: bool) -> None:
    rotation, rows = Rotation.random(size, seed=1), random(3, size)
    found = rotated_rows(rows, rotation, back)
    torch.testing.assert_close(found.double(), explicit(rows, rotation, back), rtol=0, atol=2e-6 * size**0.25)
    torch.testing.assert_close(rotated_rows(found, rotation, not back), rows, rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [12, 48, 64])
def test_the_reference_of_these_tests_is_the_matrix(size: int) -> None:
    rotation, rows = Rotation.random(size, seed=1), random(5, size)
    dense = rotation.matrix().double()
    torch.testing.assert_close(explicit(rows, rotation, False), rows.double() @ dense.T, rtol=0, atol=1e-5)
    torch.testing.assert_close(explicit(rows, rotation, True), rows.double() @ dense, rtol=0, atol=1e-5)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    size=st.sampled_from([1, 2, *range(4, 92, 4), *(2**k for k in range(7, 14)), 12 * 64, 20 * 32, 68 * 2]),
    count=st.integers(0, 40),
    seed=st.integers(0, 99),
    back=st.booleans(),
)
def test_any_size_and_number_of_rows(size: int, count: int, seed: int, back: bool) -> None:
    rotation, rows = Rotation.random(size, seed), random(count, size, seed=seed)
    found = rotated_rows(rows, rotation, back)
    assert (found.dtype, found.shape) == (torch.float32, rows.shape)
    torch.testing.assert_close(found.double(), explicit(rows, rotation, back), rtol=0, atol=2e-5)


@pytest.mark.parametrize("size", [1, 2, 16, 64, 20, 344])
@pytest.mark.parametrize("back", [False, True])
def test_a_single_factor_is_the_definition_to_the_last_digit(size: int, back: bool) -> None:
    assert len(factors(size)) <= 1
    rotation, rows = Rotation.random(size, seed=2), random(2, 7, size)
    assert torch.equal(rotated_rows(rows, rotation, back), rotated_rows.definition(rows, rotation, back))


def test_rows_are_divided_among_threads() -> None:
    rotation, rows, before = Rotation.random(576, seed=0), random(301, 576), torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        found = rotated_rows(rows, rotation)
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(found.double(), explicit(rows, rotation, False), rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_result_has_the_dtype_of_x(dtype: torch.dtype) -> None:
    rotation, x = Rotation.random(576, seed=0), random(2, 3, 576).to(dtype)
    found = rotated(x, rotation)
    assert found.dtype is dtype
    expected = explicit(x, rotation, False).to(dtype)
    torch.testing.assert_close(
        found, expected, rtol=torch.finfo(dtype).eps if dtype.itemsize < 8 else 0, atol=1e-5
    )


@pytest.mark.parametrize("back", [False, True])
def test_the_gradient_is_that_of_the_matrix(back: bool) -> None:
    rotation, x = Rotation.random(48, seed=0), random(4, 48).requires_grad_()
    weights, matrix = random(4, 48, seed=1), rotation.matrix()
    (rotated(x, rotation, back) * weights).sum().backward()
    torch.testing.assert_close(x.grad, weights @ (matrix.T if back else matrix), rtol=0, atol=1e-5)


def test_views_are_rows_too() -> None:
    rotation, rows = Rotation.random(96, seed=0), random(96, 10)
    assert torch.equal(rotated_rows(rows.T, rotation), rotated_rows(rows.T.contiguous(), rotation))


def test_the_definition_runs_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(rotated_rows.versions, Kernel.cpu, f"{__name__}:refused")
    rotation, rows = Rotation.random(576, seed=0), random(2, 576)
    with using(Kernel.reference):
        assert torch.equal(rotated(rows, rotation), rotation.apply(rows))
    with pytest.raises(AttributeError, match="refused"):
        rotated(rows, rotation)


@pytest.mark.parametrize("rounded", [False, True])
def test_layers_rotate_their_inputs_by_the_kernel(rounded: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    rotation, x = Rotation.random(576, seed=0), random(3, 576)
    inner = QuantizedTensor.round(random(16, 576, seed=1), Grid(4, 64))
    layer = CompressedLinear(Rotated(Rotation.random(576, seed=1), Rotated(rotation, inner)), None)
    layer.inputs = ActivationQuantizer(ActivationFormat(8)) if rounded else None
    found = layer(x)
    value = layer.weight.value
    torch.testing.assert_close(core_inputs(value, x), value.core_inputs(x), rtol=0, atol=1e-5)
    exact = x @ value.dequantize().T
    assert 0 < (found - exact).norm() <= (0.02 if rounded else 1e-3) * exact.norm()
    monkeypatch.setitem(rotated_rows.versions, Kernel.cpu, f"{__name__}:refused")
    with pytest.raises(AttributeError, match="refused"):
        layer(x)


def test_torch_compile_takes_it_in_one_graph_with_its_gradient() -> None:
    rotation, x = Rotation.random(48, seed=0), random(3, 48)
    compiled = torch.compile(lambda x: rotated(x * 2, rotation) + 1, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), rotated(2 * x, rotation) + 1, rtol=0, atol=1e-5)
    trained = x.clone().requires_grad_()
    compiled(trained).square().sum().backward()
    expected = 2 * rotated(2 * rotated(2 * x, rotation) + 2, rotation, back=True)
    torch.testing.assert_close(trained.grad, expected, rtol=0, atol=1e-4)
