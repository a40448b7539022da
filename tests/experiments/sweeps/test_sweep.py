"""Sweeps by the command line: plan, two processes at one sweep, kills, launchers, disks that take no rows."""

import json
import os
import random
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from experiments.results import record
from experiments.results.record import Row
from experiments.sweeps.summary import pace
from tests.conftest import ROOT
from tests.experiments.sweeping import start
from tests.forked import Forked

QUICK = [
    "text.evaluate_from=2025",
    "evaluation=quality",
    "evaluation.perplexity.windows=2",
    "group_size=32",
    "logger=none",
]


@pytest.fixture
def sweep(tiny_folder: Path, tmp_path: Path) -> Callable[..., Forked]:
    """Starts a sweep of the tiny model; its results are in `tmp_path/<name>`."""

    def call(*words: str, name: str = "results") -> Forked:
        where = ["model=hub", f"model.path={tiny_folder}", f"results_dir={tmp_path / name}"]
        return start(tmp_path / "work", "-m", *QUICK, "device=cpu", *where, *words)

    return call


def stamps(results: Path) -> dict[str, tuple[int, int]]:
    """Which files the rows are: a row that is written again is another file."""
    return {
        path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in (results / "runs").glob("*.json")
    }


def leftovers(folder: Path) -> list[Path]:
    """Claims and scratch files."""
    return [
        path
        for path in folder.rglob("*")
        if path.is_file() and (path.suffix == ".tmp" or path.parent.name == ".claims")
    ]


def numbers(results: Path) -> dict[str, tuple[float, int]]:
    """Of each row, what does not depend on how fast the machine was."""
    rows, unreadable = record.read(results)
    assert not unreadable
    return {
        row["run_id"]: (row["metrics"]["perplexity"]["nll"], row["metrics"]["size"]["model_nbytes"])
        for row in rows
    }


def test_the_plan_says_what_is_to_do_and_what_it_will_cost(
    sweep: Callable[..., Forked], tmp_path: Path
) -> None:
    words = ["method=rtn,sinq_nf4", "bits=3,4,7"]
    alone = sweep(*words, "plan=true")
    assert alone.done() == 0, alone.output
    assert not (tmp_path / "results").exists()
    assert (
        "plan: 3 to do, 1 not applicable, 2 blocked;"
        " no estimate of time and memory, since no earlier run is like these" in alone.output
    )
    assert "method=rtn, bits=3       to do  rtn 3-bit g32" in alone.output
    assert "not applicable: method=sinq_nf4, bits=3: " in alone.output
    assert alone.output.count("bits=7 is not possible") == 1
    assert (
        "blocked: 2 runs (method=rtn, bits=7; method=sinq_nf4, bits=7): bits=7 is not possible"
        in alone.output
    )
    done = sweep("method=rtn", "bits=3")
    assert done.done() == 0, done.output
    again = sweep(*words, "plan=true")
    assert again.done() == 0, again.output
    assert "method=rtn, bits=3       found  rtn 3-bit g32" in again.output
    assert "plan: 2 to do, 1 found, 1 not applicable, 2 blocked; about " in again.output
    assert " one after another, no estimate for 1; peak " in again.output
    assert len(record.read(tmp_path / "results")[0]) == 2


def test_the_pace_tells_work_from_the_rest() -> None:
    begun = datetime(2026, 1, 2, 3, 4, 5, 900_000, UTC).timestamp()

    def made(second: int, **more: Any) -> Row:
        cost = {"seconds": 20.0, "peak_memory_bytes": 1}
        return {
            "status": record.FINISHED,
            "dense_run_id": "abc",
            "cost": cost,
            "provenance": {"finished_at": f"2026-01-02T03:04:{second:02}+00:00"},
            **more,
        }

    # the first row is older; the second is of the second in which the sweep began
    rows = [made(4), made(5), made(30), made(31, status=record.FAILED)]
    assert pace(rows, begun, begun + 46) == "2 runs in 46 s (40 s of work, 6 s of start-up and logging)"
    assert pace([], begun, begun + 3) == "0 runs in 3 s (0 s of work, 3 s of start-up and logging)"
    dense = made(6, dense_run_id=None)
    assert pace([*rows, dense], begun, begun + 50) == (
        "2 runs and 1 of the dense model in 50 s (60 s of work, several at once)"
    )


def test_a_run_that_is_twice_in_a_sweep_is_done_once(sweep: Callable[..., Forked], tmp_path: Path) -> None:
    cli = sweep("method=rtn,awq", "calibrated=false", "bits=3,4", "force=true")
    assert cli.done() == 0, cli.output
    assert "method=awq, bits=3  duplicate of method=rtn, bits=3" in cli.output
    assert "plan: 2 to do, 2 duplicates" in cli.output
    lines = cli.output.splitlines()
    first, last = (next(line for line in lines if line.startswith(f"{k}/2 ")) for k in (1, 2))
    assert re.fullmatch(r"1/2 rtn 3-bit g32  ppl \d+\.?\d*  \S+ s  \(about .* left\)", first)
    assert re.fullmatch(r"2/2 rtn 4-bit g32  ppl \d+\.?\d*  \S+ s", last)
    assert re.search(r"^2 runs and 1 of the dense model in .* of start-up and logging\)$", cli.output, re.M)
    assert len(record.read(tmp_path / "results")[0]) == 3


def test_what_fails_alike_is_said_once_and_a_search_is_no_sweep(
    sweep: Callable[..., Forked], tmp_path: Path
) -> None:
    cli = sweep("method=rtn,sinq,hqq,awq", "bits=7", "calibrated=false")
    assert cli.done() == 1
    assert cli.output.count("bits=7 is not possible") == 1
    assert "blocked: 4 runs (method=rtn; method=sinq; method=hqq and 1 more): bits=7 is not" in cli.output
    assert "4 blocked: the plan above has the reasons" in cli.output
    search = sweep("method=rtn,sinq", "sweep=search")
    assert search.done() == 1
    assert "error: sweep=search chooses its runs itself, one after another: leave out -m" in search.output
    assert not record.read(tmp_path / "results")[0]


def test_two_processes_share_a_sweep(sweep: Callable[..., Forked], tmp_path: Path) -> None:
    words = ["method=rtn,sinq", "bits=2,3,4"]
    both = [sweep(*words), sweep(*words)]
    seen: dict[str, tuple[int, int]] = {}
    while any(cli.process.is_alive() for cli in both):
        now = stamps(tmp_path / "results")
        assert {name: now[name] for name in seen} == seen  # no row is written again
        seen = now
        time.sleep(0.02)
    assert [cli.done() for cli in both] == [0, 0], [cli.output for cli in both]
    assert len(seen) == 7
    assert all("6 runs in" in cli.output for cli in both)
    assert not leftovers(tmp_path)


def killed(sweep: Callable[..., Forked], tmp_path: Path, words: list[str], kills: int) -> None:
    """Kill a sweep so many times at random moments, let it end, and compare it with an undisturbed one."""
    chance, results = random.Random(0), tmp_path / "killed"
    seen: dict[str, tuple[int, int]] = {}
    for _ in range(kills):
        cli = sweep(*words, name="killed")
        until = len(seen) + chance.randint(0, 1)  # some while they start, some while they run or write
        while len(stamps(results)) < until and cli.process.is_alive():
            time.sleep(0.005)
        time.sleep(chance.uniform(0, 0.5))
        cli.process.kill()
        cli.process.join()
        now = stamps(results)
        assert {name: now[name] for name in seen} == seen
        seen = now
    assert len(seen) > 0
    last = sweep(*words, name="killed")
    assert last.done() == 0, last.output
    now = stamps(results)
    assert {name: now[name] for name in seen} == seen  # what was finished is found, not run again
    assert not leftovers(results)
    undisturbed = sweep(*words, name="undisturbed")
    assert undisturbed.done() == 0, undisturbed.output
    assert numbers(results) == numbers(tmp_path / "undisturbed")


def test_a_sweep_that_is_killed_goes_on_where_it_was(sweep: Callable[..., Forked], tmp_path: Path) -> None:
    killed(sweep, tmp_path, ["method=rtn,sinq", "bits=3,4"], kills=3)


@pytest.mark.slow
def test_a_sweep_of_twelve_runs_is_killed_ten_times(sweep: Callable[..., Forked], tmp_path: Path) -> None:
    killed(sweep, tmp_path, ["method=rtn,sinq,hqq,hadamard", "bits=2,3,4"], kills=10)


LAUNCHERS = {
    "joblib": ["hydra.launcher.n_jobs=2"],
    "submitit_local": ["hydra.launcher.timeout_min=10"],
    "submitit_slurm": ["hydra.launcher.timeout_min=10", "hydra.launcher.cpus_per_task=1"],
    "ray_local": [],
    "ray_cluster": [],
}


@contextmanager
def cluster(folder: Path) -> Iterator[None]:
    """A Ray cluster of this machine alone, whose processes begin in another folder than the sweep."""
    ray = [
        Path(sys.executable).parent / "ray",
        "start",
        "--head",
        "--block",
        "--num-cpus=2",
        "--include-dashboard=false",
    ]
    with (folder / "ray.log").open("w") as log:
        head = subprocess.Popen(ray, cwd="/", stdout=log, stderr=log)
    try:
        while "ray stop" not in (folder / "ray.log").read_text():  # what it says last, when it is there
            assert head.poll() is None, (folder / "ray.log").read_text()
            time.sleep(0.2)
        yield
    finally:
        head.terminate()  # it ends what it began
        head.wait(60)


@pytest.mark.slow
@pytest.mark.parametrize("name", LAUNCHERS)
def test_a_launcher_runs_a_sweep_in_other_processes(tiny_folder: Path, tmp_path: Path, name: str) -> None:
    extra = name.partition("_")[0]
    if find_spec(f"hydra_plugins.hydra_{extra}_launcher") is None:
        pytest.skip(f"the extra {extra} is not installed")
    if name == "submitit_slurm" and shutil.which("sbatch") is None:
        pytest.skip("this machine has no Slurm (sbatch)")
    where = ["model=hub", f"model.path={tiny_folder}", "results_dir=results", f"hydra/launcher={name}"]
    command = [
        sys.executable,
        ROOT / "run.py",
        "-m",
        *QUICK,
        "device=cpu",
        *where,
        *LAUNCHERS[name],
        "method=rtn,sinq_nf4",
        "bits=3,4",
    ]
    environment = os.environ | {"SINQ_CACHE": str(tmp_path / "cache")}
    with cluster(tmp_path) if name == "ray_cluster" else nullcontext():
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 runs in" in done.stdout
    assert "not applicable: method=sinq_nf4, bits=3" in done.stdout
    names = sorted(row["name"] for row in record.read(tmp_path / "results")[0])
    assert names == ["none", "rtn 3-bit g32", "rtn 4-bit g32", "sinq_nf4 4-bit g32"]
    assert not leftovers(tmp_path / "results")


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """One that other users may enter, unlike pytest's."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def test_a_results_folder_that_is_read_only_is_named(
    open_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = open_folder / "results"
    row = {"run_id": "abc", "status": record.FINISHED}
    path = record.write(results, row)
    for folder in (results / "runs", results):
        folder.chmod(0o555)
    was = os.geteuid()
    if was == 0:
        os.seteuid(65534)  # root may write anywhere
    try:
        with pytest.raises(ValueError, match=r"results_dir=.*results cannot be written: Permission denied"):
            record.write(results, row | {"status": record.FAILED})
    finally:
        if was == 0:
            os.seteuid(was)
    assert json.loads(path.read_text())["status"] == record.FINISHED
    assert not leftovers(results)
    for folder in (results, results / "runs"):
        folder.chmod(0o755)


def test_a_full_disk_is_an_error_that_costs_no_row(tmp_path: Path) -> None:
    path = record.write(tmp_path, {"run_id": "abc", "status": record.FINISHED, "samples": []})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # as a disk that takes no more after so many bytes
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(
            ValueError,
            match=r"results_dir=.* cannot be written: File too large\. Rows that are there are as they were",
        ):
            record.write(tmp_path, {"run_id": "abc", "status": record.FAILED, "samples": [0.123] * 10000})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert json.loads(path.read_text())["status"] == record.FINISHED
    assert not leftovers(tmp_path)
