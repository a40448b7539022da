"""Figures as files: kinds, themes, and the same bytes for the same rows."""

import subprocess
import sys
from pathlib import Path

import pytest

from experiments.report import export
from experiments.report.__main__ import figures, kinds_of
from experiments.report.figure import WIDTH
from experiments.report.page import Report, collect
from experiments.report.theme import DARK, LIGHT
from tests.conftest import ROOT
from tests.experiments.rows import finished, store

START = {"png": b"\x89PNG", "pdf": b"%PDF", "svg": b"<svg"}


@pytest.fixture
def report(tmp_path: Path) -> Report:
    store(tmp_path, finished("none"), finished("sinq"), finished("rtn", group_size=32))
    return collect(tmp_path)


def test_every_figure_is_written_in_every_kind(report: Report, tmp_path: Path) -> None:
    files = figures(report, tmp_path / "figures", ("png", "pdf", "svg"))
    names = {f"g1_{figure.key}.{kind}" for figure in report.sections[0].figures for kind in START}
    assert {path.name for path in files} == names == {path.name for path in (tmp_path / "figures").iterdir()}
    assert all(path.read_bytes().startswith(START[path.suffix[1:]]) for path in files)


def test_a_file_has_the_colours_of_its_theme_and_its_title(report: Report, tmp_path: Path) -> None:
    files = {path.name: path for path in figures(report, tmp_path / "f", ("svg",), ("light", "dark"))}
    light, dark = (files[f"g1_pareto_bits{end}.svg"].read_text() for end in ("", "-dark"))
    for theme, drawn, other in ((LIGHT, light, dark), (DARK, dark, light)):
        for colour in (theme.background, theme.ink, *theme.methods[:2]):
            assert colour in drawn
            assert colour not in other
    assert "Perplexity over bits per weight" in light
    figure = report.sections[0].figures[0]
    assert figure.spec["width"] == "container"
    assert figure.standalone(LIGHT)["width"] == WIDTH


@pytest.mark.parametrize("kind", list(START))
def test_the_same_figure_is_the_same_file_whatever_was_drawn_before(report: Report, kind: str) -> None:
    first, second, *_ = report.sections[0].figures
    before = export.image(first, LIGHT, kind)
    export.image(second, DARK, "svg")
    assert export.image(first, LIGHT, kind) == before


def test_another_process_writes_the_same_bytes(report: Report, tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    here = export.save(report.sections[0].figures[0], tmp_path / "here/g1_pareto_bits", LIGHT, list(START))
    code = (
        "import sys; from pathlib import Path\n"
        "from experiments.report import export, page; from experiments.report.theme import LIGHT\n"
        "figure = page.collect(Path(sys.argv[1])).sections[0].figures[0]\n"
        "export.save(figure, Path(sys.argv[2]) / 'there', LIGHT, ('png', 'pdf', 'svg'))"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path), str(tmp_path)], check=True, cwd=ROOT)
    for path in here:
        assert path.read_bytes() == (tmp_path / f"there{path.suffix}").read_bytes(), path.suffix


def test_data_from_an_address_is_refused(report: Report, tmp_path: Path) -> None:
    figure = report.sections[0].figures[0]
    spec = {**figure.spec, "data": {"url": "https://example.org/rows.json"}}
    with pytest.raises(ValueError, match=r"example\.org"):
        export.image(type(figure)(figure.key, figure.title, spec, figure.rows), LIGHT, "svg")


def test_a_kind_of_figure_that_there_is_not_is_refused() -> None:
    assert kinds_of("svg,png") == ("svg", "png")
    with pytest.raises(ValueError, match="--format gif is not possible; choose from png, pdf, svg"):
        kinds_of("png,gif")


@pytest.mark.parametrize("letters", [4, 45, 150])
def test_names_of_any_length_stand_beside_the_axes_whole(letters: int, tmp_path: Path) -> None:
    row = finished("sinq") | {"name": "n" * letters}
    store(tmp_path / "long", finished("none"), row)
    found = {figure.key: figure for figure in collect(tmp_path / "long").sections[0].figures}
    assert f">{'n' * letters}<" in export.image(found["time"], LIGHT, "svg").decode()
