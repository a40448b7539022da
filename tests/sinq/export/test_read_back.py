"""What is exported is read by the importer of the same format: the same matrices."""

from pathlib import Path

import pytest
import torch

import sinq
from sinq import Grid
from sinq.export.matrices import compressed_matrices
from sinq.model.experts import CompressedExperts
from tests.conftest import tiny_tokens
from tests.sinq.export.exported import balanced, logits

FORMATS = [("compressed_tensors", bits) for bits in (2, 3, 4, 5, 6, 8)]
FORMATS += [("gptq", bits) for bits in (2, 3, 4, 8)] + [("awq", 4)]


@pytest.mark.parametrize(("format", "bits"), FORMATS)
def test_matrices(format: str, bits: int, tmp_path: Path) -> None:
    model = balanced("llama", Grid(bits, 32))
    sinq.export(model, tmp_path / "out", format, dtype=torch.float16)
    again = sinq.load_foreign(tmp_path / "out").model
    for name, matrix in compressed_matrices(model).items():
        store = again.get_submodule(name).weight
        assert torch.equal(store.value.dequantize(), matrix.value.dequantize())  # type: ignore[operator,union-attr]


@pytest.mark.parametrize("format", ["compressed_tensors", "awq"])
def test_experts(format: str, tmp_path: Path) -> None:
    model = balanced("moe", Grid(4, 32))
    sinq.export(model, tmp_path / "out", format)
    again = sinq.load_foreign(tmp_path / "out").model
    assert sum(isinstance(module, CompressedExperts) for module in again.modules()) == 4
    with torch.no_grad():
        found = again(tiny_tokens()).logits
    torch.testing.assert_close(found, logits(model), rtol=1e-3, atol=1e-3)
