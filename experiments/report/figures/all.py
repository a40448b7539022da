"""All figures of a group of runs, in the order of the page."""

from collections.abc import Mapping

import pandas as pd

from experiments.compare.paired import Comparison
from experiments.report.comparable import Group
from experiments.report.figure import Figure
from experiments.report.figures import (
    attention,
    divergence,
    durations,
    forest,
    layers,
    pareto,
    trainings,
    zero_shot,
)
from experiments.report.figures.series import Series


def figures_of(
    group: Group,
    series: Series,
    tables: Mapping[str, pd.DataFrame],
    comparisons: Mapping[str, Comparison],
    against: str | None,
) -> tuple[Figure, ...]:
    """Return the figures that some run of a group has numbers for.

    Args:
        series: looks of the runs of all groups, from `series.series`.
        tables: run id → table of the run's layers.
        comparisons: run id → comparison with the run or method `against`.
    """
    single = (
        forest.forest(group, series, comparisons, against),
        durations.time(group, series),
        trainings.losses(group, series),
    )
    return (
        *pareto.figures(group, series),
        *(figure for figure in single if figure),
        *divergence.figures(group, series),
        *zero_shot.accuracies(group, series),
        *forest.latency(group, series),
        *layers.figures(group, series, tables),
        *attention.maps(group, series),
    )
