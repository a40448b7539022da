import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sinq import Sinkhorn, imbalance, sinkhorn_scales
from sinq.algorithms.sinkhorn import to_tiles
from sinq.formats.rounding import divide


def lognormal(rows: int, columns: int, seed: int, spread: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    scales = (spread * torch.randn(rows, 1, generator=generator)).exp() * (
        spread * torch.randn(1, columns, generator=generator)
    ).exp()
    return torch.randn(rows, columns, generator=generator) * scales


def by_hand(tile: np.ndarray, options: Sinkhorn) -> tuple[np.ndarray, np.ndarray]:
    """The algorithm for one tile, in float64 and one step at a time."""
    if options.relative_floors:
        tile = tile / tile.std(ddof=1)

    def deviations(u: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        current = tile / np.exp(v) / np.exp(u)[:, None]
        return current.std(axis=1, ddof=1), current.std(axis=0, ddof=1)

    u, v = np.zeros(tile.shape[0]), np.zeros(tile.shape[1])
    target = np.concatenate(deviations(u, v)).clip(options.std_min, options.std_max).min() + 1e-6
    best, best_score, previous = (u, v), np.inf, np.inf
    for _ in range(options.iterations):
        rows, columns = deviations(u, v)
        both = np.concatenate([rows, columns])
        score = both.max() / max(both.min(), 1e-12)
        if score <= best_score:
            best, best_score = (u, v), score
        if options.early_stop and score > previous:
            break
        previous = score
        moved = []
        for log, std in ((u, rows), (v, columns)):
            step = (std.clip(options.std_min, options.std_max) / target).clip(
                options.step_min, options.step_max
            )
            moved.append((log + np.log(step)).clip(options.log_min, options.log_max))
        u, v = moved
    return np.exp(best[0]), np.exp(best[1])


@pytest.mark.parametrize("relative", [True, False])
@pytest.mark.parametrize("early_stop", [True, False])
@pytest.mark.parametrize("iterations", [1, 2, 5, 8])
def test_every_tile_agrees_with_the_algorithm_in_float64(
    relative: bool, early_stop: bool, iterations: int
) -> None:
    options = Sinkhorn(iterations=iterations, relative_floors=relative, early_stop=early_stop)
    weight = lognormal(24, 32, seed=3)
    row_scale, col_scale = sinkhorn_scales(weight, (12, 16), options)
    for i in range(2):
        for j in range(2):
            rows, columns = by_hand(
                weight[12 * i : 12 * i + 12, 16 * j : 16 * j + 16].double().numpy(), options
            )
            np.testing.assert_allclose(row_scale[12 * i : 12 * i + 12, j], rows, rtol=2e-5)
            np.testing.assert_allclose(col_scale[i, 16 * j : 16 * j + 16], columns, rtol=2e-5)


@settings(deadline=None, max_examples=40)
@given(st.integers(4, 40), st.integers(4, 40), st.floats(0, 2), st.integers(0, 1000))
def test_the_imbalance_never_rises(rows: int, columns: int, spread: float, seed: int) -> None:
    weight = lognormal(rows, columns, seed, spread)
    normalized = divide(weight, *sinkhorn_scales(weight, (rows, columns)))
    assert imbalance(normalized[None]) <= imbalance(weight[None]) * (1 + 1e-5)


@settings(deadline=None, max_examples=20)
@given(st.integers(-20, 20), st.integers(0, 100))
def test_scales_do_not_depend_on_the_scale_of_the_weights(exponent: int, seed: int) -> None:
    weight = 0.02 * lognormal(16, 24, seed)
    for scaled, plain in zip(
        sinkhorn_scales(weight * 2.0**exponent, (16, 24)), sinkhorn_scales(weight, (16, 24)), strict=True
    ):
        assert torch.equal(scaled, plain)


def test_scaling_rows_and_columns_beforehand_hardly_changes_the_balanced_matrix() -> None:
    weight = lognormal(64, 64, seed=0, spread=0.2)
    rows, columns = (0.7 + 0.8 * torch.rand(2, 64, generator=torch.Generator().manual_seed(1))).unbind()

    def balanced(matrix: Tensor) -> Tensor:
        normalized = divide(matrix, *sinkhorn_scales(matrix, (64, 64), Sinkhorn(early_stop=False)))
        return normalized / normalized.std()

    assert (balanced(weight) - balanced(rows[:, None] * weight * columns)).norm() / 64 < 0.02


@pytest.mark.parametrize("std", [1.0, 2e-2, 1e-4, 1e-7])
def test_tiny_weights_are_balanced_like_others(std: float) -> None:
    weight = lognormal(128, 64, seed=0)
    weight *= std / weight.std()
    normalized = divide(weight, *sinkhorn_scales(weight, (128, 64)))
    assert imbalance(weight[None]) > 20
    assert imbalance(normalized[None]) < 5


def test_absolute_floors_leave_tiny_weights_out_of_balance_as_the_release_does() -> None:
    weight = lognormal(128, 64, seed=0)
    weight *= 1e-4 / weight.std()
    normalized = divide(weight, *sinkhorn_scales(weight, (128, 64), Sinkhorn(relative_floors=False)))
    assert imbalance(normalized[None]) > 0.7 * imbalance(weight[None])


@pytest.mark.parametrize("rows", [slice(0, 1), slice(0, 0)])
@pytest.mark.parametrize("columns", [slice(0, 1), slice(0, 0), slice(0, 64)])
def test_zero_rows_and_columns_give_finite_positive_scales(rows: slice, columns: slice) -> None:
    weight = lognormal(128, 64, seed=0)
    weight[rows] = 0
    weight[:, columns] = 0
    for scale in sinkhorn_scales(weight, (128, 64)):
        assert torch.isfinite(scale).all()
        assert (scale > 0).all()


def test_a_dead_column_does_not_keep_the_others_from_being_balanced() -> None:
    weight = lognormal(128, 64, seed=0)
    weight[:, 5] = 0
    normalized = divide(weight, *sinkhorn_scales(weight, (128, 64)))
    alive = [column for column in range(64) if column != 5]
    assert imbalance(normalized[None][:, :, alive]) < 0.3 * imbalance(weight[None][:, :, alive])


def test_a_single_row_is_no_special_case() -> None:
    row_scale, col_scale = sinkhorn_scales(lognormal(1, 32, seed=0), (1, 16))
    assert row_scale.shape == (1, 2)
    assert torch.isfinite(col_scale).all()


def test_tiles_are_in_row_major_order() -> None:
    matrix = torch.arange(24).reshape(4, 6)
    assert torch.equal(to_tiles(matrix, (2, 3))[1], torch.tensor([[3, 4, 5], [9, 10, 11]]))


@pytest.mark.parametrize(
    "options", [{"iterations": 0}, {"step_min": 3.0}, {"log_min": 11.0}, {"std_min": -1.0}]
)
def test_meaningless_constants_are_refused(options: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        Sinkhorn(**options)
