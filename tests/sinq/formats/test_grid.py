import pytest

from sinq import Grid, Levels, NotApplicable


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"bits": 7}, r"bits=7 .*\(2, 3, 4, 5, 6, 8\)"),
        ({"group_size": 1}, "group_size=1 .*from 2"),
        ({"tiling": 3}, "tiling=3"),
        ({"auxiliary_bits": 4}, r"auxiliary_bits=4 .*\(8, 16, 32\)"),
        ({"range_floor": -1.0}, "range_floor"),
    ],
)
def test_an_impossible_value_is_named_with_what_is_accepted(options: dict, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        Grid(**options)


def test_a_table_at_other_bits_is_not_applicable() -> None:
    with pytest.raises(NotApplicable, match="bits=3 is not possible with levels=nf4, whose table has 4 bits"):
        Grid(bits=3, levels=Levels.nf4)


def test_a_grid_fits_where_whole_tiles_cover_the_matrix() -> None:
    assert Grid(group_size=64).fits((7, 576))
    assert not Grid(group_size=128).fits((7, 576))
    assert Grid(group_size=64, tiling=2).fits((192, 576))
    assert not Grid(group_size=64, tiling=2).fits((100, 576))


def test_shrinking_takes_the_largest_size_that_fits() -> None:
    shrunk = Grid(group_size=64).shrunk((64, 172))
    assert shrunk is not None
    assert shrunk.group_size == 43
    assert Grid(group_size=64, tiling=2).shrunk((96, 128)).group_size == 32  # type: ignore[union-attr]
    assert Grid(group_size=64).shrunk((8, 127)) is None


def test_tables_are_sorted_and_span_one() -> None:
    for levels in (Levels.nf4, Levels.nf3, Levels.fp4):
        assert list(levels.value) == sorted(levels.value)
        assert (levels.value[0], levels.value[-1], len(levels.value)) == (-1.0, 1.0, 2**levels.bits)
        assert 0.0 in levels.value
