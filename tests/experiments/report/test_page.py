"""The page in a real browser: what a reader does with it, and what a reader sees."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from experiments.compare.paired import Verdict, compare
from experiments.report.page import collect, html
from experiments.results.record import Row
from tests.experiments.report import many
from tests.experiments.report.browser import draw_all, opened
from tests.experiments.rows import failed, finished, store

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

NASTY = "<script>window.alert('&')</script>"


def rows() -> list[Row]:
    """Seven runs of one group, two of another; one name tries to be a script."""
    compressed = [finished(method, bits) for method in ("sinq", "rtn", "hqq") for bits in (4, 3)]
    compressed[0]["identity"]["method"]["grid"]["tiling"] = 2
    compressed[0]["options"]["method"]["early_stop"] = True
    compressed[0]["provenance"]["command"] = ["run.py", "method=sinq", "text=a b"]
    other = [finished("none", text="u"), finished("sinq", text="u")]
    return [finished("none"), *compressed, *other, failed(reason=NASTY)]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    store(folder, *rows())
    (folder / "page.html").write_text(html(collect(folder)))
    return folder / "page.html"


@pytest.fixture
def page(chromium: "Browser", file: Path) -> Iterator["Page"]:
    with opened(chromium, file) as found:
        yield found


def runs(page: "Page") -> list[str]:
    """Names in the first column."""
    return page.locator("#runs tbody th").all_inner_texts()


def cells(page: "Page", key: str) -> list[str]:
    """Texts of a column, without marks."""
    keys = page.locator("#runs thead button").evaluate_all("all => all.map(each => each.dataset.column)")
    column = page.locator(f"#runs tbody tr > :nth-child({keys.index(key) + 1})")
    return [re.sub(r"^([★≈°])?(best|not)?[^:]*: |^[★≈°]", "", text) for text in column.all_text_contents()]


def heading(page: "Page", key: str) -> None:
    page.click(f"#runs thead [data-column={key}]")


def choose(page: "Page", menu: str, *values: str) -> None:
    """Check boxes of a menu, and close it."""
    found = page.locator("details.menu", has_text=re.compile(f"^{menu}:"))
    found.locator("summary").click()
    for value in values:
        found.locator(f"input[value='{value}']").check()
    page.keyboard.press("Escape")


def test_a_heading_sorts_and_turns_the_order_round(page: "Page") -> None:
    heading(page, "perplexity")
    rising = [float(text) for text in cells(page, "perplexity")]
    assert rising == sorted(rising)
    assert page.get_attribute("#runs th[aria-sort]", "aria-sort") == "ascending"
    heading(page, "perplexity")
    assert [float(text) for text in cells(page, "perplexity")] == rising[::-1]
    assert page.get_attribute("#runs th[aria-sort]", "aria-sort") == "descending"
    for _ in range(2):
        heading(page, "delta_nll")
        assert cells(page, "delta_nll")[-5:] == ["–"] * 5  # empty cells are last both ways
    assert page.evaluate("document.activeElement.dataset.column") == "delta_nll"


def test_filters_act_on_table_sections_and_figures(page: "Page") -> None:
    draw_all(page)
    drawn = page.locator("figure[data-drawn]").first
    before = int(drawn.get_attribute("data-drawn") or 0)
    choose(page, "method", "rtn", "hqq")
    choose(page, "bits", "3")
    assert sorted(runs(page)) == ["hqq 3-bit g64", "rtn 3-bit g64"]
    assert page.inner_text("#count") == "2 of 9 runs"
    assert page.locator("main > section:visible").count() == 2  # the table and one of two groups
    assert page.locator("nav a:visible").count() == 2
    drawn.scroll_into_view_if_needed()
    page.wait_for_function(
        "before => document.querySelector('figure[data-drawn]').dataset.drawn < before", arg=before
    )
    page.fill("#words", "RTN g64")
    assert runs(page) == ["rtn 3-bit g64"]
    page.click("#reset")
    assert page.inner_text("#count") == "9 runs"
    assert not page.is_visible("#reset")


def test_a_link_gives_the_view_and_back_the_one_before(page: "Page", chromium: "Browser", file: Path) -> None:
    choose(page, "method", "sinq", "rtn")
    choose(page, "columns", "id")
    heading(page, "perplexity")
    heading(page, "perplexity")
    page.fill("#words", "3-bit")
    page.click("#runs tbody tr:first-child td:nth-child(3)")
    view = page.inner_text("#runs"), page.inner_text("#panel")
    link = page.url.partition("#")[2]
    assert "method=rtn,sinq" in link
    assert "sort=-perplexity" in link
    assert "words=3-bit" in link
    with opened(chromium, file, f"#{link}") as other:
        assert (other.inner_text("#runs"), other.inner_text("#panel")) == view
        assert other.locator("#runs tr.picked").count() == 1
    page.go_back()
    assert not page.is_visible("#panel")
    page.go_back()
    assert page.input_value("#words") == ""
    assert len(runs(page)) == 5
    for _ in range(5):  # two ways of sorting, the columns, two methods
        page.go_back()
    assert len(runs(page)) == 9


def test_a_link_to_what_is_not_there_says_so(chromium: "Browser", file: Path) -> None:
    with opened(chromium, file, "#method=sinq,awq&picked=0123&colour=red&sort=size&words=%zz") as page:
        assert page.inner_text("#notice") == (
            "The link asks for what is not on this page: method awq; run 0123; colour=red; column size."
        )
        assert page.input_value("#words") == "%zz"
        page.fill("#words", "")
        assert not page.is_visible("#notice")
        assert {name.split()[0] for name in runs(page)} == {"sinq"}


def test_columns_are_the_readers_choice(page: "Page") -> None:
    before = page.locator("#runs thead th").count()
    choose(page, "columns", "id", "verdict")
    assert page.locator("#runs thead th").count() == before + 2
    assert set(cells(page, "verdict")) == {"worse", "–"}
    assert "sinq4t" in cells(page, "id")


def test_a_run_is_picked_everywhere_by_mouse_and_keyboard(page: "Page") -> None:
    page.click("#runs tbody tr:has-text('sinq 4-bit g64') td >> nth=2")
    panel = page.locator("#panel")
    assert panel.locator("h2").inner_text().startswith("sinq 4-bit g64")
    options = panel.locator(".parts section").first
    assert options.locator("> dl dt").all_inner_texts()[:2] == ["method.grid.bits", "method.grid.group_size"]
    assert "early_stop" not in options.locator("> dl").inner_text()
    assert "early_stop" in (options.locator("details").text_content() or "")
    assert "python run.py method=sinq 'text=a b'" in panel.inner_text()
    assert "0123456789" in panel.inner_text()
    assert "Picked sinq 4-bit g64" in page.inner_text("#said")
    page.keyboard.press("Escape")
    assert not panel.is_visible()
    assert page.locator("#runs tr.picked").count() == 0
    page.focus("#runs tbody button[tabindex='0']")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    assert page.locator("#runs tr.picked th").inner_text() == runs(page)[1]
    assert page.get_attribute("#runs tr.picked button", "aria-pressed") == "true"
    page.keyboard.press("Enter")
    assert not panel.is_visible()


def test_a_point_of_a_figure_picks_its_run(page: "Page") -> None:
    figure = page.locator("figure[data-figure]").first
    figure.scroll_into_view_if_needed()
    page.wait_for_selector("figure[data-drawn] svg .mark-symbol path")
    figure.locator("svg .mark-symbol path").first.click(force=True)
    picked = page.locator("#runs tr.picked").get_attribute("data-id")
    assert f"picked={picked}" in page.url
    page.mouse.move(0, 0)
    figure.locator("svg .mark-symbol path").first.hover(force=True)
    assert page.inner_text("#tip").startswith("run")


def test_the_table_is_copied_as_it_is_shown(page: "Page") -> None:
    choose(page, "method", "rtn")

    def copied(kind: str) -> list[str]:
        page.click(f"#copy-{kind}")
        page.wait_for_function("document.getElementById('said').textContent.startsWith('Copied 2 runs')")
        return str(page.evaluate("navigator.clipboard.readText()")).splitlines()

    head, rule, first, _ = copied("markdown")
    assert head.startswith("| run | model and text | ppl |")
    assert rule.count("---") == head.count("|") - 1
    assert first.startswith("| rtn 4-bit g64 | m on t | **")
    latex = copied("latex")
    assert latex[0].startswith("\\begin{tabular}{llr")
    assert [latex[1], latex[3], latex[-2]] == ["\\toprule", "\\midrule", "\\bottomrule"]
    assert "20.0\\%" in latex[4]
    shown = copied("csv")
    exact = finished("rtn", 4)["metrics"]["perplexity"]["value"]
    assert float(shown[1].split(",")[2]) == pytest.approx(exact, rel=1e-8)


@pytest.mark.parametrize(
    "methods", [["sinq", "rtn"], ["rtn", "hqq"], ["sinq", "hqq"], ["sinq", "rtn", "hqq"]]
)
def test_marks_agree_with_the_paired_comparisons(chromium: "Browser", file: Path, methods: list[str]) -> None:
    expected: dict[str, str] = {}
    shown = [row for row in rows() if row["metrics"] and row["choices"]["method"] in methods]
    for text in "tu":
        expected |= significance([row for row in shown if row["choices"]["text"] == text])
    with opened(chromium, file, f"#method={','.join(methods)}") as page:
        found = page.evaluate("[...table.shown().marks].filter(([key]) => key.endsWith(' perplexity'))")
        assert {key.split()[0]: mark for key, mark in found} == expected
        assert page.locator("#runs td:nth-child(3) .sign").count() == len(expected)


def significance(group: list[Row]) -> dict[str, str]:
    """Return the marks of perplexities: one run is best, or several are not distinguishable."""
    if len(group) < 2:
        return {}
    best = min(group, key=lambda row: row["metrics"]["perplexity"]["value"])
    verdicts = {row["run_id"]: compare(row, best).verdict for row in group if row is not best}
    alike = [run for run, verdict in verdicts.items() if verdict is Verdict.not_distinguishable]
    return dict.fromkeys([best["run_id"], *alike], "alike" if alike else "best")


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
def test_accessible_and_not_wider_than_the_window(
    chromium: "Browser", file: Path, width: int, theme: str
) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    with opened(chromium, file, "#picked=rtn3t&method=rtn,sinq", width, theme) as page:
        draw_all(page)
        assert page.evaluate("document.documentElement.scrollWidth") == width
        found = axe.run(page).response["violations"]
        assert [(each["id"], each["impact"]) for each in found] == []
        page.locator("details.menu summary").first.click()
        assert axe.run(page, "details.menu").response["violations"] == []


def test_the_theme_follows_the_readers(page: "Page") -> None:
    figure = page.locator("figure[data-figure]").first
    figure.scroll_into_view_if_needed()
    background = "getComputedStyle(document.querySelector('figure svg')).backgroundColor"
    page.wait_for_selector("figure[data-drawn] svg")
    light = page.evaluate(background)
    page.emulate_media(color_scheme="dark")
    page.wait_for_function(f"{background} !== '{light}'", polling=50)
    assert page.evaluate(background) == page.evaluate("getComputedStyle(document.body).backgroundColor")


def test_print_has_all_figures_on_white_and_no_controls(chromium: "Browser", file: Path) -> None:
    with opened(chromium, file, theme="dark") as page:
        page.evaluate("window.print = () => { window.printed = true }")
        page.keyboard.press("Control+p")
        page.wait_for_function("window.printed")
        assert page.locator("figure:not([data-drawn])").count() == 0
        page.emulate_media(media="print", color_scheme="dark")
        assert not page.is_visible("#words")
        assert not page.is_visible("#print")
        white = "rgb(255, 255, 255)"
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == white
        assert (
            page.evaluate("getComputedStyle(document.querySelector('figure svg')).backgroundColor") == white
        )
        assert page.pdf().startswith(b"%PDF")


def test_a_page_of_failed_runs_alone_names_them(chromium: "Browser", tmp_path: Path) -> None:
    store(tmp_path, failed(reason=NASTY))
    (tmp_path / "page.html").write_text(html(collect(tmp_path)))
    with opened(chromium, tmp_path / "page.html") as page:
        assert NASTY in page.inner_text("details.warning")
        assert page.inner_text("#count") == "0 runs"


def test_two_thousand_runs(chromium: "Browser", tmp_path: Path) -> None:
    many.store(tmp_path, finished("sinq"), 2000)
    (tmp_path / "page.html").write_text(html(collect(tmp_path)))
    with opened(chromium, tmp_path / "page.html") as page:
        assert page.inner_text("#count") == "2000 runs"
        assert page.locator("#runs tbody tr").count() == 200
        page.click("#more")
        assert page.locator("#runs tbody tr").count() == 400
        choose(page, "method", "sinq")
        choose(page, "bits", "3")
        expected = [row for row in many.rows(finished("sinq"), 2000) if re.match("sinq 3-bit", row["name"])]
        assert page.inner_text("#count") == f"{len(expected)} of 2000 runs"
        page.evaluate("history.back()")
        page.wait_for_function("document.getElementById('count').textContent.startsWith('200 ')")
        last = list(many.rows(finished("sinq"), 1999))[-1]["run_id"]
        page.evaluate("run => { location.hash = `picked=${run}` }", last)
        page.wait_for_selector("#runs tr.picked")
        assert page.get_attribute("#runs tr.picked", "data-id") == last
        page.evaluate("dispatchEvent(new Event('beforeprint'))")
        assert page.locator("#runs tbody tr").count() == 2000
