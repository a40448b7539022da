"""`export`: check every matrix, write into a folder beside the target, and rename it when it is complete."""

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from sinq.checkpoint.card import CARD
from sinq.checkpoint.folder import load
from sinq.checkpoint.stream import small_files
from sinq.common.atomic_files import making
from sinq.common.named import name_of, named
from sinq.common.progress import Progress, silent
from sinq.common.timing import timed
from sinq.export.base import Exporter
from sinq.export.card import model_card
from sinq.export.checks import checked
from sinq.export.errors import errors_of_second_rounding
from sinq.export.report import ExportReport
from sinq.export.source import Source

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@torch.no_grad()
def export(
    model: "PreTrainedModel | str | Path",
    folder: str | Path,
    format: "str | Exporter",
    *,
    tokenizer: Any = None,
    dtype: torch.dtype | None = None,
    requantize: bool = False,
    dense: nn.Module | None = None,
    about: Mapping[str, Any] | None = None,
    progress: Progress = silent,
) -> ExportReport:
    """Write a compressed model in another project's format, from its codes.

    Args:
        model: a model in memory, or the folder of one that `save` or `stream` wrote.
        folder: to be made; missing or empty.
        format: name of a format, or an exporter with options.
        tokenizer: of the model, whose files are written too; those in the folder of a model are copied.
        dtype: of dense tensors there, by default the model's.
        requantize: round matrices that the format cannot hold a second time, to nearest, with the same bits
            and groups. This is another model: the report has the errors of both.
        dense: the model before it was compressed, from which the errors of a second rounding are taken.
        about: facts for the model card.

    Raises:
        NotApplicable: before anything is written, if the format cannot hold the model; the message names
            layers, the reason and what would help.
        FileExistsError: the folder has files.
        ValueError: no format has the name; `requantize` is given without `dense`.
    """
    exporter = named(Exporter, format)() if isinstance(format, str) else format  # type: ignore[type-abstract]
    if requantize and dense is None:
        raise ValueError("requantize=true compares with the dense model; pass it as dense=")
    with timed(torch.device("cpu")) as clock, making(Path(folder)) as scratch:
        source = checked(_source(model, tokenizer, dtype, about or {}), exporter, requantize)
        errors = errors_of_second_rounding(source, exporter, dense)
        written = exporter.write(source, scratch, progress)
        _write_small(source, scratch)
        report = ExportReport(
            name_of(exporter), tuple(written), _nbytes(scratch), tuple(sorted(source.folds.folded)), errors
        )
        (scratch / CARD).write_text(model_card(report, exporter, source))
    return replace(report, seconds=clock.seconds)


def _source(model: Any, tokenizer: Any, dtype: torch.dtype | None, about: Mapping[str, Any]) -> Source:
    """Return what is exported; a folder is loaded, which maps its files."""
    files: tuple[Path, ...] = ()
    if isinstance(model, str | Path):
        files = tuple(small_files(Path(model)))
        model = load(model)
    return Source(model, dtype or model.dtype, tokenizer=tokenizer, files=files, about=about)


def _write_small(source: Source, folder: Path) -> None:
    """Write the tokenizer's files, without touching those that the exporter wrote."""
    for path in source.files:
        if not (folder / path.name).exists():
            shutil.copyfile(path, folder / path.name)
    if source.tokenizer is not None:
        source.tokenizer.save_pretrained(folder)


def _nbytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
