"""Reference of a group: the run or method that the group's other runs are compared with, pair by pair."""

from experiments.compare.counterpart import Counterparts, compared
from experiments.report.comparable import Group

USUAL = ("sinq", "none")
"""Default references, the first present one counts: the method of this project, then the dense model."""


def reference(group: Group, against: str | None) -> str | None:
    """Return the name of the reference that runs of a group are compared with; None if the group has none.

    A name is a run id, a run's name or a method.
    """
    names = {
        name
        for entry in group.entries
        for name in (entry.row["run_id"], entry.row["name"], entry.row["choices"].get("method"))
    }
    return next((name for name in ((against,) if against else USUAL) if name in names), None)


def counterparts(group: Group, against: str | None) -> Counterparts | None:
    """Return the comparisons of a group's runs with their counterparts; None where it has no reference."""
    name = reference(group, against)
    return None if name is None else compared(group.rows, name)
