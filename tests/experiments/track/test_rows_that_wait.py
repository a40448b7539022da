"""Logging under faults: no run is lost, each row that is not logged is one line, and is sent later."""

import runpy
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import wandb

from experiments.common import network
from experiments.common.network import unreachable
from experiments.results import record
from experiments.track import weights_and_biases
from experiments.track.weights_and_biases import WandB, is_sent
from tests.experiments.rows import failed, finished, layers, store
from tests.silence import silence

pytestmark = pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")  # by runpy
RAISED = (
    OSError(28, "No space left on device"),
    PermissionError(13, "Permission denied"),
    RuntimeError("something\nof two lines"),
    TypeError("wrong"),
    AssertionError(),
    wandb.errors.CommError("no"),
    wandb.errors.UsageError("no"),
    TimeoutError("finish"),
    MemoryError(),
)


def raising(error: Exception) -> Callable[..., Any]:
    def init(**options: Any) -> Any:
        raise error

    return init


@pytest.mark.parametrize("error", RAISED, ids=lambda error: type(error).__name__)
def test_whatever_is_raised_is_one_line_and_costs_nothing(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(wandb, "init", raising(error))
    caplog.set_level("INFO", "experiments")
    WandB().log(finished(), pd.DataFrame(), tmp_path)
    (line,) = [entry.getMessage() for entry in caplog.records]
    assert "sinq4t sinq 4-bit g64 is not logged to W&B" in line
    assert type(error).__name__ in line
    assert f"python -m experiments.track --results {tmp_path}" in line
    assert len(line.splitlines()) == 1


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(network, "SECONDS", 1.0)
    with silence() as url:
        monkeypatch.setattr(weights_and_biases, "_base_url", lambda: url)
        unreachable.cache_clear()
        yield


def test_without_a_network_rows_wait(
    no_network: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(wandb, "init", raising(AssertionError("it was asked")))
    caplog.set_level("INFO", "experiments")
    asked: list[str] = []
    really = network._asked
    monkeypatch.setattr(network, "_asked", lambda url: asked.append(url) or really(url))
    for method in ("sinq", "rtn", "hqq"):
        WandB(mode="online").log(finished(method), pd.DataFrame(), tmp_path)
    assert caplog.text.count("no network: ") == 3
    assert len(asked) == 1
    assert "it was asked" not in caplog.text


def test_without_a_key_nobody_is_asked_for_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights_and_biases, "unreachable", lambda url: None)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    with pytest.raises(weights_and_biases.NotLoggedError, match="no key: run wandb login"):
        WandB(mode="online").send(finished(), pd.DataFrame(), tmp_path)


def track(monkeypatch: pytest.MonkeyPatch, *words: str) -> int | str | None:
    monkeypatch.setattr(sys, "argv", ["experiments.track", *words])
    try:
        runpy.run_module("experiments.track", run_name="__main__", alter_sys=False)
    except SystemExit as done:
        return done.code
    return 0


class Server:
    """A server that takes rows, except those of one method."""

    def __init__(self, refused: str = "") -> None:
        self.taken: list[str] = []
        self.refused = refused

    def init(self, **options: Any) -> Any:
        if options["job_type"] == self.refused:
            raise wandb.errors.CommError("quota exceeded")
        self.taken.append(options["id"])
        return FakeRun()


class FakeRun:
    summary: dict[str, Any] = {}  # noqa: RUF012 - nothing is kept

    def log(self, entries: dict[str, Any]) -> None:
        pass

    def log_artifact(self, files: wandb.Artifact) -> None:
        pass

    def finish(self) -> None:
        pass


@pytest.fixture
def results(tmp_path: Path) -> Path:
    store(tmp_path, finished("none"), finished("sinq"), finished("rtn"), failed("hqq"))
    return tmp_path


def connect(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights_and_biases, "_require_server", lambda: None)
    monkeypatch.setattr(wandb, "init", server.init)


def test_rows_are_sent_later_and_once(
    results: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (results / "runs/odd.json").write_text("{")
    connect(server := Server("rtn"), monkeypatch)
    assert track(monkeypatch, "--results", str(results)) == 1
    said = capsys.readouterr().out
    assert "odd.json" in said
    assert "not sent: rtn4t rtn 4-bit g64: CommError: quota exceeded" in said
    assert "2 rows sent, 0 before, 1 not" in said
    assert sorted(server.taken) == ["none4t", "sinq4t"]
    connect(server := Server(), monkeypatch)
    assert track(monkeypatch, "--results", str(results)) == 0
    assert server.taken == ["rtn4t"]
    assert track(monkeypatch, "--results", str(results), "--where", "method=sinq") == 0
    assert server.taken == ["rtn4t"]
    assert "0 rows sent, 1 before, 0 not" in capsys.readouterr().out


def test_a_row_that_is_measured_again_is_sent_again(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = finished("sinq")
    connect(Server(), monkeypatch)
    WandB(mode="online").log(row, layers(row), results)
    assert is_sent(row, results)
    row["provenance"] = row["provenance"] | {"finished_at": "2031-01-01T00:00:00+00:00"}
    record.write(results, row)
    assert not is_sent(row, results)


def test_without_a_server_the_command_says_so_in_a_line(
    no_network: None, results: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert track(monkeypatch, "--results", str(results)) == 1
    said = capsys.readouterr().out
    assert said.startswith("error: nothing can be sent to W&B: no network: ")
    assert len(said.splitlines()) == 1
