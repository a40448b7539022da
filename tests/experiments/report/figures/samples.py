"""Rows with what only some runs have: a divergence in full, and attention maps."""

from typing import Any

from experiments.results.record import Row
from tests.experiments.rows import finished

PERCENTILES = ("kl_median", "kl_p90", "kl_p95", "kl_p99", "kl_p99_9", "kl_max")
MAPS: dict[str, Any] = {
    "layers": ["model.layers.0.self_attn", "model.layers.4.self_attn"],
    "true": [[[1.0, 0.0], [0.25, 0.75]], [[0.5, 0.5], [0.0005, 0.9995]]],
    "estimated": [[[0.9, 0.1], [0.2, 0.8]], [[0.4, 0.6], [0.3, 0.7]]],
}


def diverged(method: str, first: float, bits: int = 4, **changed: float) -> Row:
    row = finished(method, bits)
    quantiles = {name: first * 10**n for n, name in enumerate(PERCENTILES)} | changed
    row["metrics"]["perplexity"]["divergence"] = {"kl": first, **quantiles}
    row["samples"]["perplexity"]["by_confidence"] = [
        {"from": 0.0, "to": 0.5, "positions": 3, "kl": 4 * first},
        {"from": 0.5, "to": 1.0, "positions": 9, "kl": first},
    ]
    return row
