"""`sinq.export`: what is refused and why, what lies in the folder, and what is left after a failure."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import sinq
from baselines.rtn import RTN
from sinq import MLX, SINQ, Grid, NotApplicable, PreSINQ, SINQRefined
from sinq.checkpoint.weight_files import all_tensors
from sinq.common.named import names
from tests.conftest import tiny_model, tiny_tokenizer
from tests.sinq.decoders import random_decoder
from tests.sinq.export.exported import NF4, FinerDown, balanced

FORMATS = ("awq", "bnb_nf4", "compressed_tensors", "gptq", "mlx", "torchao")


def plain(grid: Grid, name: str = "llama") -> Any:
    return balanced(name, grid)


def written(format: str, folder: Path, model: Any = None, **options: Any) -> Any:
    given = model or plain(NF4 if format == "bnb_nf4" else Grid(4, 32))
    dtype = torch.bfloat16 if format == "torchao" else None
    return sinq.export(given, folder, format, dtype=dtype, **options)


def test_formats_are_found_by_name(tmp_path: Path) -> None:
    assert {*FORMATS} <= {*names(sinq.Exporter)}
    with pytest.raises(
        ValueError, match=r"'gguf4' is not the name of a known Exporter; known are awq, bnb_nf4"
    ):
        sinq.export(tiny_model("llama"), tmp_path / "out", "gguf4")


@pytest.mark.parametrize("format", FORMATS)
def test_a_folder_has_all_that_a_model_needs(format: str, tmp_path: Path) -> None:
    report = written(format, tmp_path / "out", tokenizer=tiny_tokenizer(), about={"perplexity": "12.3"})
    found = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"config.json", "generation_config.json", "tokenizer.json", "README.md"} <= found
    assert "model.safetensors.index.json" in found
    tensors = all_tensors(tmp_path / "out")
    of_matrices = sum(
        t.nbytes for name, t in tensors.items() if "_proj." in name and not name.endswith("bias")
    )
    weights = sum(rows * columns for rows, columns in (matrix.shape for matrix in report.matrices))
    assert report.bits_per_weight == pytest.approx(8 * of_matrices / weights)
    assert report.nbytes > of_matrices
    card = (tmp_path / "out/README.md").read_text()
    assert f"{report.bits_per_weight:.3f}" in card
    assert "12.3" in card
    assert json.loads((tmp_path / "out/config.json").read_text())["architectures"] == ["LlamaForCausalLM"]


def test_a_saved_folder_is_exported_with_its_tokenizer(tmp_path: Path) -> None:
    model = plain(Grid(4, 32))
    sinq.save(model, tmp_path / "saved")
    tiny_tokenizer().save_pretrained(tmp_path / "saved")
    written("mlx", tmp_path / "memory", model)
    written("mlx", tmp_path / "folder", tmp_path / "saved")
    one, other = all_tensors(tmp_path / "memory"), all_tensors(tmp_path / "folder")
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert (tmp_path / "folder/tokenizer.json").exists()
    assert not (tmp_path / "folder/sinq.json").exists()


def test_the_same_bytes_at_every_export(tmp_path: Path) -> None:
    for name in ("one", "other"):
        written("compressed_tensors", tmp_path / name)
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "other").iterdir())
    assert all((tmp_path / "one" / f).read_bytes() == (tmp_path / "other" / f).read_bytes() for f in files)


def refusal(model: Any, format: str, folder: Path, **options: Any) -> str:
    """The message of a refusal, after which nothing is left."""
    with pytest.raises(NotApplicable) as refused:
        sinq.export(model, folder / "out", format, **options)
    assert not list(folder.iterdir())
    message = str(refused.value)
    assert "\n" not in message
    return message


def test_plain_sinq_is_refused_by_layer_with_what_helps(tmp_path: Path) -> None:
    model = random_decoder("qwen2")
    SINQ(Grid(4, 32)).compress(model)
    message = refusal(model, "compressed_tensors", tmp_path)
    assert "cannot hold 12 of 14 matrices: model.layers.0.self_attn.q_proj and 11 more" in message
    assert "presinq or shared_columns=true" in message
    assert "requantize=true" in message


@pytest.mark.parametrize(
    ("method", "format", "said"),
    [
        (SINQ(Grid(4, 32, tiling=2)), "torchao", "tiling=1"),
        (RTN(Grid(3, 32)), "awq", "3 bits; use 4 bits"),
        (RTN(Grid(5, 32)), "gptq", "5 bits; use 2, 3, 4 or 8 bits"),
        (RTN(Grid(4, 16)), "mlx", "groups of 16; use group_size=32, 64 or 128"),
        (RTN(NF4), "mlx", "a table, nf4"),
        (RTN(Grid(4, 32)), "bnb_nf4", "grid.levels=nf4 and grid.symmetric=true"),
        (FinerDown(Grid(4, 32)), "gptq", "use one grid for all layers"),
        (RTN(Grid(4, 32)), "torchao", "use dtype=bfloat16"),
        (PreSINQ(SINQRefined(Grid(4, 32))), "mlx", "column scales"),
    ],
)
def test_what_a_format_cannot_hold(method: Any, format: str, said: str, tmp_path: Path) -> None:
    model = random_decoder("llama")
    method.compress(model)
    options = {"dtype": torch.bfloat16} if format == "torchao" and "dtype" not in said else {}
    assert said in refusal(model, format, tmp_path, **options)


def test_fractional_zeros_are_refused_where_zeros_are_codes(tmp_path: Path) -> None:
    model = random_decoder("llama")
    SINQRefined(Grid(4, 32), shared_columns=True).compress(model)
    assert "whole numbers from 0 to 15" in refusal(model, "compressed_tensors", tmp_path)
    assert sinq.export(model, tmp_path / "out", "mlx").folded


def test_models_that_are_more_than_compressed_weights(tmp_path: Path) -> None:
    rounded = random_decoder("llama")
    sinq.Activations(RTN(Grid(4, 32)), sinq.ActivationFormat(bits=8)).compress(rounded)
    assert "it has an edit" in refusal(rounded, "mlx", tmp_path)
    assert "no compressed matrices" in refusal(random_decoder("llama"), "mlx", tmp_path)
    turned = tiny_model("gpt2")
    RTN(Grid(4, 32)).compress(turned)
    assert "(in, out)" in refusal(turned, "mlx", tmp_path)


def test_requantizing_records_both_errors(tmp_path: Path) -> None:
    dense, model = random_decoder("qwen2"), random_decoder("qwen2")
    SINQ(Grid(4, 32)).compress(model)
    with pytest.raises(ValueError, match="pass it as dense="):
        sinq.export(model, tmp_path / "out", "mlx", requantize=True)
    report = sinq.export(model, tmp_path / "out", "mlx", requantize=True, dense=dense)
    assert len(report.requantized) == 12  # down is folded, and stays as it is
    tensors = all_tensors(tmp_path / "out")
    assert all(errors.exported > errors.quantized > 0 for errors in report.requantized.values())
    name = "model.layers.0.self_attn.q_proj"
    wanted, ours = dense.get_submodule(name).weight, model.get_submodule(name).weight.dense()
    error = ((ours - wanted).norm() / wanted.norm()).item()
    found = report.requantized[name]
    assert found.quantized == pytest.approx(error)
    again = RTN(Grid(4, 32, auxiliary_bits=32)).quantize(ours)
    assert found.second == pytest.approx(((again.dequantize() - ours).norm() / ours.norm()).item(), rel=1e-4)
    assert torch.equal(tensors[f"{name}.scales"], again.scale())
    assert "Rounded a second time**: 12 matrices" in (tmp_path / "out/README.md").read_text()


def test_requantizing_compares_with_the_model_that_was_compressed(tmp_path: Path) -> None:
    """PreSINQ's matrices are not those of the dense model."""
    model = random_decoder("llama")
    PreSINQ(SINQ(Grid(4, 32))).compress(model)
    with pytest.raises(NotApplicable, match="a method rewrote the model"):
        sinq.export(model, tmp_path / "out", "mlx", requantize=True, dense=random_decoder("llama"))
    assert not list(tmp_path.iterdir())


def test_a_matrix_with_groups_of_zeros(tmp_path: Path) -> None:
    model = random_decoder("llama")
    model.model.layers[0].mlp.up_proj.weight[3] = 0
    PreSINQ(RTN(Grid(4, 32))).compress(model)
    sinq.export(model, tmp_path / "out", "mlx", dtype=torch.float16)
    stored = all_tensors(tmp_path / "out")
    assert stored["model.layers.0.mlp.up_proj.scales"].isfinite().all()


def test_scales_beyond_a_number_format_are_refused(tmp_path: Path) -> None:
    model = random_decoder("llama")
    model.model.layers[0].self_attn.q_proj.weight.mul_(1e6)
    RTN(Grid(4, 32, auxiliary_bits=32)).compress(model)
    said = refusal(model, "mlx", tmp_path, dtype=torch.float16)
    assert "beyond float16; export with dtype=float32" in said
    sinq.export(model, tmp_path / "out", "mlx")


def test_a_folder_with_files_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="not empty"):
        written("mlx", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_nothing_is_left_of_an_export_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> Any:
        raise OSError("no space left")

    monkeypatch.setattr(MLX, "description", fail)
    with pytest.raises(OSError, match="no space"):
        written("mlx", tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_one_block_at_a_time_is_in_memory(tmp_path: Path) -> None:
    written("compressed_tensors", tmp_path / "out")
    names = {path.name: {*load_file(path)} for path in (tmp_path / "out").glob("*.safetensors")}
    blocks = [{name.split(".")[2] for name in found if ".layers." in name} for found in names.values()]
    assert all(len(block) <= 1 for block in blocks)
