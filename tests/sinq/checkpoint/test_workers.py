"""Processes that make the files of `stream`: bits as of one, kills, errors, and a caller that is killed."""

import os
import signal
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import sinq
from sinq import Context, Grid, Layers, NotApplicable, OnMisfit, PreSINQ
from sinq.checkpoint import shards as shards_of_stream
from sinq.checkpoint import workers
from sinq.checkpoint.shards import Job, make_elsewhere, sent
from sinq.checkpoint.workers import in_processes
from sinq.kernels import Kernel
from tests.forked import CONTEXT, fork
from tests.sinq.checkpoint.streams import (
    METHOD,
    UP,
    Fatal,
    assert_same,
    change,
    checkpoint,
    die_once,
    shards,
    until,
)


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fork workers from a process that has imported everything already."""
    monkeypatch.setattr(workers, "CONTEXT", CONTEXT)


def logged(folder: Path, item: str) -> str:
    """Note that an item was begun, and do it: an error, a death, or its name in capitals."""
    with (folder / "begun").open("a") as file:
        file.write(f"{item}\n")
    if item == "error":
        raise FileNotFoundError("no such item")
    if item == "always":
        os.kill(os.getpid(), signal.SIGKILL)
    if item == "once":
        die_once(folder / "marker")
    return item.upper()


def begun(folder: Path) -> list[str]:
    return sorted((folder / "begun").read_text().split())


@pytest.mark.usefixtures("fast")
def test_a_killed_worker_loses_its_item_and_no_other(tmp_path: Path) -> None:
    (tmp_path / "marker").touch()
    items = ["a", "b", "once", "c", "d"]
    results = dict(in_processes(partial(logged, tmp_path), items, 2))
    assert results == {item: item.upper() for item in items}
    assert begun(tmp_path) == sorted([*items, "once"])


@pytest.mark.usefixtures("fast")
def test_an_item_that_ends_every_worker_is_an_error_and_so_is_an_error(tmp_path: Path) -> None:
    results = in_processes(partial(logged, tmp_path), ["a", "always"], 1)
    assert next(results) == ("a", "A")
    with pytest.raises(
        ChildProcessError, match=r"3 workers were ended while they made always.* exit code -9"
    ):
        next(results)
    assert begun(tmp_path) == ["a", *["always"] * 3]
    with pytest.raises(FileNotFoundError, match="no such item"):
        list(in_processes(partial(logged, tmp_path), ["error"], 1))


@pytest.mark.usefixtures("fast")
def test_files_are_those_of_one_process_though_a_worker_is_killed(tmp_path: Path) -> None:
    source, marker = checkpoint(tmp_path / "dense", "moe", dtype=torch.bfloat16), tmp_path / "marker"
    method = Fatal(Grid(3, 48), marker=str(marker))
    seen: list[int] = []

    def bar(items, description, total):  # type: ignore[no-untyped-def]
        for number, item in enumerate(items, 1):
            yield item
            seen.append(total - number)

    context = Context(Layers(on_misfit=OnMisfit.shrink), progress=bar)
    one = sinq.stream(source, tmp_path / "one", method, context)
    marker.touch()
    seen.clear()
    two = sinq.stream(source, tmp_path / "two", method, context, workers=2)
    assert not marker.exists()
    assert seen == [*reversed(range(len(shards(tmp_path / "one"))))]  # one bar, each file once
    for path in sorted((tmp_path / "one").iterdir()):
        same = (tmp_path / "two" / path.name).read_bytes() == path.read_bytes()
        assert same or path.name == "stream.json"  # which has seconds
    assert {path.name for path in (tmp_path / "two").iterdir()} == {
        path.name for path in (tmp_path / "one").iterdir()
    }
    assert [part.name for part in two.parts] == [part.name for part in one.parts]


def stream_slowly(source: Path, target: Path) -> None:
    sinq.stream(source, target, Fatal(Grid(4, 16), seconds=0.2), workers=2)


def children(process: int) -> list[Path]:
    listed = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return [Path("/proc") / child for child in listed]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says which children a process has")
def test_workers_end_with_a_caller_that_is_killed_and_any_number_goes_on(tmp_path: Path) -> None:
    source, target = checkpoint(tmp_path / "dense"), tmp_path / "small"
    caller = fork(tmp_path / "work", stream_slowly, source, target)
    until(lambda: len(shards(target)) >= 2 or caller.process.exitcode is not None)
    found = children(caller.process.pid)
    spawned = [path for path in found if b"spawn_main" in (path / "cmdline").read_bytes()]
    assert len(spawned) == 2, caller.output
    os.kill(caller.process.pid, signal.SIGKILL)
    caller.process.join()
    until(lambda: not any(path.exists() for path in spawned))
    kept = {path: path.stat().st_mtime_ns for path in shards(target)}
    method = Fatal(Grid(4, 16), seconds=0.2)
    sinq.stream(source, target, method, workers=1)
    again = [path for path, time in kept.items() if path.stat().st_mtime_ns != time]
    assert len(again) <= 2  # named just before the journal was to say so
    sinq.stream(source, tmp_path / "one", method)
    assert_same(sinq.stored_tensors(sinq.load(target)), sinq.stored_tensors(sinq.load(tmp_path / "one")))


@pytest.mark.usefixtures("fast")
def test_a_weight_that_is_not_finite_is_named_by_the_worker_that_finds_it(tmp_path: Path) -> None:
    source, target = checkpoint(tmp_path / "dense"), tmp_path / "small"
    change(source, UP, torch.full((128, 64), float("nan")))
    with pytest.raises(ValueError, match=r"layer model\.layers\.1\.mlp\.up_proj has NaN or Inf"):
        sinq.stream(source, target, METHOD, workers=2)


@pytest.mark.parametrize("value", [0, -1, 1025, 1.5, True, None, "many"])
def test_other_workers_are_refused(value: object, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^workers=.* must be a whole number from 1 to 1024, or ray$"):
        sinq.stream(tmp_path, tmp_path / "small", METHOD, workers=value)  # type: ignore[arg-type]


def test_methods_of_more_than_a_matrix_are_refused_before_a_worker_begins(tmp_path: Path) -> None:
    with pytest.raises(NotApplicable, match="PreSINQ needs the whole model"):
        sinq.stream(checkpoint(tmp_path / "dense"), tmp_path / "small", PreSINQ(METHOD), workers=2)
    assert not (tmp_path / "small").exists()


def test_without_ray_it_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ModuleNotFoundError, match=r"needs Ray; pip install 'sinq-harness\[ray\]'"):
        sinq.stream(checkpoint(tmp_path / "dense"), tmp_path / "small", METHOD, workers="ray")


def job(source: Path, target: Path) -> Job:
    exclude: Any = ["lm_head"]  # a list, as Hydra makes it
    return Job(source, target, METHOD, Layers(exclude), torch.device("cpu"), Kernel.reference)


FIRST, SECOND = (f"model-0000{number}-of-00005.safetensors" for number in (1, 2))


def test_a_machine_that_sees_other_folders_is_refused(tmp_path: Path) -> None:
    source, target = checkpoint(tmp_path / "dense"), tmp_path / "small"
    taken = sent(job(source, target))
    with pytest.raises(ValueError, match=r"does not see .*small with its stream\.json: all machines"):
        make_elsewhere(taken, FIRST)
    target.mkdir()
    (target / "stream.json").touch()
    (source / "config.json").touch()
    with pytest.raises(ValueError, match=r"dense has other files on .* than where the work began"):
        make_elsewhere(taken, FIRST)


def test_a_worker_prepares_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target, prepared = checkpoint(tmp_path / "dense"), tmp_path / "small", []
    target.mkdir()
    (target / "stream.json").touch()
    honest = shards_of_stream.prepare
    monkeypatch.setattr(shards_of_stream, "prepare", lambda given: prepared.append(given) or honest(given))
    for file in (FIRST, SECOND):
        make_elsewhere(sent(job(source, target)), file)
        assert (target / file).exists()
    assert len(prepared) == 1
