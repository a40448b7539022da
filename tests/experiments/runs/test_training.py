"""Runs that train: what they cost is in the row, and a killed one goes on where it was."""

import os
import signal
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from baselines.dense import Dense
from baselines.loraprune import LoRAPrune, method
from baselines.loraprune.schedule import Sparsity
from experiments.common.console import bar
from experiments.common.paths import cache_dir
from experiments.data.text import StateOfTheUnion
from experiments.evaluation import Perplexity, Size
from experiments.models.source import Pretrained
from experiments.results import columns
from experiments.runs.calibration import CalibrationText
from experiments.runs.pipeline import Execution, execute
from experiments.runs.run import Run
from sinq.calibration.gradients import next_token_loss
from sinq.training import trainer
from sinq.training.lora import LoRA
from sinq.training.trainer import Training
from tests.forked import fork

METHOD = LoRAPrune(
    Dense(), Sparsity(0.5, every=1), keep_first=0.0, lora=LoRA(4), training=Training(8, batch=4)
)


@pytest.fixture
def run(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("SINQ_CACHE", str(tmp_path / "cache"))
    text = StateOfTheUnion(calibrate_until=1792, evaluate_from=2026)
    evaluation = {"perplexity": Perplexity(windows=2), "size": Size()}
    calibration = CalibrationText(text, samples=8, seqlen=32)
    return Run(
        Pretrained(path=str(tiny_folder)), text, METHOD, evaluation, calibration=calibration, device="cpu"
    )


def states() -> list[Path]:
    return list((cache_dir() / "training").rglob("*.safetensors"))


def kill(items: Iterable[Any], description: Any, total: int) -> Iterator[Any]:
    """Kill this process in the middle of a training."""
    for item in items:
        if callable(description) and item == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        yield item


def be_killed(run: Run, results: Path) -> None:
    trainer.SAVE_SECONDS = 0.0
    execute(run, Execution(results, progress=kill))


def test_a_killed_run_goes_on_to_the_same_row(run: Run, tmp_path: Path) -> None:
    environment = {"SINQ_CACHE": os.environ["SINQ_CACHE"]}
    process = fork(tmp_path / "out", be_killed, run, tmp_path / "killed", environment=environment)
    assert process.done() == -signal.SIGKILL, process.output
    assert len(states()) == 1
    steps: list[int] = []

    def watch(items: Iterable[Any], description: Any, total: int) -> Iterator[Any]:
        steps.extend([total] if callable(description) else [])
        return iter(items)

    resumed = execute(run, Execution(tmp_path / "killed", progress=watch))
    assert steps == [3]
    assert states() == []
    straight = execute(run, Execution(tmp_path / "straight"))
    for part in ("perplexity", "size"):
        assert resumed["metrics"][part] == straight["metrics"][part]
    assert resumed["samples"] == straight["samples"]


def test_the_row_says_what_training_cost(run: Run, tmp_path: Path) -> None:
    row = execute(run, Execution(tmp_path))
    cost = row["metrics"]["compression"]["training"]
    assert (cost["steps"], cost["tokens"]) == (8, 8 * 4 * 32)
    assert 0 < cost["seconds"] <= row["metrics"]["compression"]["seconds_quantize"]
    assert cost["peak_increase_bytes"] > 0
    assert len(row["samples"]["training"]["loss"]) == 8
    shown = {metric.key: columns.cells([row], metric) for metric in columns.metrics([row])}
    assert shown["trained_tokens"] == ["1.0k"]
    assert "training_s" in shown


def test_a_stopped_training_is_kept_and_force_begins_anew(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    def diverging(model: Any, part: torch.Tensor) -> torch.Tensor:
        calls.append(0)
        return next_token_loss(model, part) * (float("nan") if len(calls) > 12 else 1)

    monkeypatch.setattr(method, "next_token_loss", diverging)
    with pytest.raises(ValueError, match="the loss is nan in step 4 of 8; the state after 3 steps is kept"):
        execute(run, Execution(tmp_path))
    assert len(states()) == 1
    calls.clear()
    with pytest.raises(ValueError, match="the loss is nan in step 7 of 8; the state after 6 steps is kept"):
        execute(run, Execution(tmp_path))
    calls.clear()
    with pytest.raises(ValueError, match="the loss is nan in step 4 of 8; the state after 3 steps is kept"):
        execute(run, Execution(tmp_path, force=True))


def test_a_bar_takes_words_that_change() -> None:
    asked: list[int] = []

    def words() -> str:
        asked.append(0)
        return f"loss {len(asked)}"

    assert list(bar(range(3), words, 3)) == [0, 1, 2]
    assert len(asked) == 4
    assert list(bar(range(3), "as ever", 3)) == [0, 1, 2]
