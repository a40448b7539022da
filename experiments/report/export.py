"""Figures as files: PDF, PNG and SVG by vl-convert, which has Vega in it and needs no browser, no network."""

import re
from collections.abc import Sequence
from pathlib import Path

import vl_convert

from experiments.common.files import atomic_write
from experiments.report.figure import Figure
from experiments.report.theme import LIGHT, Theme

KINDS = ("png", "pdf", "svg")
SCALE = 2.5
"""Pixels of a PNG for each pixel of the specification."""
OFFLINE: list[str] = []
"""Addresses that a specification may load data from."""


def save(
    figure: Figure, stem: Path, theme: Theme = LIGHT, kinds: Sequence[str] = ("png", "pdf")
) -> list[Path]:
    """Write a figure as `<stem>.<kind>` for each kind; return the paths.

    The same figure gives the same bytes on a machine with the same fonts.
    """
    paths = [stem.with_name(f"{stem.name}.{kind}") for kind in kinds]
    for kind, path in zip(kinds, paths, strict=True):
        content = image(figure, theme, kind)
        with atomic_write(path) as file:
            file.write(content)
    return paths


def image(figure: Figure, theme: Theme = LIGHT, kind: str = "png") -> bytes:
    """Return a figure as the content of a file.

    Args:
        kind: "png", "pdf" or "svg".
    """
    spec = figure.standalone(theme)
    if kind == "svg":
        return _renumbered(vl_convert.vegalite_to_svg(spec, allowed_base_urls=OFFLINE)).encode()
    if kind == "pdf":
        return vl_convert.vegalite_to_pdf(spec, allowed_base_urls=OFFLINE)
    return vl_convert.vegalite_to_png(spec, scale=SCALE, allowed_base_urls=OFFLINE)


def _renumbered(svg: str) -> str:
    """Return an SVG whose ids are numbered from 0: Vega goes on counting from one figure to the next."""
    numbers: dict[str, int] = {}
    return re.sub(
        r"\b(clip|gradient_)(\d+)\b",
        lambda found: f"{found[1]}{numbers.setdefault(found[0], len(numbers))}",
        svg,
    )
