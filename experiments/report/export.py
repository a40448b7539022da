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
MOST_PDFS = 500
"""Attempts at a PDF in order."""
RESOURCES = rb"(/(?:Font|ExtGState|XObject|Pattern|Shading) <<\n)(.*?)(\n\s*>>)"
FONT = rb"(\d+) 0 obj\n<<\n  /Type /Font\n  /Subtype /Type0"
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
    if kind == "png":
        return vl_convert.vegalite_to_png(spec, scale=SCALE, allowed_base_urls=OFFLINE)
    svg = _renumbered(vl_convert.vegalite_to_svg(spec, allowed_base_urls=OFFLINE))
    return svg.encode() if kind == "svg" else _pdf(svg)


def _renumbered(svg: str) -> str:
    """Return an SVG whose ids are numbered from 0: Vega goes on counting from one figure to the next."""
    numbers: dict[str, int] = {}
    return re.sub(
        r"\b(clip|gradient_)(\d+)\b",
        lambda found: f"{found[1]}{numbers.setdefault(found[0], len(numbers))}",
        svg,
    )


def _pdf(svg: str) -> bytes:
    """Return a PDF with fonts and resources in order.

    vl-convert writes them as they lie in hash tables, in another order each time. Lists of resources can be
    sorted; fonts are written again until they are in order, which of two is the second time on average.
    """
    for _ in range(MOST_PDFS):
        content = re.sub(RESOURCES, _in_order, vl_convert.svg_to_pdf(svg), flags=re.DOTALL)
        fonts = [int(number) for number in re.findall(FONT, content)]
        if fonts == sorted(fonts):
            return content
    raise RuntimeError(f"vl-convert has not written {len(fonts)} fonts in order in {MOST_PDFS} attempts")


def _in_order(found: re.Match[bytes]) -> bytes:
    return found[1] + b"\n".join(sorted(found[2].split(b"\n"))) + found[3]
