"""Rank correlations of what is known of a dense layer with its output error once it is compressed.

Predictors are the stable rank, the entropy of the attention of the layer's block, and the block's number, the
depth. A predictor that says no more than the depth does is of no use, so each has its partial correlation
too, (ρ_pe − ρ_pd ρ_ed) / √((1 − ρ_pd²)(1 − ρ_ed²)): what is left of it at equal depth.

Kinds of layers (q_proj, down_proj …) differ in error and in shape, and over all layers a correlation mixes
them. That of one kind over the blocks is the question, and `mean of kinds` its summary. Intervals are Bonett
and Wright's (2000, Psychometrika 65, 23–28) for independent pairs. Neighbouring blocks are alike, so they are
too narrow; and of many correlations some are large by chance.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import atanh, sqrt, tanh
from statistics import fmean

import pandas as pd
from scipy.stats import norm, spearmanr

from experiments.results.paths import get_path
from experiments.results.record import Row

ERROR = "error"
DEPTH = "depth"
PREDICTORS = ("stable_rank", "entropy", DEPTH)
ALL, MEAN = "all layers", "mean of kinds"
FEWEST = 5
"""Layers below which a kind is left out."""
BLOCK = re.compile(r"(.*?\.(\d+))\.")


@dataclass(frozen=True)
class Correlation:
    """Spearman's rank correlation of a predictor with the output error."""

    predictor: str
    layers: str
    """Kind of the layers, `all layers`, or `mean of kinds`."""
    count: int
    rho: float
    interval: tuple[float, float] | None
    """95 %; None for a mean."""
    given_depth: float | None
    """Partial correlation at equal depth; None where it is not defined, as for the depth itself."""


def layer_table(row: Row, dense: Row) -> pd.DataFrame:
    """Return error, predictors and kind of each layer that both rows know, indexed by name.

    Raises:
        ValueError: a row lacks the measurements.
    """
    errors = _sample(row, "layer_error.relative_error")
    ranks, entropies = (
        _sample(dense, path) for path in ("stable_rank.stable_rank", "attention_entropy.entropy")
    )
    of_block = {_block(name)[0]: entropy for name, entropy in entropies.items()}
    lines = [
        (name, errors[name], ranks[name], of_block[block], depth, name.rpartition(".")[2])
        for name in errors
        if name in ranks and (block := _block(name)[0]) in of_block and (depth := _block(name)[1]) >= 0
    ]
    if len(lines) < FEWEST:
        raise ValueError(
            f"run {row['run_id']} has {len(lines)} layers to correlate; at least {FEWEST} are needed"
        )
    return pd.DataFrame(lines, columns=["name", ERROR, *PREDICTORS, "kind"]).set_index("name")


def _sample(row: Row, path: str) -> dict[str, float]:
    found = get_path(row.get("samples", {}), path)
    if not found:
        raise ValueError(
            f"run {row['run_id']} has no {path}; measure it with python run.py method=… evaluation=layers"
        )
    return dict(found)


def _block(name: str) -> tuple[str, int]:
    """Return the name and number of a layer's block: its name up to the first number; -1 for none."""
    found = BLOCK.match(name)
    return (found[1], int(found[2])) if found else (name, -1)


def correlations(table: pd.DataFrame) -> list[Correlation]:
    """Return each predictor's correlation over all layers, the mean of kinds, and that of each kind."""
    return [each for predictor in PREDICTORS for each in _of(table, predictor)]


def _of(table: pd.DataFrame, predictor: str) -> Iterator[Correlation]:
    yield _correlation(table, predictor, ALL)
    kinds = [(str(kind), part) for kind, part in table.groupby("kind", sort=False) if len(part) >= FEWEST]
    found = [_correlation(part, predictor, kind) for kind, part in kinds]
    if found:
        mean = fmean(each.rho for each in found)
        left = [each.given_depth for each in found if each.given_depth is not None]
        count = sum(each.count for each in found)
        yield Correlation(predictor, MEAN, count, mean, None, fmean(left) if left else None)
    yield from found


def _correlation(part: pd.DataFrame, predictor: str, layers: str) -> Correlation:
    values, errors, depths = (part[column].tolist() for column in (predictor, ERROR, DEPTH))
    rho = spearman(values, errors)
    left = partial(rho, spearman(values, depths), spearman(errors, depths))
    return Correlation(predictor, layers, len(part), rho, interval(rho, len(part)), left)


def partial(ab: float, ac: float, bc: float) -> float | None:
    """Return the correlation of a and b at equal c, of the three; None where c explains one of them."""
    rest = (1 - ac**2) * (1 - bc**2)
    return (ab - ac * bc) / sqrt(rest) if rest > 1e-12 else None


def spearman(a: Sequence[float], b: Sequence[float]) -> float:
    """Return Spearman's rank correlation; 0 where one side is constant and ranks nothing."""
    if len(set(a)) == 1 or len(set(b)) == 1:
        return 0.0
    return float(spearmanr(a, b).statistic)


def interval(rho: float, count: int) -> tuple[float, float]:
    """Return Bonett and Wright's 95 % interval of a rank correlation of `count` pairs."""
    if abs(rho) >= 1:
        return rho, rho
    half = norm.ppf(0.975) * sqrt((1 + rho**2 / 2) / (count - 3))
    return tanh(atanh(rho) - half), tanh(atanh(rho) + half)
