import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from experiments import record
from experiments.files import atomic_write
from tests.conftest import ROOT

ROW = {"run_id": "abc", "name": "sinq", "status": record.FINISHED, "metrics": {"perplexity": {"value": 12.5}}, "samples": {"x": [1]}}


def test_a_row_comes_back_and_becomes_a_line_of_a_table(tmp_path: Path) -> None:
    record.write(tmp_path, ROW, pd.DataFrame({"name": ["q_proj"], "bits_per_weight": [4.5]}))
    assert record.find(tmp_path, "abc") == {"schema": record.SCHEMA, **ROW}
    table = record.load(tmp_path)
    assert table.loc[0, "metrics.perplexity.value"] == 12.5
    assert "samples.x" not in table
    assert pd.read_csv(record.layers_path(tmp_path, "abc")).loc[0, "bits_per_weight"] == 4.5


def test_an_unreadable_row_is_named_and_does_not_stop_the_others(tmp_path: Path) -> None:
    record.write(tmp_path, ROW)
    (tmp_path / "runs/broken.json").write_text('{"run_id": "br')
    table = record.load(tmp_path)
    assert list(table["run_id"]) == ["abc"]
    assert table.attrs["unreadable"] == ["broken.json"]
    assert record.find(tmp_path, "broken") is None


def test_an_empty_folder_is_an_empty_table(tmp_path: Path) -> None:
    assert record.load(tmp_path).empty


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_write_that_is_cut_off_leaves_the_old_file_and_nothing_else(tmp_path: Path, error: type[BaseException]) -> None:
    (tmp_path / "file").write_text("old")
    with pytest.raises(error), atomic_write(tmp_path / "file") as file:  # noqa: PT012
        file.write(b"new")
        raise error
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"file": "old"}


WORKER = """
import sys, time
from pathlib import Path
from experiments import record
folder = Path(sys.argv[1])
with record.claim(folder, "one"):
    (folder / "events").open("a").write("in\\n")
    time.sleep(float(sys.argv[2]))
    (folder / "events").open("a").write("out\\n")
"""


def worker(folder: Path, pause: float) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-c", WORKER, str(folder), str(pause)], cwd=ROOT)


def wait_for(condition: "object", limit: float = 60) -> None:
    start = time.monotonic()
    while not condition():  # type: ignore[operator]
        assert time.monotonic() - start < limit
        time.sleep(0.02)


def test_two_processes_never_work_on_one_run_at_once(tmp_path: Path) -> None:
    workers = [worker(tmp_path, 0.3) for _ in range(3)]
    assert [process.wait() for process in workers] == [0, 0, 0]
    assert (tmp_path / "events").read_text().split() == ["in", "out"] * 3


def test_the_claim_of_a_killed_process_is_free_again(tmp_path: Path) -> None:
    process = worker(tmp_path, 600)
    wait_for((tmp_path / "events").exists)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    with record.claim(tmp_path, "one"):
        pass


def test_a_results_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"results_dir=.*file/results cannot be written"), record.claim(tmp_path / "file/results", "one"):
        pass


def test_rows_are_plain_json(tmp_path: Path) -> None:
    path = record.write(tmp_path, ROW)
    assert json.loads(path.read_text())["run_id"] == "abc"
    assert path == record.row_path(tmp_path, "abc")
