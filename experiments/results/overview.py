"""Rows side by side under a title, as `run.py` prints them, and the facts and notes below."""

from collections.abc import Sequence
from pathlib import Path

from experiments.common import fitted
from experiments.common.console import console
from experiments.common.fitted import Column
from experiments.results import columns, notes, record
from experiments.results.names import method_names
from experiments.results.record import Row
from experiments.results.speed import pair


def table(rows: Sequence[Row]) -> list[Column]:
    """Return the columns of a table of rows, in the order given; metrics that no row has are left out."""
    names = Column("run", tuple(map(fitted.clean, method_names(rows))), wraps=True)
    return [names, *metric_columns(rows)]


def metric_columns(rows: Sequence[Row]) -> list[Column]:
    """Return a column for each metric that some row has."""
    return [metric_column(rows, metric) for metric in columns.metrics(rows)]


def metric_column(rows: Sequence[Row], metric: columns.Metric) -> Column:
    """Return a metric's column, its numbers in one format."""
    return Column(metric.heading, tuple(columns.cells(rows, metric)), metric.importance, right=True)


def show(rows: Sequence[Row], results_dir: Path, title: str) -> None:
    """Print rows of one model, text and measurement: title, table, facts, and each decision once."""
    ordered = sorted(rows, key=lambda row: row["dense_run_id"] is not None)
    way_out = f"all columns: python -m experiments.results --results {results_dir} --format markdown"
    fitted.show(console, table(ordered), title, way_out)
    console.print(facts(ordered[-1]), soft_wrap=True, style="dim")
    for line in decided(ordered, results_dir):
        console.print(line, soft_wrap=True)


def decided(rows: Sequence[Row], results_dir: Path) -> list[str]:
    """Return the decisions of compressed rows in words, each once; damaged tables of layers are named."""
    texts, damaged = [], []
    compressed = [row for row in rows if row["dense_run_id"] is not None]
    for name, row in zip(method_names(compressed), compressed, strict=True):
        layers = None
        try:
            layers = record.read_layers(results_dir, row["run_id"])
        except record.RowError as error:
            damaged.append(str(error))
        texts += [(name, text) for text in notes.decisions(row, layers)]
    return [*notes.once(texts, len(compressed)), *damaged]


def facts(row: Row) -> str:
    """Return the line under a table: text, windows, number format, device and kernel."""
    perplexity, protocol = row["metrics"].get("perplexity"), row["protocol"]
    parts = [f"{protocol['source']}", f"{protocol['dtype']} on {row['identity']['device']}"]
    if perplexity:
        available = perplexity.get("windows_available", "?")
        used = f"first {perplexity['windows']} of {available} windows"
        parts.insert(1, f"{used} of {perplexity['seqlen']} tokens")
    if "latency" in row["metrics"]:
        parts.append(f"kernel {row['metrics']['latency'].get('kernel', 'unknown')}")
    if timed := pair(row, "decode"):
        spread = f" (spread of {timed.rounds} rounds)" if timed.spread else ""
        parts.append(f"speeds dense → compressed and their ratio{spread}")
    if row["identity"]["model"].get("name") == "smollm2":
        parts.append("embedded model, once 4-bit: for comparing methods, not for quoting")
    return "; ".join(parts)
