"""Tracking: a logger copies finished rows to Weights & Biases. The row stays the record of a run."""

import logging
from dataclasses import dataclass
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.common.extras import advice
from experiments.results import flat
from experiments.results.paths import flatten
from experiments.results.record import Row
from experiments.runs.logger import Logger
from sinq.common.options import check

if TYPE_CHECKING:
    import pandas as pd
    import PIL.Image

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class WandB(Logger):
    """Options of logging to Weights & Biases.

    A log has the configuration, flat and nested; the metrics in groups (`perplexity/value`, and each
    zero-shot task's accuracy as `accuracy/<task>`); tables of layers and windows, and heat maps of the
    layers. Method, bits and model are tags, so that runs can be filtered without opening one.

    Offline runs need no account and no network. They are kept in `<results_dir>/wandb`, one folder per run.
    Later, any machine they are copied to can send them by `wandb login` and
    `wandb sync <results_dir>/wandb/offline-run-*`.

    Raises:
        ValueError: the mode is invalid, or a package is not installed.
    """

    project: str = "sinq"
    mode: str = "offline"
    entity: str | None = None
    group: str | None = None
    """Group of the run; `conf/logger/wandb.yaml` makes each sweep a group."""

    def __post_init__(self) -> None:
        check(self, "logger")
        if self.mode not in ("offline", "online"):
            raise ValueError(
                f"logger.mode={self.mode} is not possible; it must be offline or online (or logger=none)"
            )
        for package in ("wandb", "matplotlib"):  # checked now, not at the end of a long run
            if find_spec(package) is None:
                raise ValueError(f"logger=wandb: {advice(package)}, or choose logger=none")

    def log(self, row: Row, layers: "pd.DataFrame", results_dir: Path) -> None:
        """Log a finished row and its table of layers. Errors of W&B and of its files are only reported."""
        import wandb

        try:
            self._log(row, layers, results_dir)
        except (wandb.errors.Error, OSError) as error:
            log.info("W&B did not take the run (%s); its row is safe in the results folder", error)

    def _log(self, row: Row, layers: "pd.DataFrame", results_dir: Path) -> None:
        import wandb

        results_dir.mkdir(parents=True, exist_ok=True)
        run = wandb.init(
            project=self.project,
            entity=self.entity,
            group=self.group,
            mode=self.mode,  # type: ignore[arg-type]
            dir=results_dir,
            id=row["run_id"],
            resume="allow",
            name=row["name"],
            job_type=flat.facts(row)["method"],
            tags=tags(row),
            config=configuration(row),
            settings=wandb.Settings(silent=True, console="off"),
        )
        metrics = grouped(row)
        tables = {name: wandb.Table(dataframe=table) for name, table in _tables(row, layers).items()}
        images = {f"plots/{name}": wandb.Image(picture) for name, picture in _plots(row, layers).items()}
        run.log(metrics | tables | images)
        run.summary.update(metrics)
        run.finish()


def tags(row: Row) -> list[str]:
    """Return method, bits and model as tags, which W&B limits to 64 characters."""
    facts = flat.facts(row)
    bits = f"{facts['bits']}-bit" if facts["bits"] is not None else None
    return [str(tag)[:64] for tag in (facts["method"], bits, facts["model"]) if tag]


def configuration(row: Row) -> dict[str, Any]:
    """Return the configuration of a run: flat method, bits, group_size …, and nested parts of the row."""
    parts = ("run_id", "choices", "identity", "options", "protocol", "provenance")
    return flat.facts(row) | {part: row[part] for part in parts}


def grouped(row: Row) -> dict[str, Any]:
    """Return the metrics with names in groups, by slashes: W&B makes a section of each."""
    metrics = {path.replace(".", "/"): value for path, value in flatten(row["metrics"]).items()}
    accuracies = {f"accuracy/{task}": flat.metrics(row)[task] for task in flat.tasks(row)}
    return metrics | accuracies


def _tables(row: Row, layers: "pd.DataFrame") -> "dict[str, pd.DataFrame]":
    """Return the tables of a run, by name: one row per layer, and per window of text."""
    import pandas as pd

    windows = pd.DataFrame(row.get("samples", {}).get("perplexity", {}))
    tables = {"layers": layers, "windows": windows.rename_axis("window").reset_index()}
    return {name: table for name, table in tables.items() if len(table)}


def _plots(row: Row, table: "pd.DataFrame") -> "dict[str, PIL.Image.Image]":
    """Return the run's heat maps of layers, by name."""
    import PIL.Image

    # Imported here: matplotlib loads slowly, and most runs do not need it.
    from experiments.report import heat_maps, render_matplotlib

    plots: dict[str, PIL.Image.Image] = {}
    for figure in heat_maps.figures([(row["name"], heat_maps.metrics(row, table))]):
        file = BytesIO()
        render_matplotlib.draw(figure).savefig(file, format="png", dpi=120)
        plots[figure.key] = PIL.Image.open(file)
    return plots
