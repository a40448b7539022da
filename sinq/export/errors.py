"""Errors of matrices that an export rounds a second time: on request, or as the format does with all."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from sinq.common.errors import NotApplicable
from sinq.export.base import Exporter
from sinq.export.folding import Folds
from sinq.export.matrices import GATE_UP
from sinq.export.report import RequantizedMatrix
from sinq.export.source import Source


def errors_of_second_rounding(
    source: Source, exporter: Exporter, dense: nn.Module | None
) -> dict[str, RequantizedMatrix]:
    """Return the errors of every matrix that is rounded a second time, by name.

    Args:
        dense: the model before it was compressed; None where it is not known.

    Raises:
        NotApplicable: matrices are rounded on request, and the dense model is not the one that was
            compressed.
    """
    names = source.requantized if exporter.keeps_codes else source.matrices
    other = _rewritten(source, dense) if names and dense is not None else None
    if other is not None and source.requantized:
        raise NotApplicable(
            f"requantize=true compares with the dense model, where {other} is another: a method rewrote the"
            " model, or it is not the one that was compressed"
        )
    plain = replace(source, requantized={}, folds=Folds())
    errors = {}
    for name in names:
        ours, theirs = plain.view(name).dense(), _unfolded(source, exporter, name)
        against: tuple[float | None, float | None] = (None, None)
        if dense is not None and other is None:
            wanted = _dense_matrix(dense, name).float()
            against = _relative(ours, wanted), _relative(theirs, wanted)
        errors[name] = RequantizedMatrix(_relative(theirs, ours), *against)
    return errors


def _rewritten(source: Source, dense: nn.Module) -> str | None:
    """Return the name of a dense tensor that the dense model has otherwise; None where all are the same."""
    held = dense.state_dict()
    for name, tensor in source.dense.items():
        if name not in held or not torch.equal(tensor, held[name].to(tensor.device, tensor.dtype)):
            return name
    return None


def _unfolded(source: Source, exporter: Exporter, name: str) -> Tensor:
    """Return a matrix as it is exported, with what was folded taken out of its rows, or given back to it."""
    matrix = exporter.written(source.view(name))
    if name in source.folds.rows:
        matrix = matrix / source.folds.rows[name][:, None]
    columns = source.matrices[name].view().col_scale if name in source.folds.folded else None
    return matrix if columns is None else matrix * columns


def _dense_matrix(dense: Any, name: str) -> torch.Tensor:
    """Return the matrix of a layer of the dense model, or of an expert in a fused parameter."""
    owner, _, last = name.rpartition(".")
    experts, _, number = owner.rpartition(".")
    if not number.isdigit() or not experts.endswith(".experts"):
        matrix: torch.Tensor = dense.get_submodule(name).weight
        return matrix
    module = dense.get_submodule(experts)
    if last == "down_proj":
        return getattr(module, last)[int(number)]
    gate, up = getattr(module, GATE_UP)[int(number)].chunk(2)
    return gate if last == "gate_proj" else up


def _relative(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return ((found - wanted).norm() / wanted.norm()).item()
