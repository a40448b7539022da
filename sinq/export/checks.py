"""Checks before anything is written: the model, then every matrix."""

from dataclasses import replace

import torch

from sinq.checkpoint.weight_files import LISTED
from sinq.common.errors import NotApplicable
from sinq.common.named import name_of
from sinq.export.base import Exporter
from sinq.export.source import Source, rounded
from sinq.export.view import Refusal, no_view
from sinq.formats.grid import Grid
from sinq.model.conv1d import is_conv1d
from sinq.model.edits import ReplaceExperts, ReplaceLinear, architecture, edits, unexplained

REQUANTIZE = "; requantize=true rounds it a second time, which is another model"


def checked(source: Source, exporter: Exporter, requantize: bool) -> Source:
    """Return a source with its folds, every matrix of which the format can hold.

    Args:
        requantize: give matrices that the format cannot hold a grid to be rounded to a second time.

    Raises:
        NotApplicable: the format cannot hold the model, or some matrices.
    """
    refusal = _refuse_model(source) or exporter.check_model(source)
    if refusal is not None:
        raise NotApplicable(f"{name_of(exporter)} cannot hold the model: {refusal.reason}; {refusal.help}")
    if not exporter.carries_columns:
        source = replace(source, folds=source.find_folds())
    grids: dict[str, Grid] = {}
    refused: dict[str, Refusal] = {}
    for name, matrix in source.matrices.items():
        refusal = no_view(matrix.value) or exporter.check(source.view(name), source.dtype)
        if refusal is not None and requantize and no_view(matrix.value) is None:
            view = source.view(name)
            grids[name] = _plain_grid(view.grid)
            refusal = exporter.check(rounded(view, grids[name]), source.dtype)
        if refusal is not None:
            refused[name] = refusal
    if refused:
        raise NotApplicable(_message(name_of(exporter), refused, len(source.matrices), requantize))
    return replace(source, requantized=grids)


def _refuse_model(source: Source) -> Refusal | None:
    """Return why no other format can hold a model: changes besides compressed weights."""
    model = source.model
    changes = [change for change in edits(model) if not isinstance(change, ReplaceLinear | ReplaceExperts)]
    if changes:
        return Refusal(f"it has an edit {changes[0].name}", "compress the model without it")
    if reasons := unexplained(model):
        return Refusal(reasons[0], "make such changes by sinq.model.edits.edit")
    if not source.matrices:
        return Refusal("it has no compressed matrices", "compress it first, or use save_pretrained")
    with torch.device("meta"):
        plain = architecture(model.config, None)
    turned = [name for name in source.matrices if name in dict(plain.named_modules())]
    turned = [name for name in turned if is_conv1d(plain.get_submodule(name))]
    if turned:
        return Refusal(f"{turned[0]} is stored as (in, out) in its checkpoints", "use sinq.save")
    return None


def _plain_grid(grid: Grid) -> Grid:
    """Return a grid of uniform levels with the bits and groups of another one, as every format has it."""
    return Grid(grid.bits, grid.group_size, symmetric=grid.symmetric, auxiliary_bits=32)


def _message(format: str, refused: dict[str, Refusal], count: int, requantize: bool) -> str:
    """Return one line: each reason once, with the layers it concerns."""
    layers: dict[Refusal, list[str]] = {}
    for name, refusal in refused.items():
        layers.setdefault(refusal, []).append(name)
    parts = []
    for refusal, names in list(layers.items())[:LISTED]:
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        parts.append(f"{names[0]}{more}: {refusal.reason}; {refusal.help}")
    rest = f"; and {len(layers) - LISTED} more reasons" if len(layers) > LISTED else ""
    also = "" if requantize else REQUANTIZE
    return f"{format} cannot hold {len(refused)} of {count} matrices: {'; '.join(parts)}{rest}{also}"
