"""SVG elements as escaped markup. x is in per cent of the width, y in pixels from the top."""

from typing import Any

from markupsafe import Markup, escape

from experiments.report.colours import look as numbers

SHAPES = (
    "M0-5A5 5 0 1 1 0 5A5 5 0 1 1 0-5Z",
    "M-4.5-4.5h9v9h-9Z",
    "M0-5.5L5.5 4.5H-5.5Z",
    "M0-6L6 0 0 6-6 0Z",
)
"""Paths: circle, square, triangle, diamond."""


SHAPELESS = {"line", "rect", "path"}
"""Elements without content."""


def tag(name: str, *children: str, **attributes: Any) -> Markup:
    """Return an element.

    `stroke_width=2` becomes `stroke-width="2"`, `class_` becomes `class`; None leaves an attribute out.
    """
    pairs = (
        (key.rstrip("_").replace("_", "-"), value) for key, value in attributes.items() if value is not None
    )
    # By hand: a page has tens of thousands of elements, and `Markup.format` takes ten times as long.
    inside = "".join(f' {key}="{escape(value)}"' for key, value in pairs)
    if name in SHAPELESS:
        return Markup(f"<{name}{inside}/>")
    return Markup(f"<{name}{inside}>{''.join(map(escape, children))}</{name}>")


def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> Markup:
    """Return a line from (x1, y1) to (x2, y2)."""
    return tag("line", x1=f"{x1}%", y1=y1, x2=f"{x2}%", y2=y2, class_=kind)


def text(x: float, y: float, words: str, anchor: str = "middle", dx: float | None = None) -> Markup:
    """Return words at (x, y), moved right by `dx` pixels."""
    return tag("text", words, x=f"{x}%", y=y, dx=dx, text_anchor=anchor)


def box(x1: float, x2: float, y: float, height: float, kind: str) -> Markup:
    """Return a filled rectangle from x1 to x2."""
    return tag(
        "rect",
        x=f"{round(x1, 3)}%",
        y=y,
        width=f"{round(x2 - x1, 3)}%",
        height=height,
        class_=kind,
    )


def mark(x: float, y: float, style: int, hint: str, kind: str = "") -> Markup:
    """Return a run's mark, in the colour and shape of a style. The pointer or the tab key shows the hint."""
    look = f"mark {colour(style)} {kind}".strip()
    path = tag("path", d=shape(style), class_=look, aria_label=hint)
    return tag("svg", path, x=f"{x}%", y=y, width=1, height=1)


def colour(style: int) -> str:
    """Return the CSS class of a style's colour."""
    return f"s{numbers(style)[0]}"


def shape(style: int) -> str:
    """Return the path of a style's mark, around the origin."""
    return SHAPES[numbers(style)[1]]


def canvas(height: float, *children: str, **attributes: Any) -> Markup:
    """Return an SVG as wide as its parent, `height` pixels high; labels may extend beyond it."""
    return tag("svg", *children, width="100%", height=height, **attributes)
