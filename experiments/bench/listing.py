"""Tables of the results for the terminal and, in Markdown, for the folder. Both show the same cells."""

from typing import Any

from rich.console import Console

from experiments.common import fitted
from experiments.common.fitted import ESSENTIAL, Column

Result = dict[str, Any]
COLUMNS = (
    "", "kernel", "median", "quartiles", "tokens/s", "× baseline", "× peer", "× floor", "first call",
    "bit operations",
)  # fmt: skip
IMPORTANCE = {
    "": ESSENTIAL, "kernel": 20, "median": 90, "quartiles": 40, "tokens/s": 60, "× baseline": 99,
    "× peer": 80, "× floor": 70, "first call": 10, "bit operations": 30,
}  # fmt: skip
"""Column → importance; the least important are left out of a narrow terminal first."""
SOMETIMES = {"tokens/s": "tokens_per_second", "bit operations": "bit_operations"}
"""Columns that only some cases have, and the number that they show."""


def show(case: Result, console: Console) -> None:
    """Print a case as a table that fits the console, and the references of its ratios."""
    cells = list(zip(*rows(case), strict=True))
    columns = [
        Column(name, cells[k], IMPORTANCE[name], right=k > 1, wraps=k < 2)
        for k, name in enumerate(_columns(case))
    ]
    fitted.show(console, columns, heading(case), "all columns: bench.md in the folder written to")
    for line in footing(case):
        console.print(line, soft_wrap=True, style="dim")
    console.print()


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
        number(result["tokens_per_second"]),
        number(result["ratio"]),
        number(result["peer_ratio"]),
        number(result["floor_ratio"]),
        duration(result["first_seconds"]),
        "–" if result["bit_operations"] is None else f"{result['bit_operations']:.3g}",
    )
    return dict(zip(COLUMNS, cells, strict=True))


def duration(seconds: float) -> str:
    """Return seconds as text in s, ms or µs, with three significant digits or all integer digits."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{number(seconds / size)} {unit}"
    return f"{number(seconds / 1e-6)} µs"


def number(value: float | None) -> str:
    """Return a number as text with at least three digits; a dash for None."""
    if value is None:
        return "–"
    return f"{value:.0f}" if value >= 100 else f"{value:#.3g}"
