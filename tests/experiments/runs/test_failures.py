"""What a run that stopped leaves behind; real failures of real allocators where this machine has them."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch

from baselines.gptq import GPTQ
from baselines.rtn import RTN
from experiments.common.errors import OutOfMemoryError
from experiments.data.text import StateOfTheUnion
from experiments.evaluation import Evaluation, EvaluationContext, Measurement, Perplexity
from experiments.models.source import DType, Pretrained
from experiments.results import record
from experiments.runs.cost import Cost
from experiments.runs.failures import OUT_OF_MEMORY, ran_out_of_memory, what_to_try
from experiments.runs.identity import identity, run_id
from experiments.runs.pipeline import Execution, execute
from experiments.runs.run import Run
from sinq import SINQ, Grid

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Greedy(Evaluation):
    """Asks for more memory than any machine has, for a compressed model."""

    name: ClassVar[str] = "toy_greedy"

    def measure(self, subject: EvaluationContext) -> Measurement:
        return Measurement({"bytes": torch.empty(1 if subject.is_dense else 1 << 50).nbytes})


@pytest.fixture
def run(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("SINQ_CACHE", str(tmp_path / "cache"))
    text = StateOfTheUnion(evaluate_from=2025)
    return Run(
        Pretrained(path=str(tiny_folder)),
        text,
        SINQ(Grid(group_size=32)),
        {"perplexity": Perplexity(windows=1)},
        device="cpu",
    )


def test_allocators_that_give_nothing_are_recognised() -> None:
    with pytest.raises(RuntimeError) as torchs:
        torch.empty(1 << 50)
    with pytest.raises(MemoryError) as numpys:
        np.empty(1 << 57, dtype=np.uint8)
    assert all(
        ran_out_of_memory(error)
        for error in (torchs.value, numpys.value, torch.OutOfMemoryError("CUDA out of memory."))
    )
    assert not any(
        ran_out_of_memory(error)
        for error in (RuntimeError("shapes differ"), ValueError("memory"), OSError(28, "No space"))
    )


def test_a_run_out_of_memory_is_recorded_with_its_peak_and_what_to_try(run: Run, tmp_path: Path) -> None:
    greedy = replace(run, evaluation={"perplexity": Perplexity(windows=1), "greedy": Greedy()})
    with pytest.raises(
        OutOfMemoryError,
        match=r"out of memory; the peak seen was .* GB\. Try .*stream=true, model\.dtype=bfloat16",
    ):
        execute(greedy, Execution(tmp_path / "results"))
    rows, _ = record.read(tmp_path / "results")
    (row,) = [row for row in rows if row["status"] == record.FAILED]
    assert row["run_id"] == run_id(identity(greedy))
    assert row["failure"]["kind"] == OUT_OF_MEMORY
    assert row["failure"]["peak_memory_bytes"] > 10e6  # torch alone is more
    assert row["reason"].count("\n") == 0
    assert execute(run, Execution(tmp_path / "results"))["status"] == record.FINISHED  # the next one goes on


def test_a_finished_row_says_what_it_cost(run: Run, tmp_path: Path) -> None:
    cost = execute(run, Execution(tmp_path))["cost"]
    assert cost["seconds"] > 0
    assert cost["peak_memory_bytes"] > 10e6


def test_the_cost_of_a_part_is_what_it_held_and_counts_though_it_fails() -> None:
    cost, size = Cost(CPU), 200_000_000
    with cost.part():
        pass
    idle = cost.peak_bytes
    with pytest.raises(ZeroDivisionError), cost.part():  # noqa: PT012
        held = torch.ones(size // 4)
        _ = len(held) / 0
    assert size * 0.9 < cost.peak_bytes - idle < size * 1.5


def test_advice_fits_the_run(run: Run) -> None:
    calibrated = what_to_try(replace(run, method=GPTQ(RTN(Grid(4, 32)))))
    assert any("calibration.samples" in advice for advice in calibrated)
    assert "stream=true" not in calibrated
    small = what_to_try(replace(run, stream=True, model=replace(run.model, dtype=DType.bfloat16)))
    assert not {"stream=true", "model.dtype=bfloat16"} & set(small)
