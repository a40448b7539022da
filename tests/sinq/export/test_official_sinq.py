"""The official package's format: words as written bit by bit, and read back by the importer; refusals.

The package itself reads what is exported in `tests/sinq/checkpoint/foreign/test_official_package.py`.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import sinq
from baselines.rtn import RTN
from sinq import SINQ, Context, Grid, Layers, Levels, Method, NotApplicable
from sinq.checkpoint.foreign.official_sinq import PACKINGS, SIDECAR
from sinq.checkpoint.weight_files import INDEX, all_tensors
from sinq.export.matrices import compressed_matrices
from sinq.export.official_sinq import joined_rows
from tests.sinq.checkpoint.foreign.writers import Matrix, official
from tests.sinq.decoders import random_decoder

METHODS: dict[str, Method] = {
    **{f"{bits}": SINQ(Grid(bits, 32)) for bits in (2, 3, 4, 5, 6)},
    "tiled": SINQ(Grid(3, 32, tiling=2)),
    "nf4": SINQ(Grid(4, 32, levels=Levels.nf4)),
    "symmetric": RTN(Grid(5, 32, symmetric=True)),
}


def compressed(method: Method, name: str = "llama", **options: Any) -> Any:
    model = random_decoder(name)
    method.compress(model, context=Context(**options))
    return model


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize("rows", [8, 24, 33])
def test_words_are_those_written_bit_by_bit(bits: int, rows: int) -> None:
    matrix = Matrix(rows, 40, bits, 8, seed=bits)
    codes = torch.tensor(matrix.codes).to(torch.uint8).reshape(-1, 8)
    assert torch.equal(joined_rows(codes, bits, PACKINGS[bits]), official(matrix)["W_q"])


@pytest.mark.parametrize("method", METHODS)
def test_an_exported_model_is_read_back(method: str, tmp_path: Path) -> None:
    model = compressed(METHODS[method])
    sinq.export(model, tmp_path / "out", "official_sinq")
    again = sinq.load_foreign(tmp_path / "out").model
    for name, matrix in compressed_matrices(model).items():
        ours, theirs = matrix.value.dequantize(), again.get_submodule(name).weight.value.dequantize()
        assert torch.equal(ours, theirs)


def test_the_package_finds_what_it_asks_for(tmp_path: Path) -> None:
    """An index even of one file, the buffers that a model computes, and an entry of the sidecar by layer."""
    model = compressed(METHODS["tiled"])
    sinq.export(model, tmp_path / "out", "official_sinq")
    named = json.loads((tmp_path / "out" / INDEX).read_text())["weight_map"]
    assert {"model.rotary_emb.inv_freq", "model.rotary_emb.original_inv_freq"} <= named.keys()
    assert named.keys() == all_tensors(tmp_path / "out").keys()
    assert json.loads((tmp_path / "out" / SIDECAR).read_text()).keys() == compressed_matrices(model).keys()
    stated = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert stated["tiling_mode"] == "2D"
    assert stated["modules_to_not_convert"] == ["lm_head"]


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (lambda: compressed(RTN(Grid(8, 32))), "8 bits; use 2, 3, 4, 5 or 6 bits"),
        (lambda: compressed(RTN(Grid(4, 32, levels=Levels.fp4))), "codes are those of fp4"),
        (lambda: compressed(RTN(Grid(4, 32)), "moe"), "fused experts"),
        (
            lambda: compressed(RTN(Grid(4, 32)), "qwen3-untied", layers=Layers(exclude=())),
            "lm_head: the package leaves the output head dense",
        ),
    ],
)
def test_what_the_package_cannot_hold_is_refused(model: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(NotApplicable, match=words):
        sinq.export(model(), tmp_path / "out", "official_sinq")
    assert not (tmp_path / "out").exists()
