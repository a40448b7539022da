"""The real command line, in processes of its own."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from experiments import record
from experiments.compare import Verdict
from tests.conftest import ROOT

FAST = ["text.evaluate_from=2025", "evaluation=quality", "evaluation.perplexity.windows=2", "group_size=32", "logger=none", "device=cpu"]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return os.environ | {"SINQ_CACHE": str(tmp_path / "cache"), "HYDRA_FULL_ERROR": "0"}


def command(folder: Path, results: Path, *words: str) -> list[str]:
    where = ["model=hub", f"model.path={folder}", f"results_dir={results}"]
    flags = [word for word in words if word.startswith("-")]  # Hydra wants them before the overrides
    return [sys.executable, str(ROOT / "run.py"), *flags, *FAST, *where, *(word for word in words if word not in flags)]


def call(words: list[str], environment: dict[str, str]) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(words, capture_output=True, text=True, env=environment, cwd=ROOT, check=False)


def test_one_run_prints_a_table_and_the_path_of_its_row(tiny_folder: Path, tmp_path: Path, environment: dict[str, str]) -> None:
    done = call(command(tiny_folder, tmp_path / "results"), environment)
    assert done.returncode == 0, done.stderr
    rows = record.load(tmp_path / "results")
    assert sorted(rows["name"]) == ["none", "sinq 4-bit g32"]
    assert all(word in done.stdout for word in ("ppl", "none", "sinq 4-bit g32"))
    assert str(record.row_path(tmp_path / "results", rows.set_index("name").loc["sinq 4-bit g32", "run_id"])) in done.stdout


def test_a_sweep_ends_with_one_table_of_all_runs_and_its_failures(tiny_folder: Path, tmp_path: Path, environment: dict[str, str]) -> None:
    results = tmp_path / "results"
    assert call(command(tiny_folder, results, "bits=3"), environment).returncode == 0
    before = record.load(results).set_index("run_id")
    done = call(command(tiny_folder, results, "-m", "method=rtn,sinq", "bits=3,7"), environment)
    assert done.returncode == 1
    assert "Traceback" not in done.stdout + done.stderr
    assert done.stdout.count("bits=7 is not possible") == 2
    summary = done.stdout[done.stdout.rindex("runs in") :]
    assert all(name in summary for name in ("none", "rtn 3-bit g32", "sinq 3-bit g32"))
    after = record.load(results).set_index("run_id")
    assert sorted(after["name"]) == ["none", "rtn 3-bit g32", "sinq 3-bit g32"]
    found = "provenance.finished_at"
    assert (after.loc[before.index, found] == before[found]).all()


def test_what_makes_no_sense_is_listed_and_fails_nothing(tiny_folder: Path, tmp_path: Path, environment: dict[str, str]) -> None:
    results = tmp_path / "results"
    more = ["evaluation.perplexity.windows=6"]
    done = call(command(tiny_folder, results, "-m", "method=rtn,sinq_nf4", "bits=3,4", *more), environment)
    assert done.returncode == 0, done.stdout
    (listed,) = [line for line in done.stdout.splitlines() if line.startswith("not applicable: ")]
    assert listed.endswith("method=sinq_nf4, bits=3: bits=3 is not possible with levels=nf4, whose table has 4 bits")
    assert sorted(record.load(results)["name"]) == ["none", "rtn 3-bit g32", "rtn 4-bit g32", "sinq_nf4 4-bit g32"]
    assert set(record.load(results)["status"]) == {record.FINISHED}
    summary = done.stdout[done.stdout.rindex("runs in") :]
    assert all(word in summary for word in ("KL", "flips"))
    against = call([sys.executable, "-m", "experiments.results", str(results), "--against", "rtn"], environment)
    assert against.returncode == 0, against.stderr
    (line,) = [line for line in against.stdout.splitlines() if "sinq_nf4" in line]
    assert any(verdict.value in line for verdict in Verdict)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["method=sinq_nf4", "bits=3"], "error: bits=3 is not possible with levels=nf4"),
        (["bits=7"], "error: bits=7 is not possible; it must be one of (2, 3, 4, 5, 6, 8)"),
        (["metod=rtn"], "error: there is no option metod; there are: "),
        (["group_size=48"], "error: group_size=48 does not divide 14 layers"),
    ],
)
def test_a_mistake_is_a_line_and_an_exit_code(
    tiny_folder: Path, tmp_path: Path, environment: dict[str, str], words: list[str], message: str
) -> None:
    done = call(command(tiny_folder, tmp_path / "results", *words), environment)
    assert done.returncode == 1
    assert done.stdout.strip().startswith(message)
    assert "Traceback" not in done.stdout + done.stderr
    assert len((done.stdout + done.stderr).strip().splitlines()) <= 2


def test_a_traceback_is_shown_when_asked_for(tiny_folder: Path, tmp_path: Path, environment: dict[str, str]) -> None:
    done = call(command(tiny_folder, tmp_path / "results", "bits=7"), environment | {"HYDRA_FULL_ERROR": "1"})
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_ctrl_c_leaves_nothing_that_looks_finished(tiny_folder: Path, tmp_path: Path, environment: dict[str, str]) -> None:
    results = tmp_path / "results"
    # Latency over many rounds goes on until it is stopped; by then the model is compressed and nothing is recorded yet.
    endless = [
        "evaluation=default",
        "evaluation.latency.rounds=1000000",
        "evaluation.latency.prompt_tokens=8",
        "evaluation.memory.prompt_tokens=8",
    ]
    process = subprocess.Popen(
        command(tiny_folder, results, *endless),
        env=environment,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 - a shell's background job ignores it
    )
    try:
        start = time.monotonic()
        while not list(results.glob(".claims/*")) and time.monotonic() - start < 120:
            time.sleep(0.1)
        time.sleep(3)
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "interrupted" in out
    assert not [path for path in results.rglob("*") if path.is_file()]


def test_results_prints_rows_and_writes_parquet(tiny_folder: Path, tmp_path: Path, environment: dict[str, str]) -> None:
    results = tmp_path / "results"
    (results / "runs").mkdir(parents=True)
    (results / "runs/torn.json").write_text("{")
    empty = call([sys.executable, "-m", "experiments.results", str(results)], environment)
    assert empty.returncode == 1
    assert "has no rows" in empty.stdout
    assert call(command(tiny_folder, results), environment).returncode == 0
    done = call([sys.executable, "-m", "experiments.results", str(results)], environment)
    assert done.returncode == 0, done.stderr
    assert "torn.json" in done.stdout
    table = pd.read_parquet(results / "results.parquet")
    assert table["metrics.perplexity.value"].notna().all()
    assert len(table) == 2
