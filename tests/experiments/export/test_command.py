"""`python -m experiments.export`: a row's model made again and written, and words that are wrong."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

import sinq
from baselines.rtn import RTN
from experiments.common.paths import conf_dir
from experiments.config import register
from experiments.config.build import build
from experiments.export import __main__ as command
from experiments.export.restored import restored
from experiments.results import record
from experiments.results.former_rows import without_paths
from experiments.runs.identity import identity, options, run_id
from experiments.runs.portable import portable
from sinq.checkpoint.weight_files import all_tensors
from tests.experiments.rows import finished


def row_of(model: Path, *overrides: str) -> dict[str, Any]:
    """The finished row of a run of a composed configuration, which is not carried out."""
    register()
    words = ["model=hub", f"model.path={model}", "evaluation=quality", "group_size=32", *overrides]
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = compose("config", words, return_hydra_config=True)
    run = build(config)
    plain = OmegaConf.to_container(
        OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"]), enum_to_str=True
    )
    parts = identity(run)
    found = finished("sinq") | {"run_id": run_id(parts), "identity": parts, "options": options(run)}
    return found | {"config": portable(without_paths(plain)), "choices": dict(run.choices)}


def test_a_row_is_built_again(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SINQ_DATA", str(tiny_folder.parent))
    row = row_of(tiny_folder, "method=rtn_nf4", "activation=a8_token", "on_misfit=skip", "calibration=sotu")
    assert run_id(identity(build(restored(row)))) == row["run_id"]


def exported(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["experiments.export", *words])
    command.main()


def test_the_model_of_a_row(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SINQ_DATA", str(tiny_folder.parent))
    row = row_of(tiny_folder, "method=presinq")
    record.write(tmp_path / "rows", row)
    out = tmp_path / "out"
    where = ("--results", str(tmp_path / "rows"))
    exported(monkeypatch, f"run={row['run_id'][:6]}", "format=mlx", f"out={out}", *where)
    assert "14 matrices" in capsys.readouterr().out
    model = sinq_model(tiny_folder)
    sinq.PreSINQ(RTN(sinq.Grid(4, 32))).compress(model)
    sinq.export(model, tmp_path / "again", "mlx")
    one, other = all_tensors(out), all_tensors(tmp_path / "again")
    assert all(torch.equal(one[name], other[name]) for name in other)
    assert row["run_id"] in (out / "README.md").read_text()
    assert json.loads((out / "config.json").read_text())["quantization"]["bits"] == 4
    changed = row | {"run_id": "0" * 12}
    record.write(tmp_path / "changed", changed)
    with pytest.raises(ValueError, match="cannot be made again"):
        exported(
            monkeypatch,
            "run=0000",
            "format=mlx",
            f"out={tmp_path / 'x'}",
            "--results",
            str(tmp_path / "changed"),
        )


def sinq_model(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder)


def test_a_folder(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = sinq_model(tiny_folder)
    RTN(sinq.Grid(4, 32)).compress(model)
    sinq.save(model, tmp_path / "saved")
    exported(
        monkeypatch, f"run={tmp_path / 'saved'}", "format=awq", f"out={tmp_path / 'out'}", "dtype=float16"
    )
    assert json.loads((tmp_path / "out/config.json").read_text())["dtype"] == "float16"


def test_an_option_of_a_format(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = sinq_model(tiny_folder)
    RTN(sinq.Grid(3, 32)).compress(model)
    sinq.save(model, tmp_path / "saved")
    words = (f"run={tmp_path / 'saved'}", "format=gguf", f"out={tmp_path / 'out'}")
    with pytest.raises(sinq.NotApplicable, match="low_bits=true"):
        exported(monkeypatch, *words)
    exported(monkeypatch, *words, "low_bits=true")
    assert (tmp_path / "out/model.gguf").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["format=mlx", "out=x"], "run is missing"),
        (["run=a", "format=mlx"], "out is missing"),
        (["run=a", "format=mlx", "out=x", "bits=4"], "no option bits of mlx; there are: run, format, out"),
        (["run=a", "format=mlx", "out=x", "dtype=int8"], "dtype=int8 is not possible"),
        (["run=a", "format=mlx", "out=x", "requantize=1"], "must be true or false"),
        (["run=a", "format=gguf", "out=x", "low_bits=1"], "low_bits=1 is not possible; it must be true"),
        (["run=a", "format=mlx", "out=x", "low_bits=true"], "no option low_bits of mlx"),
        (["run=a", "format=mlxx", "out=x"], "mlxx"),
        (["run=.", "format=mlx", "out=x", "requantize=true"], "not a folder"),
    ],
)
def test_wrong_words(words: list[str], said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=said):
        exported(monkeypatch, *words)
