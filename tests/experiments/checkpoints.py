"""Hand-made rows of checkpoints, as of models that are trained here."""

import json
from typing import Any

from experiments.results.record import Row
from tests.experiments.rows import finished


def checkpoint(step: int, seed: int = 0, rate: float = 0.1, **metrics: Any) -> Row:
    """A row of a model that was trained here."""
    row = finished("none")
    recipe = {"architecture": {"mlp": "relu"}, "training": {"seed": seed, "learning_rate": rate}}
    row["run_id"] = f"s{step}seed{seed}rate{rate}"
    row["identity"]["model"] |= {
        "name": f"decoder1 step {step}", "step": str(step), "fingerprint": row["run_id"],
        "recipe": json.dumps(recipe, sort_keys=True),
    }  # fmt: skip
    row["metrics"] |= metrics
    return row


def course(values: dict[int, float], **options: Any) -> list[Row]:
    """Rows of a training whose one layer has these entropies."""
    rows = []
    for step, value in values.items():
        row = checkpoint(step, **options)
        row["metrics"] |= {"attention_entropy": {"mean": value}}
        row["samples"] = {"attention_entropy": {"entropy": {"model.decoder.layers.0.self_attn": value}}}
        rows.append(row)
    return rows
