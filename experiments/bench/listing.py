"""Tables of the results: rich for the terminal, Markdown for the folder. Both show the same cells."""

from typing import Any

from rich import box
from rich.console import RenderableType
from rich.table import Table

Result = dict[str, Any]
COLUMNS = (
    "", "kernel", "median", "quartiles", "tokens/s", "× baseline", "× peer", "× floor", "first call",
    "bit operations",
)  # fmt: skip
SOMETIMES = {"tokens/s": "tokens_per_second", "bit operations": "bit_operations"}
"""Columns that only some cases have, and the number that they show."""


def terminal(case: Result) -> RenderableType:
    """Return a case as a table for the terminal."""
    view = Table(
        title=heading(case), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0)
    )
    view.caption, view.caption_justify = "\n".join(footing(case)), "left"
    for number, name in enumerate(_columns(case)):
        view.add_column(name, justify="left" if number < 2 else "right", no_wrap=True)
    for row in rows(case):
        view.add_row(*row)
    return view


def markdown(report: Result) -> str:
    """Return all cases as Markdown, below a line about the machine."""
    provenance = report["provenance"]
    machine = (
        f"{provenance['device']}, threads: {report['options']['threads']},"
        f" torch {provenance['packages']['torch']}, {provenance['finished_at']}"
    )
    return "\n\n".join(["# Bench", machine, *(_section(case) for case in report["cases"])]) + "\n"


def _section(case: Result) -> str:
    columns = _columns(case)
    lines = [_line(columns), _line(["---"] * len(columns)), *(_line(row) for row in rows(case))]
    notes = [f"- {line}" for line in footing(case)]
    return "\n\n".join([f"## {heading(case)}", "\n".join(lines), "\n".join(notes)])


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def heading(case: Result) -> str:
    """Return the title of a case."""
    return f"{case['suite']}: {case['name']}"


def footing(case: Result) -> list[str]:
    """Return the references of the ratios, and the absent contenders, one per line."""
    speed = (
        f"baseline: {case['baseline']};"
        f" floor: bytes at {case['bytes_per_second'] / 1e9:.1f} GB/s, a copy in the same rounds"
    )
    return [speed, *(f"absent: {missing['name']}: {missing['reason']}" for missing in case["absent"])]


def rows(case: Result) -> list[list[str]]:
    """Return the cells of every contender, in the order of the case's columns."""
    return [
        [cell for name, cell in _cells(result).items() if name in _columns(case)]
        for result in case["results"]
    ]


def _columns(case: Result) -> list[str]:
    absent = {
        column
        for column, name in SOMETIMES.items()
        if all(result.get(name) is None for result in case["results"])
    }
    return [name for name in COLUMNS if name not in absent]


def _cells(result: Result) -> dict[str, str]:
    low, high = result["quartiles"]
    cells = (
        result["name"],
        result["kernel"],
        duration(result["median"]),
        f"{duration(low)} – {duration(high)}",
        _number(result["tokens_per_second"]),
        _number(result["ratio"]),
        _number(result["peer_ratio"]),
        _number(result["floor_ratio"]),
        duration(result["first_seconds"]),
        "–" if result["bit_operations"] is None else f"{result['bit_operations']:.3g}",
    )
    return dict(zip(COLUMNS, cells, strict=True))


def duration(seconds: float) -> str:
    """Return seconds as text in s, ms or µs, with three significant digits or all integer digits."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{_number(seconds / size)} {unit}"
    return f"{_number(seconds / 1e-6)} µs"


def _number(value: float | None) -> str:
    """Return a number as text with at least three digits; a dash for None."""
    if value is None:
        return "–"
    return f"{value:.0f}" if value >= 100 else f"{value:#.3g}"
