"""The command: `python -m experiments.report [results_dir] --out report.html`."""

import argparse
from pathlib import Path

from experiments.console import console
from experiments.files import atomic_write
from experiments.mistakes import guard
from experiments.report import paper
from experiments.report.page import Report, collect, html


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.report", description="All rows of a results folder as one HTML page.")
    parser.add_argument("results_dir", nargs="?", default="results", type=Path, help="default: results")
    parser.add_argument("--out", metavar="FILE", type=Path, help="default: <results_dir>/report.html")
    parser.add_argument("--figures", metavar="FOLDER", type=Path, help="also write each figure there as PNG and PDF, for a paper")
    parser.add_argument("--against", metavar="NAME", help="a method, a run's name or id to compare with; default: sinq, else none")
    options = parser.parse_args()
    report = collect(options.results_dir, options.against)
    for name, reason in report.unreadable.items():
        console.print(f"cannot be read: {options.results_dir / 'runs' / name}: {reason}", markup=False, soft_wrap=True)
    out = options.out or options.results_dir / "report.html"
    with atomic_write(out) as file:
        file.write(html(report).encode())
    console.print(f"{len(report.table.records)} runs: {out}", markup=False, soft_wrap=True)
    if options.figures:
        console.print(f"{len(figures(report, options.figures))} figures: {options.figures}", markup=False, soft_wrap=True)


def figures(report: Report, folder: Path) -> list[Path]:
    """Write every figure of a report, as `<group>_<figure>.png` and `.pdf`."""
    folder.mkdir(parents=True, exist_ok=True)
    return [
        path
        for section in report.sections
        for figure in section.figures
        for path in paper.save(figure, folder / f"{section.group.key}_{figure.key}")
    ]


if __name__ == "__main__":
    guard(main)
