"""The model of a run, kept as a folder: `save=true`, and what `stream=true` quantizes into.

The folder is written before anything is measured, so that a model that cannot be saved fails first; its card
gets the run's options and numbers at the end.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from experiments.evaluation import EvaluationContext
from experiments.results.record import Row
from sinq import save, stored_tensors
from sinq.checkpoint.card import CARD, model_card
from sinq.checkpoint.layout import LAYOUT
from sinq.common.atomic_files import replacing


def model_folder(results_dir: Path, name: str) -> Path:
    """Return the folder of a run's model."""
    return results_dir / "checkpoints" / name


def is_missing(results_dir: Path, name: str) -> bool:
    """Return True if no model is kept of a run."""
    return not (model_folder(results_dir, name) / LAYOUT).exists()


def keep(context: EvaluationContext, folder: Path) -> None:
    """Write the model of a run, with its tokenizer."""
    model: Any = context.model
    save(model, folder, tokenizer=context.loaded.tokenizer)


def write_card(context: EvaluationContext, folder: Path, row: Row) -> None:
    """Write the card of a kept model, with what its finished row says."""
    model: Any = context.model
    with replacing(folder / CARD) as path:
        path.write_text(model_card(model, stored_tensors(model), dict(facts(row))))


def facts(row: Row) -> Iterator[tuple[str, Any]]:
    """Yield the facts of a row for a card: the run, its options, and every single number it measured."""
    yield "dense model", f"{row['identity']['model']['name']}, {row['protocol']['dtype']}"
    yield "method", row["name"]
    options = row["options"]["method"].items()
    yield from ((f"option {name}", value) for name, value in options if value is not None)
    yield "run", row["run_id"]
    yield "measured on", f"{row['protocol']['source']}, {row['provenance']['device']}"
    for part, metrics in row["metrics"].items():
        if part != "compression" and isinstance(metrics, Mapping):
            numbers = {name: value for name, value in metrics.items() if isinstance(value, int | float)}
            yield from ((f"{part}: {name}", value) for name, value in numbers.items())
