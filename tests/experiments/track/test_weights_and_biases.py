import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from wandb.proto import wandb_internal_pb2 as pb

from experiments.config.build import register
from experiments.results.paths import flatten
from experiments.track.weights_and_biases import WandB
from tests.conftest import ROOT
from tests.experiments.rows import finished, layers, store
from tests.experiments.track.server import serving

BLOCK, HEADER = 32768, 7
NASTY = "</script><script>alert(1)</script>"


def records(file: Path) -> Iterator[pb.Record]:
    """What an offline file holds: a LevelDB log of protobuf messages, after a header of seven bytes."""
    content, offset, message = file.read_bytes(), HEADER, b""
    while offset + HEADER <= len(content):
        if BLOCK - offset % BLOCK < HEADER:  # the rest of a block too short for a header is padding
            offset += BLOCK - offset % BLOCK
            continue
        length, kind = int.from_bytes(content[offset + 4 : offset + 6], "little"), content[offset + 6]
        message += content[offset + HEADER : offset + HEADER + length]
        offset += HEADER + length
        if kind in (1, 4):  # whole, or the last part
            yield pb.Record.FromString(message)
            message = b""


def finished_records(file: Path) -> list[pb.Record]:
    """Return all records once the last is there: the process of W&B may still write when `finish` returns."""
    start = time.monotonic()
    while time.monotonic() - start < 120:
        found = list(records(file))
        if found and found[-1].HasField("exit"):
            return found
        time.sleep(0.2)
    kinds = [record.WhichOneof("record_type") for record in records(file)]
    raise AssertionError(f"{file.name} was never finished; it has {kinds}")


def test_an_offline_folder_has_all_that_the_row_has(tmp_path: Path) -> None:
    row = finished("sinq")
    row["samples"]["layer_error"] = {"relative_error": {"model.layers.0.mlp.down_proj": 0.25}}
    store(tmp_path, row)
    WandB(group="one sweep").log(row, layers(row), tmp_path)
    (folder,) = tmp_path.glob("wandb/offline-run-*")
    history: dict[str, str] = {}
    summary: dict[str, str] = {}
    config: dict[str, str] = {}
    groups = set()
    for record in finished_records(folder / f"run-{row['run_id']}.wandb"):
        history |= {item.key or ".".join(item.nested_key): item.value_json for item in record.history.item}
        summary |= {item.key or ".".join(item.nested_key): item.value_json for item in record.summary.update}
        config |= {
            item.key or ".".join(item.nested_key): item.value_json for item in record.run.config.update
        }
        if record.HasField("run"):
            run = record.run
            groups |= {(run.run_group, run.job_type, tuple(run.tags), run.display_name)}
    expected = {path.replace(".", "/"): value for path, value in flatten(row["metrics"]).items()}
    assert "perplexity/value" in expected
    for found in (history, summary):
        assert {key: json.loads(found[key]) for key in expected} == expected
    assert json.loads(config["identity"]) == row["identity"]
    assert groups == {("one sweep", "sinq", ("sinq", "4-bit", "g64", "m", "t"), "sinq 4-bit g64")}
    numbers = {"perplexity": row["metrics"]["perplexity"]["value"], "kl": 0.1, "flips": 0.2, "decode": 2.0}
    numbers |= {"bits_per_weight": 4.5, "model_mb": 40.0}
    assert {key: json.loads(summary[key]) for key in numbers} == numbers
    flat = {"method": "sinq", "bits": 4, "group_size": 64, "calibrated": False, "model": "m", "text": "t"}
    assert {name: json.loads(config[name]) for name in flat} == flat
    tables = {
        path.name.partition("_")[0]: json.loads(path.read_text())
        for path in folder.glob("files/media/table/*.json")
    }
    assert len(tables["layers"]["data"]) == len(layers(row))
    window = tables["windows"]["columns"].index("window_nll")
    assert [line[window] for line in tables["windows"]["data"]] == pytest.approx(
        row["samples"]["perplexity"]["window_nll"]
    )
    (line,) = tables["runs"]["data"]
    of_run = dict(zip(tables["runs"]["columns"], line, strict=True))
    assert of_run.items() >= (flat | numbers | {"run_id": row["run_id"], "name": row["name"]}).items()
    pictures = list(folder.rglob("*.png"))
    assert len(pictures) == 3
    for name in ("relative_error", "output_error", "imbalance_after"):
        assert (
            (folder / "files" / json.loads(history[f"plots/{name}.path"])).read_bytes().startswith(b"\x89PNG")
        )
        page = (folder / "files" / json.loads(history[f"interactive/{name}.path"])).read_text()
        assert '"$schema": "https://vega.github.io/schema/vega-lite/' in page
        assert row["run_id"] in page


@pytest.fixture(scope="module")
def offline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results folder of an offline run whose name tries to end a script."""
    folder = tmp_path_factory.mktemp("offline")
    row = finished("sinq") | {"name": NASTY}
    store(folder, row)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("WANDB_DATA_DIR", raising=False)
        WandB().log(row, layers(row), folder)
        assert "WANDB_DATA_DIR" not in os.environ
    return folder


def test_the_files_of_the_row_are_an_artifact(offline: Path) -> None:
    (file,) = offline.glob("wandb/offline-run-*/run-sinq4t.wandb")
    found = [record.artifact for record in finished_records(file) if record.HasField("artifact")]
    (row,) = [artifact for artifact in found if artifact.type == "row"]
    assert {entry.path: entry.local_path for entry in row.manifest.contents} == {
        path.name: str(path) for path in offline.glob("runs/*")
    }
    assert len(row.manifest.contents) == 2
    kept = [entry.local_path for artifact in found for entry in artifact.manifest.contents]
    assert len(kept) >= 4
    assert all(Path(path).is_relative_to(offline) and Path(path).is_file() for path in kept)


def test_a_name_ends_no_script(offline: Path) -> None:
    pages = [path.read_text() for path in offline.rglob("interactive/*.html")]
    assert pages
    for page in pages:
        assert NASTY not in page
        spec = page.partition('vegaEmbed("#figure", ')[2].rpartition(", {actions: false})")[0]
        assert {row["name"] for row in json.loads(spec)["datasets"]["rows"]} == {NASTY}


def test_wandb_sync_sends_all_that_an_offline_run_left(offline: Path) -> None:
    (folder,) = offline.glob("wandb/offline-run-*")
    row = json.loads((offline / "runs/sinq4t.json").read_text())
    with serving() as taken:
        settings = {"WANDB_BASE_URL": taken.url, "WANDB_API_KEY": "0" * 40}
        command = [sys.executable, "-m", "wandb", "sync", "--yes", str(folder)]
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            env=os.environ | settings,
            cwd=offline,
            timeout=120,
        )
    assert done.returncode == 0, done.stderr
    assert {run["displayName"] for run in taken.runs} >= {row["name"]}
    assert next(run["tags"] for run in taken.runs if run["tags"]) == ["sinq", "4-bit", "g64", "m", "t"]
    assert "row-sinq4t" in taken.committed
    for path in offline.glob("runs/*"):
        assert taken.files[f"row-sinq4t/{path.name}"] == path.read_bytes()
    summary = json.loads(taken.files["wandb-summary.json"])
    assert summary["perplexity"] == summary["perplexity/value"] == row["metrics"]["perplexity"]["value"]
    for name in ("relative_error", "imbalance_after"):
        for kind in ("plots", "interactive"):
            path = summary[f"{kind}/{name}"]["path"]
            assert taken.files[path] == (folder / "files" / path).read_bytes()
    assert any("wandb-history.jsonl" in text for text in taken.streamed)


def test_a_folder_that_cannot_be_written_costs_no_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "wandb").write_text("a file")
    caplog.set_level("INFO", "experiments")
    WandB().log(finished("none"), pd.DataFrame(), tmp_path)
    assert "is not logged to W&B" in caplog.text


def test_a_dense_run_has_no_layers_to_show(tmp_path: Path) -> None:
    WandB().log(finished("none"), pd.DataFrame(), tmp_path)
    (folder,) = tmp_path.glob("wandb/offline-run-*")
    assert finished_records(folder / "run-none4t.wandb")
    assert not list(folder.rglob("*.png"))


def test_only_a_sweep_is_a_group() -> None:
    register()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        assert compose("config").logger.group is None
        sweep = compose(
            "config",
            return_hydra_config=True,
            overrides=["hydra.mode=MULTIRUN", "hydra.sweep.dir=results/sweeps/noon", "hydra.job.num=0"],
        )
        HydraConfig.instance().set_config(sweep)
        try:
            assert compose("config").logger.group == "noon"
        finally:
            HydraConfig.instance().cfg = None


def test_modes_are_checked() -> None:
    with pytest.raises(ValueError, match=r"logger\.mode=cloud is not possible; it must be offline or online"):
        WandB(mode="cloud")


def test_flat_names_are_the_rows_own() -> None:
    assert flatten({"a": {"b": 1, "c": {"d": 2}}}) == {"a.b": 1, "a.c.d": 2}
