"""Checks: a quantity that was measured, and the goal it is held against."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich import box
from rich.markup import escape
from rich.table import Table


@dataclass(frozen=True)
class Setting:
    """Device, size and folder of a step."""

    device: torch.device
    dry: bool
    """True for tiny shapes on the CPU."""
    out: Path
    seconds: float = 600.0
    """Time that the step may take."""


@dataclass(frozen=True)
class Check:
    """A measured quantity, with a verdict where there is a goal."""

    step: str
    name: str
    value: float | None
    unit: str = ""
    goal: str = ""
    """Goal in words, such as "≤ 150 ms"; empty for a figure without one."""
    passed: bool | None = None
    """Whether the goal is met; None where there is none."""
    note: str = ""
    skipped: str = ""
    """Reason why nothing was measured."""


def at_most(step: str, name: str, value: float, limit: float | None, unit: str = "", note: str = "") -> Check:
    """Return a check that passes where the value is at most the limit; NaN never passes. None: no goal."""
    if limit is None:
        return Check(step, name, value, unit, note=note)
    return Check(step, name, value, unit, f"≤ {limit:g}", value <= limit, note)


def at_least(
    step: str, name: str, value: float, limit: float | None, unit: str = "", note: str = ""
) -> Check:
    """Return a check that passes where the value is at least the limit; NaN never passes. None: no goal."""
    if limit is None:
        return Check(step, name, value, unit, note=note)
    return Check(step, name, value, unit, f"≥ {limit:g}", value >= limit, note)


def attempted(step: str, name: str, work: Callable[[], Check | Iterable[Check]]) -> Iterator[Check]:
    """Yield the checks of a piece of work; an error in it is a check that failed, and the step goes on."""
    try:
        made = work()
        yield from ([made] if isinstance(made, Check) else made)
    except Exception as error:  # noqa: BLE001  (a step must survive whatever a device does)
        lines = str(error).strip().splitlines() or [""]
        yield Check(step, name, None, passed=False, note=f"{type(error).__name__}: {lines[0][:300]}")


def verdict(check: Check) -> str:
    """Return the verdict on a check as a word; a figure without a goal has none."""
    if check.skipped:
        return "skipped"
    return "" if check.passed is None else "ok" if check.passed else "FAILED"


def listing(found: Sequence[Check]) -> Table:
    """Return the checks as a table for the terminal; those that passed without a unit are only counted."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("step", "check", "value", "goal", "", "note"):
        table.add_column(name, justify="right" if name == "value" else "left", overflow="fold")
    for step in dict.fromkeys(check.step for check in found):
        of_step = [check for check in found if check.step == step]
        for check in of_step:
            if not _is_plain(check):
                value = "–" if check.value is None else f"{check.value:.4g} {check.unit}".strip()
                words = verdict(check), check.skipped or check.note
                table.add_row(*(escape(cell) for cell in (step, check.name, value, check.goal, *words)))
        if plain := sum(map(_is_plain, of_step)):
            table.add_row(step, f"{plain} checks of correctness", "", "", "ok")
    return table


def _is_plain(check: Check) -> bool:
    return bool(check.passed) and not check.unit
