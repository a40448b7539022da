"""Curves over trainings: from rows to the page, on linear axes."""

from pathlib import Path
from statistics import fmean
from xml.etree import ElementTree

import pytest

from experiments.report import page, trainings
from experiments.report.__main__ import figures
from experiments.report.comparable import groups
from experiments.report.render_svg import draw
from tests.experiments.checkpoints import course
from tests.experiments.rows import finished, store


def test_checkpoints_become_curves_of_what_was_measured() -> None:
    rows = course({0: 2.5, 10: 0.0, 60: 1.3}) + course({0: 2.5, 10: 2.0, 60: 1.0}, rate=0.2)
    (chart,) = trainings.over_steps(rows)
    assert not chart.log
    assert [[(point.x, point.y) for point in line.points] for line in chart.lines] == [
        [(0, 2.5), (10, 0.0), (60, 1.3)], [(0, 2.5), (10, 2.0), (60, 1.0)],
    ]  # fmt: skip
    assert [line.name for line in chart.lines] == [
        "decoder1, learning rate 0.1",
        "decoder1, learning rate 0.2",
    ]
    drawn = str(draw(chart))
    ElementTree.fromstring(f"<div>{drawn}</div>")
    assert "(logarithmic)" not in drawn
    assert trainings.over_steps([finished("none")]) == []


def test_losses_are_means_of_neighbouring_steps() -> None:
    loss = [float(step) for step in range(95)]
    found = trainings.thinned(loss)
    assert list(found)[:2] == [3, 6]
    assert list(found)[-1] == 95
    assert found[3] == 1.0
    assert found[95] == fmean([93.0, 94.0])
    assert trainings.thinned([1.0, 2.0]) == {1: 1.0, 2: 2.0}


def test_a_group_has_the_losses_of_those_that_trained() -> None:
    row = finished("sinq")
    (group,) = groups([finished("none"), row])
    assert trainings.losses(group) is None
    row["samples"] |= {"training": {"loss": [3.0, 2.0, 1.0]}}
    chart = trainings.losses(groups([finished("none"), row])[0])
    assert chart is not None
    assert [(point.x, point.y) for point in chart.lines[0].points] == [(1, 3.0), (2, 2.0), (3, 1.0)]


def test_the_page_and_the_files_have_them(tmp_path: Path) -> None:
    store(tmp_path, *course({0: 2.5, 10: 0.0, 60: 1.3}))
    report = page.collect(tmp_path)
    assert [figure.key for figure in report.over_steps] == ["over_steps_entropy"]
    html = page.html(report)
    assert html.count('id="over_steps_entropy"') == 1
    assert "Entropy of attention over training" in html
    names = {path.name for path in figures(report, tmp_path / "figures", ("svg",))}
    assert "trainings_over_steps_entropy.svg" in names
    store(tmp_path / "plain", finished("none"))
    assert 'id="trainings"' not in page.html(page.collect(tmp_path / "plain"))


@pytest.mark.parametrize("high", [1.0, 100.0])
def test_a_linear_axis_shows_zero(high: float) -> None:
    (chart,) = trainings.over_steps(course({0: 0.0, 1: high, 2: high / 2}))
    assert "NaN" not in str(draw(chart))
