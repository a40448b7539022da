"""Tables at any width: every number and id that is printed is whole, and what is left out is named."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from experiments.common import fitted
from experiments.common.fitted import ESSENTIAL, Column
from tests.conftest import ROOT
from tests.experiments.rows import failed, finished, store

IDS = st.text("0123456789abcdef", min_size=12, max_size=12)
NAMES = st.lists(
    st.sampled_from(["sinq", "4-bit", "g64", "tiling=2", "exclude=[lm_head,down_proj]", "量化"]), min_size=1
)
NUMBERS = st.floats(1e-4, 1e9).map(lambda value: f"{value:.3f}")


@st.composite
def tables(draw: st.DrawFn) -> list[Column]:
    """Draw a run id, a name of several words, and up to nine columns of numbers."""
    height = draw(st.integers(1, 4))

    def cells(kind: st.SearchStrategy[str]) -> tuple[str, ...]:
        return tuple(draw(st.lists(kind, min_size=height, max_size=height)))

    numbers = [
        Column(f"metric{k}\nunit{k}", cells(NUMBERS), draw(st.integers(0, 99)), right=True)
        for k in range(draw(st.integers(0, 9)))
    ]
    return [Column("run", cells(IDS)), Column("name", cells(NAMES.map(" ".join)), wraps=True), *numbers]


def printed(columns: list[Column], width: int, terminal: bool = True) -> str:
    console = Console(
        file=io.StringIO(), width=width, force_terminal=terminal, color_system=None, markup=False
    )
    fitted.show(console, columns, "title [b]", "say how")
    return console.file.getvalue()  # type: ignore[attr-defined]


@given(tables(), st.integers(10, 200))
def test_what_is_printed_is_whole_and_what_is_not_is_named(columns: list[Column], width: int) -> None:
    table, _, named = printed(columns, width).partition("too narrow for ")
    words = table.split()
    left_out = {column for column in columns if " ".join(column.heading.split()) in named}
    for column in set(columns) - left_out:
        for cell in column.cells:
            for word in cell.split():
                assert words.count(word) >= sum(word in other.split() for other in column.cells)
    for column in left_out:
        assert column.importance < ESSENTIAL
        assert column.heading.split()[0] not in words
    lines = table.splitlines()[1:]
    if len(left_out) < len(columns) - 2:  # something that could be left out is still there
        assert max(map(cell_len, lines)) <= width
    kept = [column.importance for column in columns if column not in left_out]
    assert all(gone.importance <= least for gone in left_out for least in [min(kept)])


@given(tables(), st.integers(10, 200))
def test_a_pipe_is_as_wide_as_its_console_says(columns: list[Column], width: int) -> None:
    assert printed(columns, width, terminal=False) == printed(columns, width)


@pytest.mark.parametrize(("given", "width"), [({}, 100), ({"COLUMNS": "73"}, 73), ({"COLUMNS": "300"}, 300)])
def test_a_pipe_has_100_columns_where_nothing_is_known(
    given: dict[str, str], width: int, tmp_path: Path
) -> None:
    """The listing of rows with all metrics, in a process whose output is a pipe."""
    store(tmp_path, finished("none"), finished("sinq"), finished("rtn", 3), failed(reason="w " * 80))
    environment = {key: value for key, value in os.environ.items() if key != "COLUMNS"}
    command = [sys.executable, "-m", "experiments.results", "--results", str(tmp_path)]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, check=True, env=environment | given
    )
    table, _, below = done.stdout.partition("─\n")
    lines = [*table.splitlines(), *below.splitlines()[:7]]
    assert max(map(cell_len, lines)) <= width
    assert ("too narrow for prefill tok/s" in below) == (width < 200)
    for heading in ("ppl", "bits/w"):
        assert heading in table


@given(tables())
def test_columns_stand_below_each_other(columns: list[Column]) -> None:
    lines = printed(columns, 10_000).partition("─\n")[2].splitlines()
    starts = [cell_len(line[: line.index(cell)]) for line, cell in zip(lines, columns[1].cells, strict=True)]
    assert len(set(starts)) == 1
    assert not [line for line in lines if line != line.rstrip()]


def test_a_table_as_wide_as_its_terminal_is_not_broken() -> None:
    columns = [Column("run", ("0123456789ab",)), Column("ppl", ("12.345",), 5, right=True)]
    width = fitted.table_width(columns)
    assert "12.345" in printed(columns, width)
    assert "too narrow for ppl; say how" in printed(columns, width - 1)


def test_characters_that_steer_a_terminal_are_not_printed() -> None:
    assert fitted.clean("a\x1b[31mb\nc\td\u202ee") == "a [31mb c d e"
    assert "title [b]" in printed([Column("run", ("x",))], 80)
