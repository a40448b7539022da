"""Colours that the page and the paper share. Methods: Okabe and Ito's eight, told apart by most colour-blind readers. Heat: viridis."""

from dataclasses import dataclass

from matplotlib import colormaps
from matplotlib.colors import to_hex

METHODS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#B8860B", "#56B4E9", "#7F4FC9", "#666666")
"""On white; two of Okabe and Ito's that are too pale for that are replaced."""
METHODS_ON_DARK = ("#4BA3E3", "#F0803C", "#2CC79A", "#E29CC4", "#E0B040", "#8FD0F5", "#B294F0", "#B0B0B0")
HEAT, LEVELS = "viridis", 32


SHAPES = 4
"""Kinds of mark. With the colours, `SHAPES` × `len(METHODS)` styles are unlike."""


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
"""Both look as GitHub's pages do."""


def look(style: int) -> tuple[int, int]:
    """Return colour and shape of a style, as numbers; styles that differ by `len(METHODS)` share the colour."""
    return style % len(METHODS), (style + style // len(METHODS)) % SHAPES


def level(percent: float) -> int:
    """Which of the `LEVELS` shades stands for a place on a scale."""
    return min(LEVELS - 1, int(percent / 100 * LEVELS))


def rules() -> str:
    """Style sheet: the variables of both themes and the shades of heat."""

    def theme(colours: tuple[str, ...]) -> str:
        return ":root{" + "".join(f"--s{number}:{colour};" for number, colour in enumerate(colours)) + "}"

    methods = "".join(f".s{number}{{--c:var(--s{number})}}" for number in range(len(METHODS)))
    heat = "".join(
        f".h{each}{{fill:{to_hex(colormaps[HEAT]((each + 0.5) / LEVELS))}}}" for each in range(LEVELS)
    )
    return f"{theme(METHODS)}\n@media (prefers-color-scheme: dark){{{theme(METHODS_ON_DARK)}}}\n{methods}\n{heat}\n"
