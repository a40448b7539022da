"""Compiled kernels on disk: found wherever their files lie, compiled anew when a source of theirs changes."""

import os
import re
import shutil
from importlib import import_module
from pathlib import Path

import pytest

from sinq.kernels import cache
from tests.conftest import ROOT
from tests.forked import fork
from tests.sinq.kernels.parts import call, package


def called(root: Path, kernels: Path) -> tuple[int, ...]:
    """What `call` prints in a process of its own."""
    process = fork(kernels.parent / "out", call, root, environment={"NUMBA_CACHE_DIR": str(kernels)})
    assert process.done() == 0, process.output
    return tuple(int(word) for word in process.stdout.split())


def test_a_change_in_a_file_that_is_compiled_in_is_seen_and_a_copy_is_compiled_once(tmp_path: Path) -> None:
    project, kernels = package(tmp_path / "project"), tmp_path / "kernels"
    assert called(project, kernels) == (11, 0, 1)
    assert called(project, kernels) == (11, 1, 0)
    shutil.copytree(project, tmp_path / "copy")
    assert called(tmp_path / "copy", kernels) == (11, 1, 0)
    assert called(package(project, added=2), kernels) == (12, 0, 1)
    assert called(package(project, factor=3, added=2), kernels) == (32, 0, 1)
    assert called(package(project), kernels) == (11, 1, 0)


def cached_functions() -> list[str]:
    """Functions that Numba keeps on disk, as `module:name`, of all files of ours."""
    texts = {
        file: file.read_text() for name in cache.PACKAGES for file in sorted((ROOT / name).rglob("*.py"))
    }
    modules = {file: ".".join(file.relative_to(ROOT).with_suffix("").parts) for file in texts}
    return [
        f"{modules[file]}:{name}"
        for file, text in texts.items()
        for name in re.findall(r"^@njit\(.*cache=True.*\)\ndef (\w+)", text, re.M)
    ]


def test_every_kernel_is_kept_by_content() -> None:
    found = cached_functions()
    assert len(found) > 30
    for module, name in (one.split(":") for one in found):
        dispatcher = getattr(import_module(module), name)
        assert Path(dispatcher.stats.cache_path).name == f"{module}-{cache.digest(ROOT, module)}"


def test_only_what_a_file_imports_at_its_top_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "PACKAGES", {"parts"})
    root = package(tmp_path)
    (root / "parts/apart.py").touch()
    (root / "parts/limit.py").write_text(
        "import parts.kernel\nimport torch\n\n\ndef later():\n    import parts.apart\n"
    )
    assert set(cache.sources(root, "parts.kernel")) == {
        f"parts/{name}.py" for name in ("kernel", "helper", "limit")
    }


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"NUMBA_CACHE_DIR": "a", "SINQ_CACHE": "b", "XDG_CACHE_HOME": "c", "HOME": "d"}, "a"),
        ({"SINQ_CACHE": "b", "XDG_CACHE_HOME": "c", "HOME": "d"}, "b/kernels"),
        ({"XDG_CACHE_HOME": "c", "HOME": "d"}, "c/sinq-harness/kernels"),
        ({"HOME": "d"}, "d/.cache/sinq-harness/kernels"),
    ],
)
def test_the_user_says_where(
    variables: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("NUMBA_CACHE_DIR", "SINQ_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert cache.cache_dir() == Path(expected)


def test_those_unused_for_longest_go(tmp_path: Path) -> None:
    folders = [tmp_path / f"parts.kernel-{number}" for number in range(cache.KEPT + 2)]
    for age, folder in enumerate(reversed(folders[1:])):
        folder.mkdir()
        os.utime(folder, (1e9 - age, 1e9 - age))
    (tmp_path / "parts.kernels-0").mkdir()
    cache.prepare(folders[0])  # the newest now; the last ones were made first
    assert sorted(tmp_path.glob("parts.kernel-*")) == sorted([folders[0], *folders[-cache.KEPT + 1 :]])
    assert (tmp_path / "parts.kernels-0").is_dir()


def test_where_nothing_can_be_written_numba_chooses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "file"))
    assert (
        cache.KernelLocator.from_function(cache.install_locator, str(ROOT / "sinq/kernels/cache.py")) is None
    )
    assert cache.KernelLocator.from_function(pytest.raises, pytest.__file__) is None
