"""Runs in this process, on a tiny model: measurements, runs found again, and remains of failures."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
import pytest
import torch

import sinq
from baselines.dense import Dense
from baselines.gptq import GPTQ
from baselines.rtn import RTN
from experiments import models
from experiments.compare.paired import compare
from experiments.data.text import StateOfTheUnion
from experiments.evaluation import (
    Evaluation,
    EvaluationContext,
    Latency,
    LayerError,
    Measurement,
    Memory,
    Perplexity,
    Size,
)
from experiments.models.source import Pretrained
from experiments.results import record
from experiments.results.names import distinct_names
from experiments.results.schema import checked
from experiments.runs.identity import identity, run_id
from experiments.runs.pipeline import Execution, execute
from experiments.runs.run import Run
from experiments.track.weights_and_biases import WandB
from sinq import SINQ, CompressedLinear, Grid, Kernel, Layers, NotApplicable, OnMisfit, Sinkhorn
from sinq.checkpoint import workers
from tests.damage import DAMAGES
from tests.forked import CONTEXT

MEASURED: list[str] = []


@dataclass(frozen=True)
class Counted(Evaluation):
    """Notes that it was asked, and by which kind of model."""

    name: ClassVar[str] = "toy_counted"

    def measure(self, subject: EvaluationContext) -> Measurement:
        MEASURED.append("dense" if subject.is_dense else "compressed")
        return Measurement(
            {"weight": subject.loaded.model.model.layers[0].mlp.up_proj.weight.double().sum().item()}
        )


@pytest.fixture
def run(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("SINQ_CACHE", str(tmp_path / "cache"))
    MEASURED.clear()
    evaluation = {"perplexity": Perplexity(windows=2), "counted": Counted()}
    return Run(
        Pretrained(path=str(tiny_folder)),
        StateOfTheUnion(evaluate_from=2025),
        SINQ(Grid(group_size=32)),
        evaluation,
        device="cpu",
    )


@pytest.fixture
def setting(tmp_path: Path) -> Execution:
    return Execution(tmp_path / "results")


def test_a_row_with_blocks_and_the_exact_divergence_is_read_compared_and_logged(
    run: Run, setting: Execution, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Samples of windows, blocks and tokens lie side by side, and each reader takes its own."""
    monkeypatch.setattr("experiments.evaluation.perplexity.BLOCK", 4)
    monkeypatch.setenv("WANDB_MODE", "offline")
    measured = {"perplexity": Perplexity(windows=4, seqlen=33, exact=True, trace=1)}
    logged = replace(setting, logger=WandB())
    rows = [
        execute(replace(run, method=method, evaluation=measured), logged)
        for method in (run.method, RTN(Grid(group_size=32)))
    ]
    assert rows[0]["metrics"]["perplexity"]["blocks_per_window"] == 8
    found, unreadable = record.read(setting.results_dir)
    assert not unreadable
    assert {row["run_id"] for row in rows} <= {row["run_id"] for row in found}
    assert len(list(setting.results_dir.glob("wandb/offline-run-*"))) == 3  # the dense model too
    assert compare(*rows).interval is not None  # of four windows
    for row in rows:
        del row["samples"]["perplexity"]["block_nll"]
    assert compare(*rows).interval is None


@pytest.mark.parametrize(("name", "count"), [("window_kl", 3), ("block_nll", 2)])
def test_samples_of_another_number_are_no_row(run: Run, setting: Execution, name: str, count: int) -> None:
    row = execute(run, setting) | {"schema": record.SCHEMA}
    row["samples"]["perplexity"][name] = [0.5] * count
    row["metrics"]["perplexity"]["blocks_per_window"] = 2
    with pytest.raises(record.RowError, match=f"samples.perplexity.{name} has {count} values for 2 windows"):
        checked(row)


def test_a_row_has_metrics_samples_protocol_and_provenance(run: Run, setting: Execution) -> None:
    everything: dict[str, Evaluation] = {
        "perplexity": Perplexity(windows=2),
        "size": Size(),
        "latency": Latency(prompt_tokens=8, decode_tokens=2, rounds=1),
        "memory": Memory(prompt_tokens=16),
        "layer_error": LayerError(),
    }
    row = execute(replace(run, evaluation=everything), setting, {"bits": 4})
    table = record.load(setting.results_dir).set_index("run_id")
    for column in (
        "metrics.perplexity.value", "metrics.perplexity.dense", "metrics.size.bits_per_weight",
        "metrics.size.nbytes", "metrics.latency.decode.ratio", "metrics.latency.prefill.ratio",
        "metrics.memory.inference_peak_bytes", "metrics.compression.seconds_quantize",
        "metrics.memory.quantize_peak_bytes", "protocol.fingerprint", "protocol.tokenizer",
        "metrics.perplexity.kl", "metrics.perplexity.flip_rate", "metrics.layer_error.mean",
        "provenance.packages.torch", "provenance.device", "provenance.code.commit",
    ):  # fmt: skip
        assert table.loc[row["run_id"], column] is not None
        assert not pd.isna(table.loc[row["run_id"], column]), column
    assert len(row["samples"]["perplexity"]["window_nll"]) == 2
    assert row["metrics"]["compression"]["kernel"] == "cpu"
    assert row["metrics"]["compression"]["kernel_refusals"] == {}
    assert row["metrics"]["compression"]["seconds_compile"] > 0
    assert row["config"] == {"bits": 4}
    layers = pd.read_csv(record.layers_path(setting.results_dir, row["run_id"]))
    assert len(layers) == 14
    assert {
        "name",
        "bits_per_weight",
        "relative_error",
        "imbalance_before",
        "imbalance_after",
        "seconds",
    } <= set(layers)


def test_the_kernel_asked_for_is_the_one_that_runs(run: Run, setting: Execution) -> None:
    compression = execute(replace(run, kernel=Kernel.reference), setting)["metrics"]["compression"]
    assert (compression["kernel"], compression["seconds_compile"]) == ("reference", 0)
    assert compression["kernel_refusals"] == {"kernel=reference was asked for": 14}


def test_a_row_says_why_no_kernel_ran(run: Run, setting: Execution) -> None:
    row = execute(replace(run, method=SINQ(Grid(group_size=4))), setting)
    assert row["metrics"]["compression"]["kernel"] == "cpu"  # what quantized
    assert row["metrics"]["compression"]["kernel_refusals"] == {"group_size=4 is no multiple of 8": 14}


def test_a_finished_run_is_found_and_force_runs_it_again(run: Run, setting: Execution) -> None:
    first = execute(run, setting)
    assert MEASURED == ["dense", "compressed"]
    assert execute(run, setting) == json.loads(json.dumps({"schema": record.SCHEMA, **first}))
    assert MEASURED == ["dense", "compressed"]
    execute(run, replace(setting, force=True))
    assert MEASURED == ["dense", "compressed", "compressed"]


def test_two_that_want_the_same_run_measure_it_once(run: Run, setting: Execution) -> None:
    with ThreadPoolExecutor(2) as pool:
        rows = list(pool.map(lambda _: execute(run, setting), range(2)))
    assert MEASURED == ["dense", "compressed"]
    assert rows[0]["run_id"] == rows[1]["run_id"]
    assert rows[0]["provenance"] == rows[1]["provenance"]


def test_the_dense_baseline_is_measured_once_and_shared(run: Run, setting: Execution) -> None:
    rows = [
        execute(replace(run, method=method), setting)
        for method in (SINQ(Grid(3, 32)), RTN(Grid(4, 32)), Dense())
    ]
    assert MEASURED.count("dense") == 1
    assert rows[0]["dense_run_id"] == rows[1]["dense_run_id"] == rows[2]["run_id"]
    assert rows[0]["metrics"]["perplexity"]["dense"] == rows[2]["metrics"]["perplexity"]["value"]


def test_compression_leaves_the_dense_model_alone_and_it_is_loaded_once(run: Run, setting: Execution) -> None:
    models.load.cache_clear()
    rows = [execute(replace(run, method=SINQ(Grid(bits, 32))), setting) for bits in (2, 3, 4)]
    assert models.load.cache_info().misses == 1
    assert len({row["metrics"]["counted"]["weight"] for row in rows}) == 1
    loaded = models.load(run.model, torch.device("cpu")).model
    assert not any("Compressed" in type(module).__name__ for module in loaded.modules())


def test_decisions_are_in_the_row(run: Run, setting: Execution) -> None:
    shrunk = execute(
        replace(run, method=SINQ(Grid(group_size=128)), layers=Layers(on_misfit=OnMisfit.shrink)), setting
    )
    assert shrunk["metrics"]["compression"]["decisions"] == {"shrunk_group_size=64": 12}
    gate = SINQ(Grid(group_size=32), Sinkhorn(relative_floors=False), kurtosis_gate=2.9)
    decisions = execute(replace(run, method=gate), setting)["metrics"]["compression"]["decisions"]
    assert 0 < decisions["gated_by_kurtosis"] <= 14


@dataclass(frozen=True)
class Failing(Evaluation):
    """Fails for as long as a file exists."""

    name: ClassVar[str] = "toy_failing"

    trigger: str

    def measure(self, subject: EvaluationContext) -> Measurement:
        if Path(self.trigger).exists() and not subject.is_dense:
            raise RuntimeError("the sky fell")
        return Measurement({})


def test_a_failed_run_is_recorded_with_its_reason_and_tried_again(
    run: Run, setting: Execution, tmp_path: Path
) -> None:
    (tmp_path / "trigger").write_text("")
    failing = replace(run, evaluation={"failing": Failing(str(tmp_path / "trigger"))})
    with pytest.raises(RuntimeError, match="the sky fell"):
        execute(failing, setting)
    row = record.find(setting.results_dir, run_id(identity(failing)))
    assert row is not None
    assert (row["status"], row["reason"]) == ("failed", "RuntimeError: the sky fell")
    (tmp_path / "trigger").unlink()
    assert execute(failing, setting)["status"] == "finished"


@dataclass(frozen=True)
class Pointless(RTN):
    """A method whose options make no sense for any layer."""

    name: ClassVar[str] = "toy_pointless"

    def quantize(self, weight: torch.Tensor, statistic: Any = None) -> Any:
        raise NotApplicable("no layer is odd enough")


def test_a_run_that_is_not_applicable_leaves_no_row(run: Run, setting: Execution) -> None:
    with pytest.raises(NotApplicable, match="no layer is odd enough"):
        execute(replace(run, method=Pointless(Grid(4, 32))), setting)
    assert record.load(setting.results_dir).empty


def test_what_the_dense_model_predicts_is_read_of_it_once(
    run: Run, setting: Execution, tmp_path: Path
) -> None:
    body, windows = models.load(run.model, torch.device("cpu")).model.base_model, []
    handle = body.register_forward_pre_hook(
        lambda module, args, inputs: windows.append(inputs["input_ids"].shape[1]) if module is body else None,
        with_kwargs=True,
    )
    try:
        row = execute(run, setting)
        assert windows.count(64) == 2  # the dense run's own windows, in which its predictions are kept
        assert row["metrics"]["perplexity"]["kl"] > 0
        assert len(row["samples"]["perplexity"]["window_kl"]) == 2
        execute(replace(run, method=RTN(Grid(4, 32))), setting)
        assert windows.count(64) == 2
        (file,) = (tmp_path / "cache/reference").glob("*.npy")
        file.unlink()
        assert (
            execute(run, replace(setting, force=True))["metrics"]["perplexity"]
            == row["metrics"]["perplexity"]
        )
        assert windows.count(64) == 4
    finally:
        handle.remove()


def test_a_forced_run_that_fails_does_not_cost_the_row_there_is(
    run: Run, setting: Execution, tmp_path: Path
) -> None:
    failing = replace(run, evaluation={"failing": Failing(str(tmp_path / "trigger"))})
    execute(failing, setting)
    (tmp_path / "trigger").write_text("")
    with pytest.raises(RuntimeError, match="the sky fell"):
        execute(failing, replace(setting, force=True))
    row = record.find(setting.results_dir, run_id(identity(failing)))
    assert row is not None
    assert row["status"] == "finished"


def test_runs_of_one_name_are_told_apart(run: Run, setting: Execution) -> None:
    methods = [
        SINQ(Grid(group_size=32)),
        SINQ(Grid(group_size=32, tiling=2)),
        SINQ(Grid(group_size=32), Sinkhorn(iterations=4)),
        RTN(Grid(4, 32)),
    ]
    rows = [execute(replace(run, method=method), setting) for method in methods]
    assert distinct_names(rows) == [
        "sinq 4-bit g32",
        "sinq 4-bit g32 tiling=2",
        "sinq 4-bit g32 iterations=4",
        "rtn 4-bit g32",
    ]


@pytest.mark.parametrize("change", [*DAMAGES, "gone", "of other work"])
def test_a_stream_that_cannot_be_continued_is_made_again(
    run: Run, setting: Execution, change: str, caplog: pytest.LogCaptureFixture
) -> None:
    streamed = replace(run, stream=True, evaluation={"size": Size()})
    row = execute(streamed, setting)
    folder = setting.results_dir / "checkpoints" / row["run_id"]
    record.row_path(setting.results_dir, row["run_id"]).unlink()
    journal = folder / "stream.json"
    if change == "gone":
        journal.unlink()
    elif change == "of other work":
        shutil.rmtree(folder)
        sinq.stream(run.model.folder(), folder, RTN(Grid(2, 32)))
    else:
        DAMAGES[change](journal)
    with caplog.at_level("INFO", "experiments"):
        again = execute(streamed, setting)
    assert again["metrics"]["size"] == row["metrics"]["size"]
    assert [line for line in caplog.messages if str(folder) in line and line.endswith("; it is made again")]


def test_a_streamed_run_measures_the_same_weights_and_keeps_its_files(
    run: Run, setting: Execution, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluation = {"perplexity": Perplexity(windows=1), "size": Size()}
    rows = [
        execute(replace(run, stream=streamed, evaluation=evaluation), setting) for streamed in (False, True)
    ]
    assert rows[0]["run_id"] != rows[1]["run_id"]
    assert rows[0]["dense_run_id"] == rows[1]["dense_run_id"]
    assert rows[0]["metrics"]["perplexity"] == rows[1]["metrics"]["perplexity"]
    assert rows[0]["metrics"]["size"] == rows[1]["metrics"]["size"]
    folder = setting.results_dir / "checkpoints" / rows[1]["run_id"]
    assert isinstance(sinq.load(folder).model.layers[0].mlp.up_proj, CompressedLinear)
    before = (folder / "sinq.json").stat().st_mtime_ns
    execute(replace(run, stream=True, evaluation=evaluation), replace(setting, force=True))
    assert (folder / "sinq.json").stat().st_mtime_ns > before
    monkeypatch.setattr(workers, "CONTEXT", CONTEXT)
    by_two = replace(setting, force=True, stream_workers=2)
    again = execute(replace(run, stream=True, evaluation=evaluation), by_two)
    assert again["run_id"] == rows[1]["run_id"]
    assert again["metrics"]["perplexity"] == rows[1]["metrics"]["perplexity"]
    with pytest.raises(NotApplicable, match="GPTQ needs the Hessian"):
        execute(replace(run, stream=True, method=GPTQ(RTN(Grid(4, 32)))), setting)


def test_a_misfit_is_refused_before_anything_is_evaluated(run: Run, setting: Execution) -> None:
    with pytest.raises(ValueError, match="group_size=48 does not divide 14 layers"):
        execute(replace(run, method=SINQ(Grid(group_size=48))), setting)
    assert MEASURED == []


def test_an_interrupted_run_leaves_nothing(run: Run, setting: Execution) -> None:
    def interrupt(items: Any, description: str, total: int) -> Any:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        execute(run, replace(setting, progress=interrupt))
    assert not list(setting.results_dir.rglob("*.json*"))
    assert execute(run, setting)["status"] == "finished"


def test_a_hub_that_cannot_be_reached_is_explained(run: Run, setting: Execution) -> None:
    with pytest.raises(ValueError, match=r"model no/such-model cannot be loaded: .* must be a local folder"):
        execute(replace(run, model=Pretrained(path="no/such-model")), setting)
