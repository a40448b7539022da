"""Colours of both themes: contrast to the page by WCAG's formula, worked out here, and distinct ones."""

import pytest

from experiments.report.theme import DARK, LIGHT, Theme

BOTH = pytest.mark.parametrize("theme", [LIGHT, DARK], ids=lambda theme: theme.name)


def luminance(colour: str) -> float:
    parts = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    red, green, blue = [
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    ]
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    dark, light = sorted([luminance(one), luminance(other)])
    return (light + 0.05) / (dark + 0.05)


def test_the_formula_knows_black_and_white() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


@BOTH
def test_marks_and_words_stand_out_from_the_page(theme: Theme) -> None:
    assert min(contrast(colour, theme.background) for colour in theme.methods) >= 3
    assert contrast(theme.ink, theme.background) >= 7
    assert contrast(theme.faint, theme.background) >= 4.5


@BOTH
def test_methods_have_distinct_colours(theme: Theme) -> None:
    def apart(one: str, other: str) -> float:
        pairs = [(int(one[k : k + 2], 16), int(other[k : k + 2], 16)) for k in (1, 3, 5)]
        return sum((a - b) ** 2 for a, b in pairs) ** 0.5

    pairs = [apart(a, b) for a in theme.methods for b in theme.methods if a < b]
    assert len(theme.methods) == 8
    assert min(pairs) > 40
