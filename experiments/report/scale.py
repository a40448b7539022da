"""Axes: positions of values in per cent, and ticks."""

from dataclasses import dataclass
from math import log10

from matplotlib.ticker import MaxNLocator

MARGIN = 0.05
"""Room beyond the outermost values, as a fraction of the axis."""
ROUND = (1, 2, 5)
"""Factors of the powers of ten that label a logarithmic axis."""


@dataclass(frozen=True)
class Scale:
    """An axis from low to high, both above zero where the axis is logarithmic."""

    low: float
    high: float
    log: bool = False

    def percent(self, value: float) -> float:
        """Return the position of a value: 0 at low, 100 at high."""
        low, high, at = (log10(each) if self.log else each for each in (self.low, self.high, value))
        return round(100 * (at - low) / (high - low), 3)

    def ticks(self, most: int = 5) -> list[float]:
        """Return at most `most` + 1 round values on the axis."""
        if not self.log or self.high / self.low < 8:
            return [
                float(tick)
                for tick in MaxNLocator(most).tick_values(self.low, self.high)
                if self.low <= tick <= self.high
            ]
        ticks = [
            m * 10.0**power
            for power in range(-12, 13)
            for m in ROUND
            if self.low <= m * 10.0**power <= self.high
        ]
        if len(ticks) > most:
            ticks = [tick for tick in ticks if log10(tick).is_integer()]
        return ticks[:: -(-len(ticks) // most)]


def around(values: list[float], log: bool = False, *, start: float | None = None) -> Scale:
    """Return the scale that shows all values with a margin; `start` fixes the lower end."""
    low, high = min(values), max(values)
    if log:
        room = (high / low) ** MARGIN if high > low else 1.1
        return Scale(low / room, high * room, log)
    room = MARGIN * (high - low) if high > low else MARGIN * abs(high) or 1.0
    return Scale(low - room if start is None else start, high + room)


def number(value: float) -> str:
    """Return the label of a tick."""
    if value and (abs(value) >= 1e6 or abs(value) < 1e-4):
        return f"{value:.0e}".replace("e+0", "e").replace("e-0", "e−")
    return f"{value:,.10g}".replace("-", "−")
