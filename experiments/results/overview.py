"""Rows side by side, as a person looks at them: tables of metrics, names that tell runs apart, the facts below."""

from typing import Any

from rich import box
from rich.table import Table

from experiments.results.record import Row, flatten, get_path, settings

COLUMNS: tuple[tuple[str, str, str], ...] = (
    ("ppl", "perplexity.value", "number"),
    ("KL\nnats", "perplexity.kl", "significant"),
    ("flips", "perplexity.flip_rate", "percent"),
    ("bits/w", "size.bits_per_weight", "number"),
    ("model\nMB", "size.model_nbytes", "MB"),
    ("prefill\ntok/s", "latency.prefill", "speed"),
    ("decode\ntok/s", "latency.decode", "speed"),
    ("peak\nMB", "memory.inference_peak_bytes", "MB"),
    ("quant\ns", "compression.seconds_quantize", "seconds"),
)
"""Title, place in the row's metrics, format. Made to fit 100 characters."""


def table(rows: list[Row], title: str) -> Table:
    """Rows side by side: dense ones first, then in the order given. Columns nobody has are left out."""
    ordered = sorted(rows, key=lambda row: row["dense_run_id"] is not None)
    shown = [
        column
        for column in COLUMNS
        if any(get_path(row["metrics"], column[1]) is not None for row in ordered)
    ]
    view = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    view.add_column("run", no_wrap=True)
    for heading, _, _ in shown:
        view.add_column(heading, justify="right", no_wrap=True)
    for name, row in zip(distinct_names(ordered), ordered, strict=True):
        view.add_row(name, *(cell(get_path(row["metrics"], place), style) for _, place, style in shown))
    return view


def distinct_names(rows: list[Row]) -> list[str]:
    """The rows' names; those that several rows share, with the options in which these rows differ."""
    options = [flatten(settings(row)) for row in rows]
    names = []
    for row, own in zip(rows, options, strict=True):
        alike = [other for other, its in zip(options, rows, strict=True) if its["name"] == row["name"]]
        differing = sorted(
            {key for other in alike for key in {*own, *other} if own.get(key) != other.get(key)}
        )
        names.append(
            " ".join([row["name"], *(f"{key.rpartition('.')[2]}={own.get(key)}" for key in differing)])
        )
    return names


def cell(value: Any, style: str) -> str:
    """A metric as a short text, in one of the formats of `COLUMNS`; – for None."""
    if value is None:
        return "–"
    if style == "MB":
        return _short(value / 1e6, 1)
    if style == "percent":
        return f"{100 * value:.1f}%"
    if style == "significant":
        return f"{value:.3g}"
    if style == "seconds":
        return _short(value, 1)
    if style == "speed":
        own = _short(value.get("tokens_per_second", value["dense_tokens_per_second"]), 1)
        return f"{own} {value['ratio']:.2f}×" if "ratio" in value else own
    return _short(value, 3)


def _short(value: float, digits: int) -> str:
    """With so many digits after the point, or none where that would be a long number."""
    return f"{value:.{digits}f}" if value < 1000 else f"{value:.0f}"


def facts(row: Row) -> str:
    """One line under a table: what was measured on what."""
    perplexity, protocol = row["metrics"].get("perplexity"), row["protocol"]
    parts = [f"{protocol['source']}", f"{protocol['dtype']} on {row['identity']['device']}"]
    if perplexity:
        parts.insert(
            1,
            f"first {perplexity['windows']} of {perplexity['windows_available']} windows of {perplexity['seqlen']} tokens",
        )
    if "latency" in row["metrics"]:
        parts.append(f"kernel {row['metrics']['latency']['kernel']}")
    if row["identity"]["model"].get("name") == "smollm2":
        parts.append("embedded model, once 4-bit: for comparing methods, not for quoting")
    return "; ".join(parts)


def decisions(row: Row) -> str:
    """What was decided for the user, or an empty line."""
    taken = get_path(row["metrics"], "compression.decisions") or {}
    return ", ".join(f"{kind}: {count} layers" for kind, count in taken.items())
