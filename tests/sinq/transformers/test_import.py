"""`import sinq` alone makes transformers know our folders, before transformers is imported or after."""

import subprocess
import sys
from pathlib import Path

import pytest

import sinq
from sinq import SINQ, Grid
from tests.conftest import ROOT, tiny_model

LOAD = """
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
print(type(model.model.layers[0].mlp.up_proj.weight).__name__)
model.save_pretrained(sys.argv[2])
"""
FIRST = f"import sys, sinq; assert 'transformers' not in sys.modules{LOAD}"
TWICE = f"""import sys, sinq, transformers.modeling_utils
[sys.modules.pop(name) for name in [*sys.modules] if name.partition(".")[0] == "sinq"]
import sinq{LOAD}"""


@pytest.mark.parametrize("code", [FIRST, TWICE])
def test_a_folder_is_loaded_and_saved_after_importing_sinq(code: str, tmp_path: Path) -> None:
    model = tiny_model("llama")
    SINQ(Grid(bits=4, group_size=16)).compress(model)
    sinq.save(model, tmp_path / "saved")
    command = [sys.executable, "-c", code, tmp_path / "saved", tmp_path / "again"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert (done.returncode, done.stdout) == (0, "WeightStore\n"), done.stderr
    for name in ("model.safetensors", "sinq.json", "config.json"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "saved" / name).read_bytes()
