"""Reading the outputs of other packages (`../shared/golden/README.md`)."""

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from tests.conftest import SHARED

ABSENT = [("golden files", "absent")]
"""Stands in where there are none, so that the skipped test is seen."""


def golden_entries(package: str) -> list[tuple[str, str]]:
    """(file, tensor) of every dequantized matrix a package made."""
    found = []
    for file in sorted((SHARED / "golden").glob("*.safetensors")):
        with safe_open(file, "pt") as content:
            keys = [key for key in content.keys() if key.startswith(package)]  # noqa: SIM118
            found += [(file.name, key) for key in keys if key.endswith("dequantized")]
    return found or ABSENT


def read_golden(file: str) -> dict[str, Tensor]:
    """All tensors of a file."""
    return load_file(SHARED / "golden" / file)


def output_error(golden: dict[str, Tensor], matrix: Tensor) -> float:
    """‖X(W − Ŵ)ᵀ‖ / ‖XWᵀ‖ on activations no package has seen."""
    inputs, weight = golden["activations_heldout"].float(), golden["weight"]
    return (
        torch.linalg.matrix_norm(inputs @ (matrix.float() - weight).T)
        / torch.linalg.matrix_norm(inputs @ weight.T)
    ).item()
