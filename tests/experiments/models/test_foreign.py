"""Runs on checkpoints that another project quantized: a row of what their files state, or a refusal."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from baselines.dense import Dense
from baselines.rtn import RTN
from experiments.data.text import StateOfTheUnion
from experiments.evaluation import LayerError, Memory, Perplexity, Size
from experiments.models.refusals import UnfitModelError
from experiments.models.source import Pretrained
from experiments.report.figures.layers import metrics
from experiments.results import record
from experiments.results.record import Row
from experiments.runs.identity import identity
from experiments.runs.pipeline import Execution, execute
from experiments.runs.run import Run
from sinq import Grid, Kernel, Method, save
from tests.conftest import tiny_model, tiny_tokenizer
from tests.sinq.checkpoint.foreign.writers import KINDS, write


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("SINQ_CACHE", str(tmp_path / "cache"))
    write(tmp_path / "theirs", KINDS["gptq"], tiny_model("llama"))
    tiny_tokenizer().save_pretrained(tmp_path / "theirs")
    evaluation = {
        "perplexity": Perplexity(windows=2),
        "size": Size(),
        "memory": Memory(prompt_tokens=16),
        "layer_error": LayerError(),
    }
    source = Pretrained(path=str(tmp_path / "theirs"))
    return Run(source, StateOfTheUnion(evaluate_from=2025), Dense(), evaluation, device="cpu")


@pytest.fixture
def row(run: Run, tmp_path: Path) -> Row:
    return execute(run, Execution(tmp_path / "results"))


def test_a_row_has_name_options_and_sizes_of_the_files(run: Run, row: Row, tmp_path: Path) -> None:
    assert row["name"] == "gptq 4-bit g32"
    assert row["metrics"]["compression"]["stated"] == KINDS["gptq"].config
    assert row["metrics"]["compression"]["layers"] == 14
    size = row["metrics"]["size"]
    # 4 bits of code, 16 of scale and 4 of zero for 32 weights; 4 bytes for each input of a matrix
    assert 4 + 20 / 32 < size["bits_per_weight"] < 5.2
    stored, dense = load_file(tmp_path / "theirs" / "model.safetensors"), tiny_model("llama").state_dict()
    assert size["model_nbytes"] == sum(tensor.nbytes for tensor in stored.values())
    assert size["dense_model_nbytes"] == sum(tensor.nbytes for tensor in dense.values())
    assert torch.isfinite(torch.tensor(row["metrics"]["perplexity"]["value"]))


def test_the_kernel_is_part_of_its_identity(run: Run) -> None:
    assert identity(run)["kernel"] == "auto"
    assert identity(replace(run, kernel=Kernel.reference)) != identity(run)


def test_its_layers_have_sizes_and_no_errors(row: Row, tmp_path: Path) -> None:
    layers = record.read_layers(tmp_path / "results", row["run_id"])
    assert layers["relative_error"].isna().all()
    assert (layers["bits_per_weight"] > 4).all()
    assert metrics(row, layers)["relative_error"].keys() == set(layers["name"])


def test_a_method_refuses_it_before_it_is_loaded(run: Run, tmp_path: Path) -> None:
    with pytest.raises(UnfitModelError, match=r"quantized already \(gptq\).*method=none measures it"):
        execute(replace(run, method=RTN(Grid(group_size=32))), Execution(tmp_path / "results"))


@pytest.mark.parametrize("method", [Dense(), RTN(Grid(group_size=32))], ids=["none", "rtn"])
def test_a_folder_of_ours_is_no_model_to_measure(run: Run, tmp_path: Path, method: Method) -> None:
    model = tiny_model("llama")
    RTN(Grid(group_size=32)).compress(model)
    save(model, tmp_path / "ours")
    ours = replace(run, model=replace(run.model, path=str(tmp_path / "ours")), method=method)
    with pytest.raises(UnfitModelError, match=r"was written by sinq.save; its row is that of the run"):
        execute(ours, Execution(tmp_path / "results"))


def test_a_format_that_is_not_read_is_named(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "theirs" / "config.json"
    content = json.loads(path.read_text()) | {"quantization_config": {"quant_method": "quip"}}
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="quant_method is quip; sinq, compressed"):
        execute(run, Execution(tmp_path / "results"))
