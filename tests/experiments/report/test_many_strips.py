"""Figures of very many runs: a bounded number of strips, and how many there are."""

import pytest

from experiments.report.drawn import Bar, Bars, Intervals, Item
from experiments.report.render_svg import MOST_STRIPS, draw


@pytest.mark.parametrize("count", [1, MOST_STRIPS, MOST_STRIPS + 1])
def test_the_first_runs_are_drawn_and_all_are_counted(count: int) -> None:
    items = tuple(Item(f"run {k}", 0, 1.0 + k, (k, k + 2.0), "words", True) for k in range(count))
    bars = tuple(Bar(f"run {k}", 0, (1.0, 2.0), "words") for k in range(count))
    for figure in (Intervals("k", "t", "x", items, 1.0), Bars("k", "t", "x", ("a", "b"), bars)):
        drawn = str(draw(figure))
        assert drawn.count('class="strip"') == min(count, MOST_STRIPS)
        assert ("the first 500 of 501 runs" in drawn) == (count > MOST_STRIPS)
        assert "run 0" in drawn
