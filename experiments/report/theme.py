"""Colours, fonts and marks of figures: a Vega configuration for light pages and one for dark ones.

Methods have Okabe and Ito's eight colours, which most colour-blind readers can distinguish, each with a
contrast of at least 3 to its background; heat maps have viridis. A specification names neither colours nor
fonts, but ranges and the styles below.
"""

from dataclasses import dataclass
from typing import Any

METHODS = ("#0072B2", "#D55E00", "#009E73", "#C56AA0", "#B8860B", "#3D97D3", "#7F4FC9", "#666666")
"""Colours on white; four of Okabe and Ito's are too pale for it, and are darker here."""
METHODS_ON_DARK = ("#4BA3E3", "#F0803C", "#2CC79A", "#E29CC4", "#E0B040", "#8FD0F5", "#B294F0", "#B0B0B0")
FONT = "system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif"


@dataclass(frozen=True)
class Theme:
    """Colours of a figure, in those of GitHub's pages."""

    name: str
    background: str
    ink: str
    faint: str
    """Ink of axes and notes within a figure."""
    grid: str
    methods: tuple[str, ...]

    @property
    def config(self) -> dict[str, Any]:
        """The Vega-Lite configuration."""
        words = {"labelColor": self.ink, "titleColor": self.ink, "labelFontSize": 11, "titleFontSize": 12}
        axis = words | {"gridColor": self.grid, "domainColor": self.faint, "tickColor": self.faint}
        symbols = {"symbolSize": 110, "symbolBaseFillColor": self.ink, "symbolBaseStrokeColor": self.ink}
        return {
            "background": self.background,
            "font": FONT,
            "view": {"stroke": None},
            "axis": axis | {"titleFontWeight": "normal", "titlePadding": 8, "labelOverlap": "greedy"},
            "legend": words | {"orient": "bottom", "titleFontWeight": "normal", **symbols},
            "header": words | {"labelAnchor": "start"},
            "title": {"color": self.ink, "anchor": "start", "fontSize": 14, "offset": 12},
            "range": {"category": list(self.methods), "heatmap": {"scheme": "viridis"}},
            "style": self._styles(),
        }

    def _styles(self) -> dict[str, dict[str, Any]]:
        """Return the styles that specifications name."""
        small = {"fontSize": 9, "fontWeight": "bold", "font": FONT}
        return {
            "front": {"color": self.ink, "opacity": 0.16, "strokeWidth": 7, "strokeCap": "round"},
            "level": {"color": self.faint, "strokeDash": [5, 4], "strokeWidth": 1.2},
            "inside": {"color": self.background, **small},
            "inside_hollow": {"color": self.ink, **small},
            "beside": {"color": self.ink, "fontSize": 11, "font": FONT},
            "picked": {"color": self.ink, "strokeWidth": 2.2, "filled": False},
        }


LIGHT = Theme("light", "#ffffff", "#1f2328", "#59636e", "#e4e8ec", METHODS)
DARK = Theme("dark", "#0d1117", "#e6edf3", "#9198a1", "#262c36", METHODS_ON_DARK)
THEMES = {theme.name: theme for theme in (LIGHT, DARK)}


def rules() -> str:
    """Return both themes' colours as variables of a style sheet, the light ones also for print."""

    def variables(theme: Theme) -> str:
        named = {"paper": theme.background, "ink": theme.ink, "pale": theme.faint, "grid": theme.grid}
        return ":root{" + "".join(f"--{name}:{colour};" for name, colour in named.items()) + "}"

    return f"{variables(LIGHT)}\n@media screen and (prefers-color-scheme: dark){{{variables(DARK)}}}\n"
