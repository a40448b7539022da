"""Schedule of sparsity: none in a warm-up, a cubic rise, then the target."""

import enum
from dataclasses import dataclass

from sinq.common.options import check, number, whole


class Course(enum.Enum):
    """Course of the sparsity after the warm-up.

    `at_once` scores in the warm-up, prunes all in one step and trains on: an ablation, not LoRAPrune.
    """

    cubic = "cubic"
    at_once = "at_once"


@dataclass(frozen=True)
class Sparsity:
    """Schedule of the share of groups that are removed; the defaults are those of the released code.

    Raises:
        ValueError: an option is out of range, or nothing is left between warm-up and cool-down.
    """

    ratio: float = 0.5
    """Share of the groups of each prunable block at the end, below 1."""
    course: Course = Course.cubic
    warm_up: float = 0.1
    """Share of the steps at the beginning without sparsity."""
    cool_down: float = 0.1
    """Share of the steps at the end that only train."""
    every: int = 10
    """Steps between two changes of the masks."""
    last_update: bool = False
    """Set the masks once more, to exactly `ratio`, when the cool-down begins; the released code does not, and
    so ends a little below it."""

    def __post_init__(self) -> None:
        share = number(least=0, below=1)
        check(self, "method.sparsity", ratio=share, warm_up=share, cool_down=share, every=whole(1))
        if self.warm_up + self.cool_down >= 1:
            raise ValueError(
                f"method.sparsity.warm_up={self.warm_up} and cool_down={self.cool_down} leave no steps"
                " to prune in; together they must be below 1"
            )

    def at(self, step: int, steps: int) -> float:
        """Return the sparsity of a step from 0 to `steps` − 1."""
        begin, end = self.warm_up * steps, (1 - self.cool_down) * steps
        if step <= begin or self.ratio == 0:
            return 0.0
        if step > end or self.course is Course.at_once:
            return self.ratio
        return self.ratio * (1 - (1 - (step - begin) / (end - begin)) ** 3)

    def update(self, step: int, steps: int) -> float | None:
        """Return the sparsity that masks get in a step; None where they stay as they are."""
        now, before = self.at(step, steps), self.at(step - 1, steps)
        reached = before < self.ratio and (now == self.ratio or step == steps - 1)
        if reached and (self.last_update or self.course is Course.at_once):
            return self.ratio
        rising = self.course is Course.cubic and 0 < now < self.ratio
        return now if rising and step % self.every == 0 else None
