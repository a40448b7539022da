"""Content of a run at Weights & Biases: tags, configuration, numbers, tables, figures and files."""

import json
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.results import columns, flat, record
from experiments.results.paths import flatten
from experiments.results.record import Row

if TYPE_CHECKING:
    import pandas as pd
    import wandb

    from experiments.report.figure import Figure

LONGEST_TAG = 64
SCRIPTS = ("vega@6", "vega-lite@6", "vega-embed@7")
INTERACTIVE = """<!DOCTYPE html><meta charset="utf-8">{scripts}<div id="figure"></div>
<script>vegaEmbed("#figure", {spec}, {{actions: false}})</script>"""
"""Figure as HTML. W&B's page has a network, so the drawing library is loaded there, once for all figures."""


def tags(row: Row) -> list[str]:
    """Return method, bits, group size, model and text as tags, which W&B limits to 64 characters."""
    facts = flat.facts(row)
    bits = f"{facts['bits']}-bit" if facts["bits"] is not None else None
    group = f"g{facts['group_size']}" if facts["group_size"] is not None else None
    calibrated = "calibrated" if facts["calibrated"] else None
    every = (facts["method"], bits, group, calibrated, facts["model"], facts["text"])
    return [str(tag)[:LONGEST_TAG] for tag in dict.fromkeys(every) if tag]


def configuration(row: Row) -> dict[str, Any]:
    """Return the configuration of a run: flat method, bits, group_size …, and nested parts of the row."""
    parts = ("run_id", "choices", "identity", "options", "protocol", "provenance")
    return flat.facts(row) | {part: row[part] for part in parts}


def grouped(row: Row) -> dict[str, Any]:
    """Return the metrics with names in groups, by slashes: W&B makes a section of each."""
    metrics = {path.replace(".", "/"): value for path, value in flatten(row["metrics"]).items()}
    accuracies = {f"accuracy/{task}": flat.metrics(row)[task] for task in flat.tasks(row)}
    return metrics | accuracies


def headline(row: Row) -> dict[str, float]:
    """Return the numbers of the table of rows by their keys, in the units of its headings.

    A speed is the ratio to the dense model's.
    """
    found = {metric.key: (columns.number(metric.of(row)), metric.style) for metric in columns.metrics([row])}
    return {
        key: value * columns.STYLES[style].factor if style in ("MB", "thousands") else value
        for key, (value, style) in found.items()
        if value is not None
    }


def tables(row: Row, layers: "pd.DataFrame") -> "dict[str, pd.DataFrame]":
    """Return the tables of a run, by name: `runs` has one line, and W&B joins those of several runs."""
    import pandas as pd

    samples = row.get("samples", {}).get("perplexity", {})
    windows = pd.DataFrame({name: each for name, each in samples.items() if name.startswith("window_")})
    facts = {key: row[key] for key in ("run_id", "name")} | flat.facts(row)
    line = facts | {key: value for key, value in headline(row).items() if key not in facts}
    found = {
        "runs": pd.DataFrame([line]),
        "layers": layers,
        "windows": windows.rename_axis("window").reset_index(),
    }
    return {name: table for name, table in found.items() if len(table)}


def figures(row: Row, layers: "pd.DataFrame") -> "dict[str, wandb.Image | wandb.Html]":
    """Return the page's figures of a run as pictures (`plots/…`) and as Vega (`interactive/…`)."""
    import PIL.Image
    import wandb

    from experiments.report import export
    from experiments.report.theme import LIGHT

    found: dict[str, wandb.Image | wandb.Html] = {}
    for figure in _figures(row, layers):
        picture = PIL.Image.open(BytesIO(export.image(figure, LIGHT)))
        found[f"plots/{figure.key}"] = wandb.Image(picture, caption=figure.title)
        found[f"interactive/{figure.key}"] = wandb.Html(_html(figure.standalone(LIGHT)), inject=False)
    return found


def _figures(row: Row, layers: "pd.DataFrame") -> "list[Figure]":
    """Return the figures that one run fills: its divergence, training, layers and attention."""
    # Imported here: altair loads slowly, and most runs do not need it.
    from experiments.report.comparable import groups
    from experiments.report.figures import attention, divergence, trainings
    from experiments.report.figures import layers as heat_maps
    from experiments.report.figures.series import series

    (group,) = groups([row])
    looks, losses = series([group]), trainings.losses(group, series([group]))
    return [
        *divergence.figures(group, looks),
        *([losses] if losses else []),
        *heat_maps.figures(group, looks, {row["run_id"]: layers}),
        *attention.maps(group, looks),
    ]


def _html(spec: dict[str, Any]) -> str:
    scripts = "".join(f'<script src="https://cdn.jsdelivr.net/npm/{name}"></script>' for name in SCRIPTS)
    # vl-convert's own HTML lets a text in the specification end the script that it stands in.
    return INTERACTIVE.format(scripts=scripts, spec=json.dumps(spec).replace("<", "\\u003c"))


def artifact(row: Row, results_dir: Path) -> "wandb.Artifact":
    """Return the row's file and the table of its layers as an artifact.

    The files are not copied: W&B reads them where they are, when it sends them.
    """
    import wandb

    found = wandb.Artifact(f"row-{row['run_id']}", type="row", description=row["name"])
    paths = record.row_path(results_dir, row["run_id"]), record.layers_path(results_dir, row["run_id"])
    for path in paths:
        if path.is_file():
            found.add_file(str(path), policy="immutable", skip_cache=True)
    return found
