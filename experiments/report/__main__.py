"""The command: `python -m experiments.report`."""

import argparse
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.common.console import console
from experiments.common.errors import run_cli
from experiments.common.files import atomic_write

if TYPE_CHECKING:
    from experiments.report.page import Report
    from experiments.report.versions import Versions

HELP = """All rows of a results folder as one HTML page that needs no network, and its figures for a paper.

    python -m experiments.report
    python -m experiments.report --results other/folder --out report.html --against rtn
    python -m experiments.report --figures paper/ --format svg --theme both
    python -m experiments.report --only method=sinq --only method=rtn,group_size=64
    python -m experiments.report anna=results bob=/shared/results --title "3 bits" --group-by model
"""


def main() -> None:
    """Write the page, and the figures where `--figures` is given."""
    options = _parse()
    from experiments.report import page  # altair is an extra; `run_cli` says how to install it
    from experiments.report.folders import Folder, merge
    from experiments.report.leaderboard import GROUP_BY, leaderboard

    kinds = kinds_of(options.format)
    folders = [Folder.of(words) for words in options.folders or [str(options.results)]]
    merged = merge(folders)
    keys = options.group_by.split(",") if options.group_by else None
    boards = partial(leaderboard, keys=keys or GROUP_BY, code=code()) if keys or len(folders) > 1 else None
    report = page.report_on(merged, options.against, options.only, options.title, boards)
    for name, reason in report.unreadable.items():
        console.print(f"cannot be read: {name}: {reason}", markup=False, soft_wrap=True)
    for note in report.notes:
        console.print(note, markup=False, soft_wrap=True)
    out = options.out or folders[0].path / "report.html"
    with atomic_write(out) as page_file:
        page_file.write(page.html(report).encode())
    console.print(f"{len(report.table.records)} runs: {out}", markup=False, soft_wrap=True)
    if options.figures:
        themes = ("light", "dark") if options.theme == "both" else (options.theme,)
        written = figures(report, options.figures, kinds, themes)
        console.print(f"{len(written)} figures: {options.figures}", markup=False, soft_wrap=True)


def _parse() -> argparse.Namespace:
    how = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="python -m experiments.report", description=HELP, formatter_class=how
    )
    add = parser.add_argument
    add(
        "folders",
        metavar="FOLDER",
        nargs="*",
        help="results folders of several people, folder or name=folder; default: that of --results",
    )
    add("--results", metavar="FOLDER", default="results", type=Path, help="default: results")
    add("--out", metavar="FILE", type=Path, help="the page; default: report.html in the first folder")
    add("--title", default="", help="title of the page; default: what was run")
    add(
        "--group-by",
        metavar="KEYS",
        help="a leaderboard for each model,text (the default for several folders), or other keys",
    )
    add(
        "--against",
        metavar="NAME",
        help="a method, a run's name or id to compare with; default: sinq, else none",
    )
    add(
        "--only",
        metavar="QUERY",
        action="append",
        default=[],
        help="only these runs, and dense ones: method=sinq,bits=4; may be repeated",
    )
    add("--figures", metavar="FOLDER", type=Path, help="also write each figure there")
    add(
        "--format",
        metavar="KINDS",
        default="png,pdf",
        help="of figures, comma-separated: png, pdf, svg; default: png,pdf",
    )
    add(
        "--theme",
        choices=("light", "dark", "both"),
        default="light",
        help="of figures; names of dark ones end in -dark",
    )
    return parser.parse_args()


def kinds_of(words: str) -> tuple[str, ...]:
    """Return the file formats that `--format` names.

    Raises:
        ValueError: a format is unknown.
    """
    from experiments.report.export import KINDS

    kinds = tuple(words.split(","))
    for kind in kinds:
        if kind not in KINDS:
            raise ValueError(f"--format {kind} is not possible; choose from {', '.join(KINDS)}")
    return kinds


def figures(
    report: "Report",
    folder: Path,
    kinds: tuple[str, ...] = ("png", "pdf"),
    themes: tuple[str, ...] = ("light",),
) -> list[Path]:
    """Write every figure of a report as `<group>_<figure>.<kind>`, dark ones with `-dark`.

    Returns:
        paths of the files written.
    """
    from experiments.report import export
    from experiments.report.theme import THEMES

    folder.mkdir(parents=True, exist_ok=True)
    named = [(section.group.key, figure) for section in report.sections for figure in section.figures]
    named += [("trainings", figure) for figure in report.over_steps]
    return [
        path
        for group, figure in named
        for theme in themes
        for path in export.save(figure, folder / _stem(group, figure.key, theme), THEMES[theme], kinds)
    ]


def code() -> "Versions":
    """Return the versions of this code's methods and evaluations."""
    from experiments.config.build import method_classes
    from experiments.report import versions

    method_classes()  # imports them
    return versions.of_code()


def _stem(group: str, figure: str, theme: str) -> str:
    return f"{group}_{figure}" + ("-dark" if theme == "dark" else "")


if __name__ == "__main__":
    run_cli(main)
