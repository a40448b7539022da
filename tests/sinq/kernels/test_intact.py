"""Compiled kernels under damage: the same result as before, with one line in the log, and kept again."""

import os
import sys
from pathlib import Path

import pytest

from tests.damage import DAMAGES
from tests.forked import fork
from tests.sinq.kernels.parts import call, package

FILES = ("*.nbi", "*.nbc")


def called(root: Path, kernels: Path) -> tuple[tuple[int, ...], str]:
    """What `call` prints in a process of its own, and what it logs."""
    process = fork(kernels.parent / "out", call, root, environment={"NUMBA_CACHE_DIR": str(kernels)})
    assert process.done() == 0, process.output
    return tuple(int(word) for word in process.stdout.split()), process.stderr


def damaged_once(project: Path, kernels: Path) -> None:
    result, said = called(project, kernels)
    assert result == (11, 0, 1)
    assert said.splitlines() == [line for line in said.splitlines() if "has damaged kernels" in line]
    assert len(said.splitlines()) == 1
    assert called(project, kernels) == ((11, 1, 0), "")


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("pattern", FILES)
def test_a_damaged_kernel_is_compiled_again(pattern: str, damage: str, tmp_path: Path) -> None:
    project, kernels = package(tmp_path / "project"), tmp_path / "kernels"
    assert called(project, kernels) == ((11, 0, 1), "")
    (file,) = kernels.glob(f"*/{pattern}")
    DAMAGES[damage](file)
    damaged_once(project, kernels)


def test_a_kernel_under_the_name_of_another_is_compiled_again(tmp_path: Path) -> None:
    project, kernels = package(tmp_path / "project"), tmp_path / "kernels"
    assert called(project, kernels) == ((11, 0, 1), "")
    (file,) = kernels.glob("*/*.nbc")
    other = package(tmp_path / "other", added=2)
    assert called(other, kernels) == ((12, 0, 1), "")
    (foreign,) = set(kernels.glob("*/*.nbc")) - {file}
    assert foreign.name == file.name
    file.write_bytes(foreign.read_bytes())
    damaged_once(project, kernels)


@pytest.mark.parametrize("pattern", FILES)
def test_a_missing_file_is_no_damage(pattern: str, tmp_path: Path) -> None:
    project, kernels = package(tmp_path / "project"), tmp_path / "kernels"
    assert called(project, kernels) == ((11, 0, 1), "")
    (file,) = kernels.glob(f"*/{pattern}")
    file.unlink()
    assert called(project, kernels) == ((11, 0, 1), "")
    assert called(project, kernels) == ((11, 1, 0), "")


def call_on_a_full_disk(root: Path) -> None:
    import resource
    import signal

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, resource.RLIM_INFINITY))
    read, write = os.pipe()  # what is printed goes to a file, which takes no more either
    os.dup2(write, 1)
    os.dup2(write, 2)
    call(root)
    sys.stdout.flush()
    sys.stderr.flush()
    os.close(write)
    os.close(1)
    os.close(2)
    said = os.read(read, 4096).decode()
    assert said.count("compiled kernels are not kept") == 1
    assert "11 0 1" in said


def test_a_full_disk_costs_the_time_of_compiling(tmp_path: Path) -> None:
    project, kernels = package(tmp_path / "project"), tmp_path / "kernels"
    where = {"NUMBA_CACHE_DIR": str(kernels)}
    process = fork(tmp_path / "out", call_on_a_full_disk, project, environment=where)
    assert process.done() == 0, process.output
    assert called(project, kernels) == ((11, 0, 1), "")
