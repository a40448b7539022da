"""Figures as data: one Vega-Lite specification serves the page, the paper's files, W&B and notebooks.

A specification has no rows, colours or fonts. Its only data set is called "rows", which the page exchanges
when a reader filters runs; so what depends on the runs that are shown (the Pareto front, the first 60) is
computed by the specification's transforms. Colours come from a theme (`theme.py`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from experiments.report.theme import Theme

Rows = tuple[dict[str, Any], ...]
Spec = Mapping[str, Any]
WIDTH = 620
"""Width in pixels of what is 300 to 1,000 pixels wide on a page, without its axes."""


@dataclass(frozen=True)
class Figure:
    """A figure with its rows: for the page apart, for files as one specification."""

    key: str
    """Name in file names and anchors: short, letters and underscores, unique in its group."""
    title: str
    spec: Spec
    """Vega-Lite, without rows, configuration and colours."""
    rows: Rows
    """Plain JSON values. A row of a run has its id as `run`; no filter removes one without, a reference."""
    note: str = ""
    """One or two sentences below the figure; they say too which runs are not drawn."""

    @property
    def description(self) -> str:
        """Words for a screen reader."""
        return str(self.spec.get("description", self.title))

    def standalone(self, theme: Theme) -> dict[str, Any]:
        """Return the specification with rows, title and a theme's colours; it is `WIDTH` wide."""
        fixed = {"width": WIDTH, "autosize": "pad"} if self.spec.get("width") == "container" else {}
        whole = {**self.spec, **fixed, "title": self.title}
        return whole | {"datasets": {"rows": list(self.rows)}, "config": theme.config}
