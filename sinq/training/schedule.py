"""Schedules of the learning rate: a rise from 0, then a constant rate, or one that falls to 0."""

import enum
import math


class Schedule(enum.Enum):
    """Course of the learning rate after the warm-up."""

    constant = "constant"
    linear = "linear"
    cosine = "cosine"


def share_of_rate(schedule: Schedule, step: int, steps: int, warm_up: int) -> float:
    """Return the share of the full learning rate, from 0 to 1, in a step from 0 to `steps` − 1.

    The first step of a warm-up has 1/(warm_up + 1), and the last step of a falling rate is above 0.

    Args:
        warm_up: number of steps in which the rate rises.
    """
    if step < warm_up:
        return (step + 1) / (warm_up + 1)
    done = (step - warm_up) / max(1, steps - warm_up)
    if schedule is Schedule.linear:
        return 1 - done
    return (1 + math.cos(math.pi * done)) / 2 if schedule is Schedule.cosine else 1.0
