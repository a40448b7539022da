"""Against the outputs of the official SINQ package on fixed matrices (`../shared/golden/README.md`)."""

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from sinq import SINQ, Grid, HalfQuadratic, Levels, QuantizedTensor, Sinkhorn
from tests.conftest import SHARED, needs_golden

LEVELS = {"sinq": Levels.uniform, "sinq_hqq": Levels.uniform, "sinq_nf4": Levels.nf4, "sinq_nf3": Levels.nf3}
OFFICIAL = {"auxiliary_bits": 32, "range_floor": 1e-4}


def entries() -> list[tuple[str, str]]:
    """(file, prefix) of every official result."""
    if not (SHARED / "golden").is_dir():
        return [("golden files", "absent")]  # so that the skipped test is seen
    found = []
    for file in sorted((SHARED / "golden").glob("*.safetensors")):
        with safe_open(file, "pt") as content:
            found += [
                (file.name, key.removesuffix(".codes"))
                for key in list(content.keys())
                if key.startswith("sinq") and key.endswith(".codes")
            ]
    return found


def read(file: str, prefix: str) -> tuple[Tensor, dict[str, Tensor]]:
    with safe_open(SHARED / "golden" / file, "pt") as content:
        return content.get_tensor("weight"), {
            key: content.get_tensor(f"{prefix}.{key}") for key in ("codes", "scale", "zero", "col_scale")
        }


def method(prefix: str, sinkhorn: Sinkhorn, **grid: float) -> SINQ:
    kind, tiling, bits, group = prefix.split(".")
    shape = {
        "bits": int(bits[1:]),
        "group_size": int(group[1:]),
        "tiling": int(tiling[0]),
        "levels": LEVELS[kind],
    }
    refinement = HalfQuadratic() if kind == "sinq_hqq" else None
    return SINQ(Grid(**shape, **grid), sinkhorn, refinement=refinement)  # type: ignore[arg-type]


def official_matrix(golden: dict[str, Tensor], result: QuantizedTensor) -> Tensor:
    """The official dequantization, spelled out."""
    out, columns = result.shape
    codes = golden["codes"].long()
    levels = (
        codes.float()
        if result.grid.levels is Levels.uniform
        else torch.tensor(result.grid.levels.value)[codes]
    )
    groups = levels.reshape(out, -1, result.grid.group_size)
    matrix = ((groups - golden["zero"][..., None]) * golden["scale"][..., None]).reshape(out, columns)
    col_scale = golden["col_scale"].reshape(-1, columns)
    return matrix * col_scale.repeat_interleave(out // len(col_scale), dim=0)


@needs_golden
@pytest.mark.parametrize(("file", "prefix"), entries())
def test_official_constants_give_the_official_matrix(file: str, prefix: str) -> None:
    weight, golden = read(file, prefix)
    result = method(prefix, Sinkhorn(relative_floors=False), **OFFICIAL).quantize(weight)
    same = result.codes() == golden["codes"]
    assert same.float().mean() >= 0.9999
    ours, theirs = result.dequantize()[same], official_matrix(golden, result)[same]
    close = torch.isclose(ours, theirs, rtol=1e-5, atol=1e-6 * weight.std().item())
    # one tie moves the refined zero of its group of 64
    assert close.float().mean() >= (0.9995 if "hqq" in prefix else 1)


@needs_golden
@pytest.mark.parametrize(("file", "prefix"), entries())
def test_method_sinq_agrees_with_the_official_codes(file: str, prefix: str) -> None:
    weight, golden = read(file, prefix)
    result = method(prefix, Sinkhorn()).quantize(weight)
    assert (result.codes() == golden["codes"]).float().mean() >= 0.999
