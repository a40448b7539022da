"""The model card beside an exported model: what it is, what is stored, what was measured, what it is not."""

from statistics import mean
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
        words = "**Re-fit**: every weight is rounded once more, to the levels of the format"
    elif not report.requantized:
        return "Codes are those of the quantizer, unchanged."
    else:
        words = (
            f"**Rounded a second time**: {len(report.requantized)} matrices, which the format cannot hold as"
            " they were quantized"
        )
    return f"{words}. {_errors(report)}"


def _errors(report: ExportReport) -> str:
    """Return the mean errors of the second rounding."""
    errors = report.requantized.values()
    alone = mean(each.second for each in errors)
    against = [(each.quantized, each.exported) for each in errors]
    known = [(ours, theirs) for ours, theirs in against if ours is not None and theirs is not None]
    text = f"That alone is a mean relative error of {alone:.4f}"
    if not known:
        return f"{text}."
    ours, theirs = (mean(column) for column in zip(*known, strict=True))
    return f"{text}; against the dense model it is {theirs:.4f} here, and was {ours:.4f}."
