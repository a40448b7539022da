"""Heat maps of the page as compact text, drawn where they are looked at (`assets/maps.js`).

A rectangle takes a hundred bytes of markup; two thousand runs of two hundred layers would be a page of 100 MB
that no browser scrolls. Here a value is one character: its step on the scale of all maps, from 0 to `STEPS`.
There are twice as many steps as shades. A tip gives two digits; the tables of layers have all.
"""

import json
from typing import Any

import numpy as np
from markupsafe import Markup

from experiments.report.drawn import HeatMap, HeatMaps
from experiments.report.scale import Scale

WORDS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/."
"""A character for each step; at last that of a layer that there is not."""
STEPS = len(WORDS) - 2


def packed(figure: HeatMaps, scale: Scale, cell: int) -> Markup:
    """Return a script element with the maps of a figure as JSON.

    Args:
        scale: of all maps.
        cell: height of a row, in pixels.
    """
    content: dict[str, Any] = {
        "kinds": figure.kinds,
        "blocks": figure.blocks,
        "low": scale.low,
        "high": scale.high,
        "log": scale.log,
        "cell": cell,
        "runs": {each.run_id: _text(each, scale) for each in figure.maps},
    }
    # In a script nothing is markup but what would end it.
    text = json.dumps(content, separators=(",", ":")).replace("<", "\\u003c")
    return Markup(f'<script type="application/json">{text}</script>')


def _text(each: HeatMap, scale: Scale) -> str:
    """Return the steps of a map's values, row by row."""
    values = np.array(each.values, dtype=np.float64)  # None becomes NaN
    low, high, at = (np.log10(x) if scale.log else x for x in (scale.low, scale.high, values))
    steps = np.rint((at - low) / (high - low) * STEPS)
    known = np.isfinite(steps)
    numbers = np.where(known, steps, len(WORDS) - 1).astype(int).ravel().tolist()
    return "".join(WORDS[number] for number in numbers)
