"""Rows side by side: tables of metrics, names that distinguish runs, and the facts below a table."""

from rich import box
from rich.table import Table

from experiments.results.record import Row, flatten, get_path, settings
from experiments.results.speed import pair, rate, words

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
"""Title, path in the row's metrics, format. Made to fit 100 characters."""


def table(rows: list[Row], title: str) -> Table:
    """Return rows as a table: dense runs first, then in the order given. Empty columns are left out."""
    ordered = sorted(rows, key=lambda row: row["dense_run_id"] is not None)
    shown = [
        (title, path, style)
        for title, path, style in COLUMNS
        if any(get_path(row["metrics"], path) is not None for row in ordered)
    ]
    view = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    view.add_column("run", no_wrap=True)
    for heading, _, _ in shown:
        view.add_column(heading, justify="right", no_wrap=True)
    for name, row in zip(distinct_names(ordered), ordered, strict=True):
        view.add_row(name, *(cell(row, path, style) for _, path, style in shown))
    return view


def distinct_names(rows: list[Row]) -> list[str]:
    """Return the rows' names, each followed by the options in which rows of the same name differ."""
    all_options = [flatten(settings(row)) for row in rows]
    names = []
    for row, options in zip(rows, all_options, strict=True):
        namesakes = [
            other_options
            for other, other_options in zip(rows, all_options, strict=True)
            if other["name"] == row["name"]
        ]
        differing = sorted(
            {key for other in namesakes for key in {*options, *other} if options.get(key) != other.get(key)}
        )
        parts = [f"{key.rpartition('.')[2]}={options.get(key)}" for key in differing]
        names.append(" ".join([row["name"], *parts]))
    return names


def cell(row: Row, path: str, style: str) -> str:
    """Return a row's metric as a short text, in one of the formats of `COLUMNS`; – where there is none.

    A speed takes two lines, beside the dense model's of the same rounds; a dense row's was timed alone.
    """
    value = get_path(row["metrics"], path)
    if value is None:
        return "–"
    if style == "speed":
        timed = pair(row, path.rpartition(".")[2])
        return f"{rate(value['dense_tokens_per_second'])} alone" if timed is None else words(timed)
    return _short_text(value, style)


def _short_text(value: float, style: str) -> str:
    if style == "MB":
        return _short(value / 1e6, 1)
    if style == "percent":
        return f"{100 * value:.1f}%"
    if style == "significant":
        return f"{value:.3g}"
    if style == "seconds":
        return _short(value, 1)
    return _short(value, 3)


def _short(value: float, digits: int) -> str:
    """Return a number with so many digits after the point, and with none from 1000 on."""
    return f"{value:.{digits}f}" if value < 1000 else f"{value:.0f}"


def facts(row: Row) -> str:
    """Return the line under a table: text, windows, number format, device and kernel."""
    perplexity, protocol = row["metrics"].get("perplexity"), row["protocol"]
    parts = [f"{protocol['source']}", f"{protocol['dtype']} on {row['identity']['device']}"]
    if perplexity:
        used = f"first {perplexity['windows']} of {perplexity['windows_available']} windows"
        parts.insert(1, f"{used} of {perplexity['seqlen']} tokens")
    if "latency" in row["metrics"]:
        parts.append(f"kernel {row['metrics']['latency']['kernel']}")
    if timed := pair(row, "decode"):
        spread = f" (spread of {timed.rounds} rounds)" if timed.spread else ""
        parts.append(f"speeds dense → compressed and their ratio{spread}")
    if row["identity"]["model"].get("name") == "smollm2":
        parts.append("embedded model, once 4-bit: for comparing methods, not for quoting")
    return "; ".join(parts)


def decisions(row: Row) -> str:
    """Return the decisions that compression made by itself, with their numbers of layers; may be empty."""
    taken = get_path(row["metrics"], "compression.decisions") or {}
    return ", ".join(f"{kind}: {count} layers" for kind, count in taken.items())
