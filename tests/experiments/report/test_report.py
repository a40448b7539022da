"""The page: figures as data against numbers worked out here, and the file in a real browser at two widths."""

import json
import re
import shutil
import subprocess
from dataclasses import replace
from html import escape, unescape
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments.report import forest as forests
from experiments.report import heat_maps, render_matplotlib, render_svg
from experiments.report import old_pareto as pareto
from experiments.report.__main__ import figures, kinds_of
from experiments.report.colours import DARK, LIGHT, look
from experiments.report.comparable import groups
from experiments.report.drawn import (
    Bar,
    Bars,
    Chart,
    HeatMap,
    HeatMaps,
    Intervals,
    Item,
    Line,
    Point,
)
from experiments.report.page import Report, collect, headline, html
from experiments.report.scale import Scale, around
from tests.experiments.rows import failed, finished, store

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_browser = pytest.mark.skipif(
    BROWSER is None, reason="no chromium or google-chrome on this system; apt-get install chromium"
)
NASTY = "<script>alert('&')</script>"


@pytest.fixture
def results(tmp_path: Path) -> Path:
    rows = [finished(method, bits) for method in ("sinq", "rtn", "hqq") for bits in (4, 3)]
    store(
        tmp_path,
        finished("none"),
        *rows,
        finished("none", text="u"),
        finished("sinq", text="u"),
        failed(reason=NASTY),
    )
    (tmp_path / "runs/torn.json").write_text("{")
    return tmp_path


@pytest.fixture
def report(results: Path) -> Report:
    return collect(results)


def test_rows_of_different_protocols_are_in_different_groups(report: Report) -> None:
    assert [[entry.row["run_id"] for entry in section.group.entries] for section in report.sections] == [
        ["none4t", "hqq4t", "hqq3t", "rtn4t", "rtn3t", "sinq4t", "sinq3t"],
        ["none4u", "sinq4u"],
    ]
    assert (len(report.failed), list(report.unreadable)) == (1, ["torn.json"])


def test_bits_make_a_line_and_other_options_a_line_of_their_own() -> None:
    (group,) = groups(
        [finished("sinq"), finished("sinq", 3), finished("sinq", group_size=32), finished("none")]
    )
    families = {entry.row["run_id"]: entry.family for entry in group.entries}
    assert families == {
        "none4t": "none",
        "sinq4t": "sinq group_size=64",
        "sinq3t": "sinq group_size=64",
        "sinq4t32": "sinq group_size=32",
    }
    (bits, _) = pareto.charts(group)
    assert {line.name: [point.x for point in line.points] for line in bits.lines}["sinq group_size=64"] == [
        3.5,
        4.5,
    ]


def test_the_front_is_what_no_other_point_beats() -> None:
    places = np.random.default_rng(0).integers(0, 12, (40, 2))
    points = [Point(float(x), float(y), "") for x, y in places]
    unbeaten = {(p.x, p.y) for p in points if not any(q != p and q.x <= p.x and q.y <= p.y for q in points)}
    assert {(p.x, p.y) for p in pareto.front(points)} == unbeaten


def test_a_perplexity_that_is_no_number_is_said_and_not_drawn() -> None:
    row = finished("rtn", 3)
    row["metrics"]["perplexity"]["value"] = float("inf")
    (group,) = groups([finished("none"), finished("sinq"), row])
    chart = pareto.charts(group)[0]
    assert [line.name for line in chart.lines] == ["sinq"]
    assert "rtn 3-bit g64" in chart.note


def test_figures_have_the_rows_numbers(report: Report) -> None:
    found = {figure.key: figure for figure in report.sections[0].figures}
    chart, forest, heat = found["pareto_bytes"], found["forest"], found["relative_error"]
    assert isinstance(chart, Chart)
    assert isinstance(forest, Intervals)
    assert isinstance(heat, HeatMaps)
    assert chart.level == ("dense", report.sections[0].group.rows[0]["metrics"]["perplexity"]["value"])
    assert [item.name for item in forest.items] == [
        "hqq 4-bit g64",
        "hqq 3-bit g64",
        "rtn 4-bit g64",
        "rtn 3-bit g64",
    ]
    assert forest.items[2].value == pytest.approx(0.1, abs=0.005)
    assert all(item.decided and item.ends[0] < item.value < item.ends[1] for item in forest.items)
    assert "95 % intervals over 20 windows; hollow: the interval holds 0" in forest.note
    assert (heat.kinds, heat.blocks) == (("q_proj", "down_proj"), ("0", "1", "2"))
    assert heat.maps[0].values == pytest.approx(2**-4.5 * np.array([[1, 3, 5], [2, 4, 6]]))
    latency = found["latency_decode"]
    assert isinstance(latency, Intervals)
    assert [latency.items[0].value, *latency.items[0].ends] == pytest.approx([2, 2, 2.5])
    assert latency.items[0].label == "2.00×, 10 → 20 tok/s"
    assert "spread of 2 rounds" in latency.note


def test_marks_without_an_interval_are_neither_full_nor_hollow() -> None:
    """Few windows, and one round of a latency: the mark is faint and has no line."""
    rows = [finished("sinq"), finished("rtn"), finished("hqq")]
    for row in rows:
        row["metrics"]["perplexity"]["windows"] = 5
        row["samples"]["perplexity"] = {"window_nll": row["samples"]["perplexity"]["window_nll"][:5]}
        row["samples"]["latency"]["seconds"]["decode"] = {"dense": [1.0], "compressed": [0.5]}
    (group,) = groups(rows)
    counterparts = forests.counterparts(group, None)
    assert counterparts is not None
    pairs = zip(group.rows, counterparts.comparisons, strict=True)
    found = forests.forest(group, {row["run_id"]: each for row, each in pairs if each}, "sinq")
    (_, decode) = forests.latency(group)
    assert found is not None
    for figure in (found, decode):
        assert {item.look for item in figure.items} == {"faint"}
        assert str(render_svg.draw(figure)).count("faint") == len(figure.items)
        assert render_matplotlib.draw(figure)
    assert "No intervals: 5 are too few windows" in found.note
    assert all(item.label.endswith("too few windows") for item in found.items)
    assert "spread" not in decode.note
    undecided = Item("a", 0, 0.1, (-0.1, 0.3), "", decided=False)
    assert (undecided.look, replace(undecided, decided=True).look) == ("hollow", "")


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("model.layers.11.self_attn.q_proj", ("self_attn.q_proj", "11")),
        ("transformer.h.3.mlp.c_fc", ("mlp.c_fc", "3")),
        ("model.layers.2.mlp.experts.7.up_proj", ("mlp.experts.up_proj", "2")),
        ("lm_head", ("lm_head", "–")),
    ],
)
def test_a_layers_place_is_read_from_its_name(name: str, place: tuple[str, str]) -> None:
    assert heat_maps.kind_and_block(name) == place


def test_a_reference_that_means_several_rows_is_told_and_costs_other_groups_nothing(results: Path) -> None:
    twin = finished("sinq") | {"run_id": "twin"}
    twin["options"]["method"]["early_stop"] = False
    store(results, twin, finished("rtn", text="u"))
    first, second = collect(results).sections
    assert any("fits several rows, so no comparison" in note for note in first.notes)
    assert not second.notes
    assert "forest" in [figure.key for figure in second.figures]


def test_one_ambiguous_row_costs_the_others_nothing(results: Path) -> None:
    """Of seven runs only the 4-bit ones have two counterparts."""
    twin = finished("sinq") | {"run_id": "twin"}
    twin["options"]["method"]["early_stop"] = False
    store(results, twin)
    (forest,) = [figure for figure in collect(results).sections[0].figures if figure.key == "forest"]
    assert [item.name for item in forest.items] == ["hqq 3-bit g64", "rtn 3-bit g64"]


def test_the_page_is_titled_by_what_was_run_and_names_no_folder(results: Path) -> None:
    report = collect(results)
    assert report.title == "SINQ harness – m on t and m on u, 9 runs, commit 0123456, 2026-01-02"
    page = html(report)
    assert f"<title>{report.title}</title>" in page
    assert str(results) not in page
    assert "/" + results.name not in page
    more = [finished("rtn", text=text) | {"run_id": text} for text in "vw"]
    more[0]["provenance"]["finished_at"] = "2026-03-04T00:00:00+00:00"
    assert headline([entry.row for entry in report.sections[0].group.entries] + more) == (
        "m on t, m on v and 1 more, 9 runs, commit 0123456, 2026-01-02 to 2026-03-04"
    )


def test_groups_of_equal_name_get_their_protocol(tmp_path: Path) -> None:
    few = finished("sinq") | {"run_id": "few"}
    few["metrics"]["perplexity"]["windows"] = 10
    few["samples"]["perplexity"] = {"window_nll": few["samples"]["perplexity"]["window_nll"][:10]}
    store(tmp_path, finished("none"), finished("sinq"), few)
    titles = [section.group.title for section in collect(tmp_path).sections]
    assert sorted(titles) == ["m on t, 10 windows", "m on t, 20 windows"]


def test_only_some_runs_leaves_out_failed_ones_without_a_stop(results: Path) -> None:
    """A failed row of the pipeline has no `dense_run_id`."""
    row = failed()
    del row["dense_run_id"]
    store(results, row)
    assert collect(results, only=["method=sinq"]).failed == ()


def test_series_do_not_mix_what_was_done_to_the_layers() -> None:
    rows = [finished("sinq"), finished("sinq", 3)]
    rows[1]["identity"]["layers"] = {"on_misfit": "skip"}
    (group,) = groups(rows)
    assert len({entry.family for entry in group.entries}) == 2


def test_a_reference_nobody_has_is_refused(results: Path) -> None:
    with pytest.raises(
        ValueError, match=r"--against awq names no finished run; give .* one of: hqq, none, rtn, sinq"
    ):
        collect(results, "awq")
    (tmp := results / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty.*has no rows"):
        collect(tmp)


def test_scales_run_from_edge_to_edge_and_ticks_lie_on_them() -> None:
    for scale in (
        Scale(2, 7),
        Scale(20, 60, True),
        Scale(20, 2e6, True),
        around([5.0]),
        around([5.0], log=True),
        around([-1.0, 3.0]),
    ):
        assert (scale.percent(scale.low), scale.percent(scale.high)) == (0, 100)
        ticks = scale.ticks()
        assert 2 <= len(ticks) <= 6
        assert ticks == sorted(ticks)
        assert all(0 <= scale.percent(tick) <= 100 for tick in ticks)
    assert Scale(1, 100, True).percent(10) == 50


def test_figures_for_a_paper_are_png_and_pdf(report: Report, tmp_path: Path) -> None:
    few = replace(report, sections=report.sections[1:])
    files = figures(few, tmp_path / "figures")
    assert {path.suffix for path in files} == {".png", ".pdf"}
    assert len({path.name for path in files}) == 2 * len(few.sections[0].figures)
    assert all(path.read_bytes()[:4] in (b"\x89PNG", b"%PDF") for path in files)
    (forest,) = [
        figure
        for figure in report.sections[0].figures
        if isinstance(figure, Intervals) and figure.key == "forest"
    ]
    assert [label.get_text() for label in render_matplotlib.draw(forest).axes[0].get_yticklabels()] == [
        item.name for item in forest.items
    ]
    with pytest.raises(TypeError, match="str is no figure"):
        render_matplotlib.draw("x")


def test_a_figure_is_the_same_file_twice_and_has_the_colours_of_its_theme(
    report: Report, tmp_path: Path
) -> None:
    one, other = (replace(report, sections=report.sections[1:]) for _ in range(2))
    files = figures(one, tmp_path / "one", ("svg",), ("light", "dark"))
    again = figures(other, tmp_path / "other", ("svg",), ("light", "dark"))
    assert [file.read_bytes() for file in files] == [file.read_bytes() for file in again]
    light, dark = (
        next(file.read_text() for file in files if file.name == f"g2_pareto_bits{end}.svg")
        for end in ("", "-dark")
    )
    chart: Any = next(figure for figure in one.sections[0].figures if figure.key == "pareto_bits")
    (style,) = {line.style for line in chart.lines}
    for theme, drawn, other_theme in ((LIGHT, light, dark), (DARK, dark, light)):
        for colour in (theme.background, theme.ink, theme.methods[look(style)[0]]):
            assert colour.lower() in drawn
            assert colour.lower() not in other_theme
    assert "<text" not in light  # shapes, which look the same without our font


def test_a_perplexity_beyond_all_others_does_not_flatten_the_chart() -> None:
    far = finished("rtn", 2)
    far["metrics"]["perplexity"]["value"] = 1e6
    (group,) = groups([finished("none"), finished("sinq"), finished("rtn"), far])
    chart = pareto.charts(group)[0]
    low = group.rows[0]["metrics"]["perplexity"]["value"]
    assert chart.ceiling == 30 * low
    assert sorted(point.y for line in chart.lines for point in line.points)[-1] == 1e6
    axes = render_matplotlib.draw(chart).axes[0]
    assert axes.get_ylim() == (pytest.approx(low, rel=0.2), pytest.approx(chart.ceiling))
    assert sorted(text.get_text() for text in axes.texts) == ["2", "4", "4"]
    assert "beyond the upper edge" in chart.note
    (near,) = groups([finished("none"), finished("sinq"), finished("rtn")])
    assert pareto.charts(near)[0].ceiling is None


def test_a_method_has_one_colour_and_its_variants_other_marks() -> None:
    rows = [finished(method, group_size=size) for method in ("sinq", "rtn") for size in (32, 64)]
    (group,) = groups([finished("none"), *rows])
    looks = {entry.row["run_id"]: look(entry.style) for entry in group.entries if not entry.is_dense}
    assert len(set(looks.values())) == 4
    for method in ("sinq", "rtn"):
        assert len({colour for run_id, (colour, _) in looks.items() if run_id.startswith(method)}) == 1
    assert looks["sinq4t32"][0] != looks["rtn4t32"][0]


def test_only_some_runs_and_always_the_dense_ones(results: Path) -> None:
    first, second = collect(results, only=["method=sinq,bits=3", "method=rtn,text=t,bits=4"]).sections
    assert {entry.row["run_id"] for entry in first.group.entries} == {"none4t", "sinq3t", "rtn4t"}
    assert {entry.row["run_id"] for entry in second.group.entries} == {"none4u"}
    with pytest.raises(ValueError, match="method=awq fits none of 9 runs"):
        collect(results, only=["method=awq"])
    with pytest.raises(ValueError, match="width in width=3 is nothing that a run was chosen by"):
        collect(results, only=["width=3"])


def test_a_kind_of_figure_that_there_is_not_is_refused() -> None:
    assert kinds_of("svg,png") == ("svg", "png")
    with pytest.raises(ValueError, match="--format gif is not possible; choose from png, pdf, svg"):
        kinds_of("png,gif")


def test_the_page_needs_no_network_and_escapes_what_rows_say(report: Report) -> None:
    page = html(report)
    assert not re.findall(
        r"(?:src|href)\s*=\s*[\"']?(?!#|data:)[^\"'>\s]+|url\(|@import|fetch\(|XMLHttp", page
    )
    assert NASTY not in page
    assert "&lt;script&gt;alert" in page


PROBE_HEAD = """<script>
window.problems = [];
addEventListener("error", event => problems.push(String(event.message)));
for (const kind of ["error", "warn"]) console[kind] = (...words) => problems.push(words.join(" "));
</script>"""
PROBE = """<script>
const rows = () => [...document.querySelectorAll("#runs tbody tr")];
const heads = () => [...document.querySelectorAll("#runs th")];
const runs = () => rows().filter(row => !row.hidden).map(row => row.cells[0].textContent);
const column = name => heads().findIndex(each => each.textContent === name);
const values = name => rows().map(row => row.cells[column(name)].textContent);
const click = name => document.querySelectorAll("#runs th button")[column(name)].click();
const type = (element, words, kind) => { element.value = words; element.dispatchEvent(new Event(kind)); };
const said = {};
click("ppl"); said.up = values("ppl");
click("ppl"); said.down = values("ppl");
click("run"); said.names = values("run");
click("ΔNLL"); said.delta = values("ΔNLL");
type(document.getElementById("words"), "SINQ 3-bit", "input"); said.words = runs();
type(document.getElementById("words"), "", "input");
type(document.querySelector("select"), "rtn", "change"); said.menu = runs();
said.count = document.getElementById("count").textContent;
type(document.querySelector("select"), "", "change");
document.querySelectorAll("details").forEach(each => { each.open = true; });
const hover = element => { element.dispatchEvent(new PointerEvent("pointerover", {bubbles: true}));
  const tip = document.getElementById("tip"); return tip.hidden ? null : tip.textContent; };
said.mark = hover(document.querySelector(".plot path.mark"));
said.cell = hover(document.querySelector("#g1_relative_error .map rect"));
said.away = hover(document.querySelector("h1"));
said.inner = innerWidth;
said.wide = document.documentElement.scrollWidth;
said.out = [...document.querySelectorAll("body *")]
  .filter(each => !each.closest(".scroll") && getComputedStyle(each).display !== "none"
    && each.getBoundingClientRect().right > innerWidth + 1)
  .map(each => `${each.tagName} ${each.textContent.slice(0, 30)}`);
said.problems = problems;
const pre = parent.document.createElement("pre");
parent.document.body.append(Object.assign(pre, {textContent: JSON.stringify(said)}));
</script>"""


def probed(report: Report, folder: Path, width: int) -> dict[str, object]:
    """Return findings of the script of the page in a frame (a window cannot be as narrow as a telephone)."""
    page = html(report).replace("<head>", f"<head>{PROBE_HEAD}", 1).replace("</body>", f"{PROBE}</body>", 1)
    file = folder / f"probed_{width}.html"
    file.write_text(
        f'<iframe width="{width}" height="900" style="border: 0" srcdoc="{escape(page)}"></iframe>'
    )
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        f"--user-data-dir={folder / 'browser'}",
    ]
    done = subprocess.run(
        [str(BROWSER), *flags, "--dump-dom", file.as_uri()],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    found = re.search(r"<pre>(.*)</pre></body>", done.stdout, re.DOTALL)
    assert found, done.stdout[-500:]
    return json.loads(unescape(found[1]))


@needs_browser
@pytest.mark.parametrize("width", [1280, 400])
def test_the_page_works_in_a_browser(report: Report, tmp_path: Path, width: int) -> None:
    said = probed(report, tmp_path, width)
    assert said["problems"] == []
    assert said["inner"] == width
    assert (said["out"], said["wide"]) == ([], width)
    shown = sorted(
        row["metrics"]["perplexity"]["value"] for section in report.sections for row in section.group.rows
    )
    assert [float(str(words)) for words in said["up"]] == pytest.approx(shown, abs=6e-4)
    assert said["down"] == said["up"][::-1]  # type: ignore[index]
    assert said["names"] == sorted(said["names"])  # type: ignore[call-overload]
    assert said["delta"][-5:] == ["–"] * 5  # type: ignore[index]  # empty cells are last
    assert said["words"] == ["sinq 3-bit g64"]
    assert said["menu"] == ["rtn 4-bit g64", "rtn 3-bit g64"] or said["menu"] == [
        "rtn 3-bit g64",
        "rtn 4-bit g64",
    ]
    assert said["count"] == "2 of 9 runs"
    assert "hqq 3-bit g64\nperplexity" in str(said["mark"])
    assert re.fullmatch(r"\w+ \d-bit g\d+\nq_proj, block 0: ≈ 0\.\d+", str(said["cell"]))
    assert said["away"] is None


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("letters", [4, 45, 150])
def test_names_of_any_length_leave_room_for_the_axes(letters: int) -> None:
    name, point = "n" * letters, Point(3.0, 20.0, "a hint", "4")
    figures = (
        Chart("c", "a title", "x", "y", (Line(name, 0, (point,)),)),
        Intervals("i", "a title", "x", (Item(name, 0, 1.0, (0.5, 2.0), "1", True),), 1.0),
        Bars("b", "a title", "x", ("part",), (Bar(name, 0, (1.0,), "1"),)),
        HeatMaps("h", "a title", (name[:30],), ("0", "1"), (HeatMap("id", name[:30], ((0.1, 0.2),)),)),
    )
    for figure in figures:
        canvas = render_matplotlib.draw(figure)
        canvas.savefig(BytesIO(), format="png", dpi=40)
        width = canvas.get_size_inches()[0]
        assert canvas.axes[0].get_position().width * width > 2
