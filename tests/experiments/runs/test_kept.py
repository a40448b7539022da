"""The model of a run that is kept: it is the one that was measured, and its card has the row's numbers."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import sinq
from experiments.data.text import StateOfTheUnion
from experiments.evaluation import Perplexity
from experiments.models.source import Pretrained
from experiments.results import record
from experiments.runs import kept
from experiments.runs.pipeline import Execution, execute
from experiments.runs.run import Run
from sinq import SINQ, Grid
from sinq.checkpoint.card import CARD
from tests.conftest import tiny_model


@pytest.fixture
def run(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("SINQ_CACHE", str(tmp_path / "cache"))
    text = StateOfTheUnion(evaluate_from=2025)
    method = SINQ(Grid(group_size=32))
    return Run(Pretrained(path=str(tiny_folder)), text, method, {"ppl": Perplexity(windows=1)}, device="cpu")


def test_the_kept_model_is_the_one_that_was_measured(run: Run, tmp_path: Path) -> None:
    row = execute(run, Execution(tmp_path / "results", save=True))
    folder = kept.model_folder(tmp_path / "results", row["run_id"])
    expected = tiny_model("llama")
    SINQ(Grid(group_size=32)).compress(expected)
    found, wanted = sinq.stored_tensors(sinq.load(folder)), sinq.stored_tensors(expected)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert (folder / "tokenizer.json").exists()
    card = (folder / CARD).read_text()
    for said in (
        row["run_id"],
        "sinq 4-bit g32",
        f"{row['metrics']['ppl']['value']:.4g}",
        row["protocol"]["source"],
    ):
        assert said in card, card


def test_a_finished_run_is_repeated_where_its_model_is_missing(run: Run, tmp_path: Path) -> None:
    results = tmp_path / "results"
    first = execute(run, Execution(results))
    assert kept.is_missing(results, first["run_id"])
    second = execute(run, Execution(results, save=True))
    assert not kept.is_missing(results, first["run_id"])
    assert second["run_id"] == first["run_id"]
    written = record.row_path(results, first["run_id"]).stat().st_mtime_ns
    execute(run, Execution(results, save=True))
    assert record.row_path(results, first["run_id"]).stat().st_mtime_ns == written


def test_a_streamed_model_has_a_card_with_its_numbers(run: Run, tmp_path: Path) -> None:
    row = execute(replace(run, stream=True), Execution(tmp_path / "results"))
    card = (kept.model_folder(tmp_path / "results", row["run_id"]) / CARD).read_text()
    assert f"{row['metrics']['ppl']['value']:.4g}" in card
