"""The model card beside an exported model: what it is, what is stored, what was measured, what it is not."""

from typing import Any

from sinq.checkpoint.card import facts_table
from sinq.export.base import Exporter, short
from sinq.export.report import ExportReport
from sinq.export.source import Source


def model_card(report: ExportReport, exporter: Exporter, source: Source) -> str:
    """Return the card, Markdown."""
    config: Any = source.model.config
    facts = {
        "architecture": ", ".join(config.architectures or [type(source.model).__name__]),
        "format": f"{report.format}, read by {exporter.read_by}",
        "quantized layers": len(report.matrices),
        "bits per weight, as stored here": f"{report.bits_per_weight:.3f}",
        "dense tensors": short(source.dtype),
        "column scales in the layer before": f"{len(report.folded)} layers",
        **source.about,
    }
    limits = "Written by sinq-harness. Not covered: the speed in any engine."
    return f"# Quantized model\n{facts_table(facts)}\n{_codes(report, exporter)}\n\n{limits}\n"


def _codes(report: ExportReport, exporter: Exporter) -> str:
    if not exporter.keeps_codes:
        return "**Re-fit**: every weight is rounded once more, to the levels of the format."
    if not report.requantized:
        return "Codes are those of the quantizer, unchanged."
    count, errors = len(report.requantized), report.requantized.values()
    ours, theirs = sum(each.quantized for each in errors), sum(each.exported for each in errors)
    return (
        f"**Rounded a second time**: {count} matrices, which the format cannot hold as they were quantized."
        f" Their mean relative error is {theirs / count:.4f} here, and was {ours / count:.4f}."
    )
