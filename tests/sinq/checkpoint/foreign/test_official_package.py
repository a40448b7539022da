"""The official package against ours: what it writes is read here, and what is exported is read by it.

pip install --no-deps --target FOLDER sinq==0.2.0 termcolor
SINQ_OFFICIAL=FOLDER make readers
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import sinq
from baselines.rtn import RTN
from sinq import SINQ, Grid, Levels, Method
from sinq.checkpoint.foreign.reader import load_foreign
from tests.sinq.decoders import random_decoder

OFFICIAL = os.environ.get("SINQ_OFFICIAL")
PROGRAM = Path(__file__).with_name("official_package.py")
pytestmark = [
    pytest.mark.readers,
    pytest.mark.skipif(OFFICIAL is None, reason="SINQ_OFFICIAL names no folder with the official package"),
]


def run(*arguments: object) -> None:
    command = [sys.executable, str(PROGRAM), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=PROGRAM.parent)
    assert done.returncode == 0, done.stderr[-2000:]


def test_what_the_package_writes_is_read_to_the_last_bit(tmp_path: Path) -> None:
    """But for tables, which the package rounds to the type of the scales, float16, and multiplies there."""
    run("make", tmp_path)
    folders = sorted(path for path in tmp_path.iterdir() if path.is_dir())
    assert len(folders) > 10
    for folder in folders:
        found = load_foreign(folder).model
        matrices = load_file(folder.with_name(f"{folder.name}.expected"))
        assert matrices
        for name, matrix in matrices.items():
            store = found.get_submodule(name).weight
            difference = (store.value.dequantize() - matrix).abs().max()  # type: ignore[operator,union-attr]
            allowed = 2**-9 * matrix.abs().max() if "nf" in folder.name else 0
            assert difference <= allowed, f"{folder.name}: {name}: {difference}"


EXPORTED: dict[str, Method] = {
    **{f"{bits}": SINQ(Grid(bits, 64)) for bits in (2, 3, 4, 5, 6)},
    **{f"{bits}-tiled": SINQ(Grid(bits, 32, tiling=2)) for bits in (2, 3, 4, 5, 6)},
    "nf4": SINQ(Grid(4, 64, levels=Levels.nf4)),
    "plain": RTN(Grid(4, 64)),
    "symmetric": RTN(Grid(5, 64, symmetric=True)),
}


def test_the_package_reads_what_is_exported(tmp_path: Path) -> None:
    ids = torch.arange(32)[None] * 3 % 96
    ours = {}
    for name, method in EXPORTED.items():
        model = random_decoder("llama")
        method.compress(model)
        with torch.inference_mode():
            ours[name] = model(ids).logits
        sinq.export(model, tmp_path / name, "official_sinq")
    run("read", *(tmp_path / name for name in EXPORTED))
    for name, logits in ours.items():
        found = load_file(tmp_path / f"{name}.expected")["logits"]
        difference = ((found - logits).abs().max() / logits.abs().max()).item()
        assert difference < 1e-3, name
        print(f"{name}: {difference:.1e}")
