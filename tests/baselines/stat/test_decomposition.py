"""Interpolative decompositions against SciPy, least squares and their own identities, in float64."""

import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from baselines.stat.decomposition import interpolation, pivoted_triangle, tails, triangle
from baselines.stat.sketch import Sketch, SketchKind


def random_matrix(rows: int, columns: int, seed: int = 0) -> Tensor:
    """Columns of different sizes that partly explain each other."""
    generator = torch.Generator().manual_seed(seed)
    draw = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    mix = torch.randn(columns, columns, generator=generator, dtype=torch.float64)
    return draw @ (torch.eye(columns, dtype=torch.float64) + 0.2 * mix) * mix[0].exp()


def error(matrix: Tensor, order: Tensor, mixing: Tensor) -> float:
    """‖M − M[:, I] T‖ with T in the order of columns."""
    kept = matrix[:, order[: len(mixing)]]
    return torch.linalg.matrix_norm(matrix[:, order] - kept @ mixing).item()


@pytest.mark.parametrize(("rows", "columns"), [(200, 48), (48, 48), (20, 48), (100, 1)])
def test_pivots_and_triangle_are_those_of_lapack(rows: int, columns: int) -> None:
    matrix = random_matrix(rows, columns)
    factor, order = pivoted_triangle(matrix)
    expected, pivots = scipy.linalg.qr(matrix.numpy(), mode="r", pivoting=True)
    rank = min(rows, columns)
    assert order[:rank].tolist() == pivots[:rank].tolist()
    signs = factor.diagonal().sign()[:rank, None] * torch.from_numpy(expected).diagonal().sign()[:rank, None]
    assert factor.shape == (columns, columns)
    torch.testing.assert_close(
        (signs * factor[:rank])[:, :rank], torch.from_numpy(expected)[:rank, :rank], rtol=1e-9, atol=1e-9
    )
    sizes = factor.diagonal().abs()
    assert (sizes[1:] <= sizes[:-1] * (1 + 1e-9)).all()


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 24), st.integers(1, 60), st.integers(0, 10**6))
def test_the_error_is_the_norm_of_r22_and_kept_columns_are_exact(columns: int, rows: int, seed: int) -> None:
    matrix = random_matrix(rows, columns, seed)
    factor, order = pivoted_triangle(matrix)
    norm = torch.linalg.matrix_norm(matrix).item()
    errors = tails(factor)
    for kept in range(1, columns + 1):
        mixing = interpolation(factor, kept)
        assert torch.equal(mixing[:, :kept], torch.eye(kept, dtype=torch.float64))
        assert abs(error(matrix, order, mixing) - errors[kept].item()) < 1e-9 * norm
    assert errors[0].item() == pytest.approx(norm)
    assert errors[-1] == 0
    assert (errors[1:] <= errors[:-1]).all()


def test_any_order_gives_the_least_squares_solution() -> None:
    matrix, order = random_matrix(80, 20), torch.randperm(20, generator=torch.Generator().manual_seed(3))
    mixing = interpolation(triangle(matrix[:, order]), 12)
    solved = torch.linalg.lstsq(matrix[:, order[:12]], matrix[:, order[12:]]).solution
    torch.testing.assert_close(mixing[:, 12:], solved, rtol=1e-10, atol=1e-12)


def redundant() -> Tensor:
    """48 columns of which 8 are multiples of others."""
    matrix = random_matrix(400, 48)
    matrix[:, 40:] = matrix[:, :8] * torch.linspace(-3, 4, 8, dtype=torch.float64)
    return matrix


@pytest.mark.parametrize("kept", [40, 44])
@pytest.mark.parametrize("kind", list(SketchKind))
def test_redundant_columns_cost_nothing_with_and_without_a_sketch(kept: int, kind: SketchKind) -> None:
    matrix = redundant()
    factor, order = pivoted_triangle(sketched(matrix, kind, 200))
    mixing = interpolation(factor, kept)
    norm = torch.linalg.matrix_norm(matrix).item()
    assert error(matrix, order, mixing) < 1e-12 * norm
    without = torch.eye(kept, 48, dtype=torch.float64)
    assert error(matrix, order, without) > 1e-3 * norm


def sketched(matrix: Tensor, kind: SketchKind, rows: int) -> Tensor:
    """The sketch of a matrix that comes in four windows."""
    each = len(matrix) // 4
    sketch = Sketch("layer", kind, rows, each, 4, torch.Generator().manual_seed(0))
    for window in matrix.split(each):
        sketch.update(window[None])
    return sketch.matrix()


@pytest.mark.parametrize("kind", [SketchKind.gaussian, SketchKind.count])
def test_a_sketch_keeps_lengths_and_costs_little(kind: SketchKind) -> None:
    matrix = random_matrix(4000, 48)
    small = sketched(matrix, kind, 400)
    assert small.shape == (400, 48)
    lengths = torch.linalg.vector_norm(small, dim=0) / torch.linalg.vector_norm(matrix, dim=0)
    assert ((lengths - 1).abs() < 0.25).all()
    found, exact = (
        error(matrix, order, interpolation(factor, 36))
        for factor, order in map(pivoted_triangle, (small, matrix))
    )
    assert exact * 0.999 < found < 1.15 * exact


def test_without_a_sketch_r_of_all_rows_is_kept_and_short_texts_are_kept_whole() -> None:
    matrix = random_matrix(4000, 16)
    small = sketched(matrix, SketchKind.none, 10)
    assert len(small) < 400 + 1000 + 16 * 5
    torch.testing.assert_close(small.T @ small, matrix.T @ matrix, rtol=1e-10, atol=1e-10)
    for kind in SketchKind:
        assert torch.equal(sketched(matrix[:80], kind, 80), matrix[:80])


def test_inputs_that_are_not_finite_are_refused_with_the_layer() -> None:
    with pytest.raises(ValueError, match="layer: the inputs on the calibration text have NaN or Inf"):
        sketched(torch.full((4, 3), float("inf")), SketchKind.none, 4)
