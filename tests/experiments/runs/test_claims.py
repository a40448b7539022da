"""Claims, held by real processes that wait, die, or seem to be on another machine."""

import os
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from experiments.runs import claims
from experiments.runs.claims import BusyError, claim
from tests.forked import CONTEXT


def hold(folder: Path, pause: float) -> None:
    """What a worker does."""
    with claim(folder, "one"), (folder / "events").open("a", buffering=1) as events:
        events.write("in\n")
        time.sleep(pause)
        events.write("out\n")


def worker(folder: Path, pause: float) -> Any:
    process = CONTEXT.Process(target=hold, args=(folder, pause))
    process.start()
    return process


def wait_for(condition: "object", limit: float = 60) -> None:
    start = time.monotonic()
    while not condition():  # type: ignore[operator]
        assert time.monotonic() - start < limit
        time.sleep(0.02)


def test_two_processes_never_work_on_one_run_at_once(tmp_path: Path) -> None:
    workers = [worker(tmp_path, 0.3) for _ in range(3)]
    assert [(process.join(), process.exitcode) for process in workers] == [(None, 0)] * 3
    assert (tmp_path / "events").read_text().split() == ["in", "out"] * 3


def test_the_claim_of_a_killed_process_is_free_again(tmp_path: Path) -> None:
    process = worker(tmp_path, 600)
    wait_for((tmp_path / "events").exists)
    process.kill()
    process.join()
    with claim(tmp_path, "one"):
        pass


def test_a_claim_that_is_held_is_left_alone_when_not_to_wait(tmp_path: Path) -> None:
    process = worker(tmp_path, 600)
    try:
        wait_for((tmp_path / "events").exists)
        with (
            pytest.raises(BusyError, match="another process is at work on run one"),
            claim(tmp_path, "one", wait=False),
        ):
            pass
        with claim(tmp_path, "two", wait=False):
            pass
    finally:
        process.kill()
        process.join()


def test_the_claim_of_a_dead_machine_expires_and_one_that_beats_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A marker that names another host says nothing about its process; only the heartbeat counts."""
    monkeypatch.setattr(claims, "EXPIRES", 1.0)
    monkeypatch.setattr(claims, "HEARTBEAT", 0.2)
    marker = tmp_path / ".claims/one"
    with claim(tmp_path, "one"):
        ours = marker.read_text()
    elsewhere = ours.replace(socket.gethostname(), "some-other-host")
    assert elsewhere != ours
    marker.write_text(elsewhere)
    for _ in range(10):  # the other machine lives: its file is touched, and we go on waiting
        os.utime(marker)
        with pytest.raises(BusyError), claim(tmp_path, "one", wait=False):
            pass
        time.sleep(0.2)
    start = time.monotonic()
    with claim(tmp_path, "one"):
        assert time.monotonic() - start >= 0.9
    assert not marker.exists()


def test_a_new_owner_removes_what_the_old_one_left_half_written_and_nothing_else(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    runs.mkdir()
    for name in (".one.json.abc.tmp", ".one.layers.csv.abc.tmp", ".two.json.abc.tmp", "one.json"):
        (runs / name).write_text("")
    with claim(tmp_path, "one"):
        assert sorted(path.name for path in runs.iterdir()) == [".two.json.abc.tmp", "one.json"]


def test_a_results_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(ValueError, match=r"results_dir=.*file/results cannot be written"),
        claim(tmp_path / "file/results", "one"),
    ):
        pass


@pytest.mark.parametrize("content", [b"", b"?", b"filelock/2\npid=1\nhost=here", b"\xff\x00" * 40, b"\n\n"])
def test_a_claim_that_says_nothing_is_void_after_seconds(
    content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(claims, "VOID", 0.3)
    marker = tmp_path / ".claims/one"
    marker.parent.mkdir()
    marker.write_bytes(content)
    with pytest.raises(BusyError), claim(tmp_path, "one", wait=False):
        pass
    start = time.monotonic()
    with caplog.at_level("INFO", "experiments"), claim(tmp_path, "one"):
        assert time.monotonic() - start < 30
    assert str(marker) in caplog.text
    assert list(marker.parent.iterdir()) == []


def test_an_empty_claim_that_is_written_to_late_is_its_owners(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A claim is spoiled only while it is the empty file that was seen."""
    marker = tmp_path / "one"
    marker.write_bytes(b"")
    seen = claims._empty(marker)
    assert seen is not None
    for content in (b"an owner", None):
        marker.unlink()
        if content is not None:
            marker.write_bytes(content)
        claims._spoil(marker, seen)
        assert (marker.read_bytes() if marker.exists() else None) == content
        marker.write_bytes(b"")
    target = tmp_path / "target"
    target.write_bytes(b"")
    marker.unlink()
    marker.symlink_to(target)
    assert claims._empty(marker) is None
    claims._spoil(marker, target.stat().st_ino)
    assert target.read_bytes() == b""


def test_several_processes_that_find_an_empty_claim_work_one_after_another(tmp_path: Path) -> None:
    (tmp_path / ".claims").mkdir()
    (tmp_path / ".claims/one").write_bytes(b"")
    workers = [worker(tmp_path, 0.3) for _ in range(3)]
    assert [(process.join(), process.exitcode) for process in workers] == [(None, 0)] * 3
    assert (tmp_path / "events").read_text().split() == ["in", "out"] * 3
