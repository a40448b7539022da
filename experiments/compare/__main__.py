"""Command that prints two runs side by side."""

import argparse
from collections.abc import Sequence
from math import isnan
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.common import fitted
from experiments.common.console import console
from experiments.common.errors import run_cli
from experiments.common.fitted import ESSENTIAL, Column, clean
from experiments.compare.difference import Difference, changes, layers, metrics
from experiments.compare.paired import MARKS, Verdict, compare, differences
from experiments.compare.query import select_pair
from experiments.results import record
from experiments.results.names import method_names, subject
from experiments.results.record import Row, RowError
from experiments.results.speed import pair, words

HELP = """Two runs: what was different, what came out (paired 95 % intervals over windows), \
which layers changed.

    python -m experiments.compare method=sinq,bits=4 method=rtn,bits=4
    python -m experiments.compare 3f2a 9c41 --results other/folder --layers 3
"""


def main() -> None:
    """Read the command line and print the difference.

    Raises:
        ValueError: an argument names no run, or several.
    """
    parser = argparse.ArgumentParser(
        prog="python -m experiments.compare",
        description=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "one",
        metavar="A",
        help="a run's id, or its beginning; its name; or a query, such as method=sinq,bits=4",
    )
    parser.add_argument("other", metavar="B", help="the same; differences are B − A")
    parser.add_argument("--results", metavar="FOLDER", default="results", type=Path, help="default: results")
    parser.add_argument(
        "--layers", type=int, default=10, metavar="N", help="how many layers are listed; default: 10"
    )
    options = parser.parse_args()
    rows, unreadable = record.read(options.results)
    for name, reason in unreadable.items():
        console.print(f"cannot be read: {options.results / 'runs' / name}: {reason}", soft_wrap=True)
    one, other, notes = select_pair(rows, options.one, options.other)
    for note in notes:
        console.print(note, soft_wrap=True)
    show(one, other, options.results, options.layers)


def show(one: Row, other: Row, results_dir: Path, most: int) -> None:
    """Print settings, metrics and layers in which two rows differ; at most `most` layers."""
    names = method_names([one, other])
    for mark, row, name in zip("AB", (one, other), names, strict=True):
        console.print(f"{mark} {row['run_id']}  {name}, {subject(row)}", soft_wrap=True)
    different = [(path, _cell(a), _cell(b)) for path, a, b in changes(one, other)]
    _print("what was different", ("", "A", "B"), different)
    measured = [_line(metric) for metric in metrics(one, other) if metric.one != metric.other]
    measured += [_speeds(one, other, phase) for phase in ("prefill", "decode")]
    measured = [line for line in measured if any(line[1:])]
    _print("what came out", ("", "A", "B", "B − A", "95 %"), measured)
    if any(line[-1].endswith(MARKS[Verdict.not_distinguishable]) for line in measured):
        console.print("≈ the interval holds 0: not distinguishable")
    console.print(_verdict(one, other), soft_wrap=True)
    try:
        _show_layers(layers(one, other, results_dir), most)
    except RowError as error:
        console.print(f"layers are not compared: {error}", soft_wrap=True)


def _line(metric: Difference) -> tuple[str, ...]:
    change = f"{metric.other - metric.one:+.4g}"
    return metric.name, _cell(metric.one), _cell(metric.other), change, _interval(metric)


def _interval(metric: Difference) -> str:
    if not metric.by_window:
        return ""
    ends = "" if metric.interval is None else f"{metric.interval[0]:+.4g} … {metric.interval[1]:+.4g} "
    return (ends + MARKS.get(Verdict.of(metric.interval), "")).strip()


def _speeds(one: Row, other: Row, phase: str) -> tuple[str, ...]:
    """Return the line of a phase: each run's speed beside the dense model's of the same rounds."""
    pairs = [pair(row, phase) for row in (one, other)]
    return (
        f"{phase} tok/s,\ndense → compressed",
        *("" if each is None else words(each) for each in pairs),
        "",
        "",
    )


def _verdict(one: Row, other: Row) -> str:
    obstacles = differences(one, other)
    if obstacles:
        return f"What was measured on text is not compared: {'; '.join(obstacles)}"
    return f"B against A, by mean NLL: {compare(other, one).verdict.value}"


def _show_layers(table: pd.DataFrame, most: int) -> None:
    if table.empty:
        console.print("\nThe runs have no layers in common that were compressed in both.")
        return
    first, *others = dict.fromkeys(table.columns.get_level_values(0))
    change = table[first, "difference"]
    console.print(
        f"\n{len(table)} layers in common; {first} is lower in B in {(change < 0).mean():.0%} of them"
    )
    console.print(f"B − A is {change.mean():+.4g} on average")
    columns = [(first, "one"), (first, "other"), *((metric, "difference") for metric in (first, *others))]
    headings = ("", f"{first}\nA", "\nB", "\nB − A", *(f"{metric}\nB − A" for metric in others))
    lines = [
        (str(name), *(_cell(value) for value in values))
        for name, values in table[columns].head(most).T.items()
    ]
    _print(f"the {min(most, len(table))} that changed most", headings, lines)


def _print(title: str, headings: tuple[str, ...], lines: Sequence[tuple[str, ...]]) -> None:
    """Print a table. Words go on further lines, the last columns may be left out, numbers are whole."""
    shown = lines or [("nothing", *[""] * (len(headings) - 1))]
    columns = [
        Column(
            heading,
            tuple("\n".join(map(clean, line[k].split("\n"))) for line in shown),
            ESSENTIAL if k < 3 else ESSENTIAL - k,
            right=k > 0,
            wraps=k > 0,
        )
        for k, heading in enumerate(headings)
    ]
    console.print()
    fitted.show(console, columns, title)


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and isnan(value)):
        return "–"
    return f"{value:.5g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    run_cli(main)
