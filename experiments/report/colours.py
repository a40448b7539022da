"""Colours that the page and the paper share.

Methods have Okabe and Ito's eight colours, which most colour-blind readers can distinguish; heat maps have
viridis.
"""

from dataclasses import dataclass

from matplotlib import colormaps
from matplotlib.colors import to_hex

METHODS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#B8860B", "#56B4E9", "#7F4FC9", "#666666")
"""Colours on white; two of Okabe and Ito's are too pale for it and are replaced."""
METHODS_ON_DARK = ("#4BA3E3", "#F0803C", "#2CC79A", "#E29CC4", "#E0B040", "#8FD0F5", "#B294F0", "#B0B0B0")
HEAT, LEVELS = "viridis", 32

SHAPES = 4
"""Number of mark shapes. With the colours, `SHAPES` × `len(METHODS)` styles are distinct."""


@dataclass(frozen=True)
class Theme:
    """Colours of a figure for a paper or a web page."""

    name: str
    background: str
    ink: str
    grid: str
    methods: tuple[str, ...]


LIGHT = Theme("light", "#ffffff", "#1f2328", "#d8dee4", METHODS)
DARK = Theme("dark", "#0d1117", "#d1d7e0", "#30363d", METHODS_ON_DARK)
THEMES = {theme.name: theme for theme in (LIGHT, DARK)}
"""Themes by name, in the colours of GitHub's pages."""


def look(style: int) -> tuple[int, int]:
    """Return the numbers of a style's colour and shape; styles `len(METHODS)` apart share the colour."""
    return style % len(METHODS), (style + style // len(METHODS)) % SHAPES


def rules() -> str:
    """Return the style sheet: the variables of both themes and the shades of heat maps."""

    def theme(colours: tuple[str, ...]) -> str:
        return ":root{" + "".join(f"--s{number}:{colour};" for number, colour in enumerate(colours)) + "}"

    methods = "".join(f".s{number}{{--c:var(--s{number})}}" for number in range(len(METHODS)))
    heat = "".join(
        f".h{each}{{fill:{to_hex(colormaps[HEAT]((each + 0.5) / LEVELS))}}}" for each in range(LEVELS)
    )
    dark = f"@media (prefers-color-scheme: dark){{{theme(METHODS_ON_DARK)}}}"
    return f"{theme(METHODS)}\n{dark}\n{methods}\n{heat}\n"
