"""Where llama.cpp's library is looked for; nothing is fetched here."""

from importlib import util
from pathlib import Path

import pytest

from experiments.engines import library


@pytest.fixture(autouse=True)
def cffi_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "find_spec", lambda name: util.find_spec("json"))


def test_nothing_is_fetched_unasked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SINQ_CACHE", str(tmp_path))
    monkeypatch.delenv(library.VARIABLE, raising=False)
    assert (
        library.missing()
        == "llama.cpp is not here; fetch it with make readers, or name its folder with SINQ_LLAMA_CPP"
    )
    assert not any(tmp_path.iterdir())


def test_a_folder_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(library.VARIABLE, str(tmp_path))
    with pytest.raises(ValueError, match=r"SINQ_LLAMA_CPP=\S+ has no libllama\.v0\.5\.0\.so; "):
        library.folder()
    (tmp_path / library.LIBRARY).touch()
    assert library.folder() == tmp_path


def test_without_cffi(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "find_spec", lambda name: None)
    assert library.missing() == "llama.cpp needs cffi; install it with pip install 'sinq-harness[readers]'"


def test_another_file_than_expected_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SINQ_CACHE", str(tmp_path))

    def wrong(scratch: Path) -> Path:
        (scratch / "package.tgz").write_bytes(b"other")
        return scratch / "package.tgz"

    monkeypatch.setattr(library, "_download", wrong)
    with pytest.raises(ValueError, match=r"package\.tgz has sha256 \w+; expected 0d953e15"):
        library.fetch()
    assert library.missing() is not None
