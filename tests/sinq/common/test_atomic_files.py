"""Files that replace others: with the user's permissions, never through a link, whole or not at all."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sinq.common.atomic_files import making, replacing


@pytest.fixture(params=[0o022, 0o077, 0o002])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def write_text(path: Path) -> None:
    path.write_text("new")


def write_tensors(path: Path) -> None:
    save_file({"weight": torch.ones(2)}, path)


@pytest.mark.parametrize("write", [write_text, write_tensors])
@pytest.mark.parametrize("before", [None, 0o600, 0o666])
def test_the_umask_says_who_reads_and_writes(
    write: object, before: int | None, umask: int, tmp_path: Path
) -> None:
    path = tmp_path / "inner/file"
    if before is not None:
        path.parent.mkdir()
        path.write_text("old")
        path.chmod(before)
    with replacing(path) as scratch:
        write(scratch)  # type: ignore[operator]
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask
    assert [file.name for file in path.parent.iterdir()] == ["file"]


def test_a_link_is_replaced_and_what_it_leads_to_stays(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("old")
    (tmp_path / "file").symlink_to("victim")
    with replacing(tmp_path / "file") as scratch:
        scratch.write_text("new")
    assert [(tmp_path / name).read_text() for name in ("victim", "file")] == ["old", "new"]
    assert not (tmp_path / "file").is_symlink()


def interrupted(path: Path) -> None:
    with replacing(path) as scratch:
        scratch.write_text("half")
        raise KeyboardInterrupt


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    with pytest.raises(KeyboardInterrupt):
        interrupted(tmp_path / "file")
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("file", "old")]


def test_a_folder_has_the_umask_and_comes_whole_or_not_at_all(umask: int, tmp_path: Path) -> None:
    with making(tmp_path / "inner/folder") as scratch:
        write_tensors(scratch / "file")
        assert not (tmp_path / "inner/folder").exists()
    found = tmp_path / "inner/folder"
    assert stat.S_IMODE(found.stat().st_mode) == 0o777 & ~umask
    assert stat.S_IMODE((found / "file").stat().st_mode) == 0o666 & ~umask

    def fail() -> None:
        with making(tmp_path / "other") as scratch:
            write_text(scratch / "file")
            raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        fail()
    with pytest.raises(FileExistsError, match="not empty"), making(found):
        pass
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "folder", "inner"]
