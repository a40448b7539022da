"""Rows name no folder of the machine, no home, host or user; what a run was is still said."""

import getpass
import json
import platform
from pathlib import Path

import pytest

from experiments.results import record
from experiments.runs.portable import portable
from tests import forked


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("home/ada", "data", "cache", "work"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path / "home/ada"))
    monkeypatch.setenv("SINQ_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("SINQ_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr(platform, "node", lambda: "adas-laptop")
    return tmp_path


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("model.path={root}/home/ada/models/llama", "model.path=~/models/llama"),
        ("{root}/data/wikitext2/wiki.test.raw", "$SINQ_DATA/wikitext2/wiki.test.raw"),
        ("results_dir={root}/work/results", "results_dir=./results"),
        ("{root}/cache/tokens/ab.npy: full", "$SINQ_CACHE/tokens/ab.npy: full"),
        ("OSError: [Errno 28]: '/srv/models/secret/a.safetensors'", "OSError: [Errno 28]: '…/a.safetensors'"),
        ("[/srv/secret/a, /srv/secret/b]", "[…/a, …/b]"),
        ("file:///srv/secret/a.txt", "…/a.txt"),
        ("adas-laptop refused", "<host> refused"),
        ("{root}/data", "$SINQ_DATA"),
        ("{root}/dataset/x", "…/x"),
        ("0.5 nats/token and/or 3/4", "0.5 nats/token and/or 3/4"),
        ("see https://huggingface.co/Qwen/Qwen3 now", "see https://huggingface.co/Qwen/Qwen3 now"),
        ("Qwen/Qwen3-1.7B", "Qwen/Qwen3-1.7B"),
        ("‖W − Ŵ‖ / ‖W‖", "‖W − Ŵ‖ / ‖W‖"),
    ],
)  # fmt: skip
def test_paths_are_named_by_what_they_are(text: str, expected: str, folders: Path) -> None:
    assert portable(text.format(root=folders)) == expected
    assert portable(expected) == expected
    nested = {"a": [{"b": text.format(root=folders)}, 3, None, 2.5, True]}
    assert portable(nested) == {"a": [{"b": expected}, 3, None, 2.5, True]}


def test_a_row_of_a_run_names_nothing_of_the_machine(tiny_folder: Path, tmp_path: Path) -> None:
    text = tmp_path / "texts/notes.txt"
    text.parent.mkdir()
    text.write_text("one two three. " * 400)
    words = (
        "model=hub", f"model.path={tiny_folder}", "text=file", "text.path=${oc.env:SECRET}", "logger=none",
        "evaluation=quality", "evaluation.perplexity.windows=1",
        "evaluation.perplexity.seqlen=32", "group_size=32", f"results_dir={tmp_path / 'results'}",
    )  # fmt: skip
    done = forked.run(tmp_path / "out", ("run.py", *words), {"SECRET": str(text)})
    assert done.done() == 0, done.output
    rows, _ = record.read(tmp_path / "results")
    assert len(rows) == 2
    for row in rows:
        said = json.dumps({key: row[key] for key in row if key != "samples"})
        for private in (str(tmp_path), str(Path.home()) + "/", platform.node()):
            assert private not in said
        assert getpass.getuser() == "root" or getpass.getuser() not in said
        assert row["config"]["text"]["path"] == "${oc.env:SECRET}"
        assert row["config"]["model"]["path"] == "…/tiny"
        assert "model.path=…/tiny" in row["provenance"]["command"]
