"""Folders of a stream under damage: what is finished by continuing is what an undisturbed stream writes."""

import json
from pathlib import Path

import pytest

import sinq
from sinq import SINQ, Grid
from sinq.checkpoint.journal import JOURNAL, JournalError
from tests.conftest import tiny_model
from tests.damage import DAMAGES

METHOD = SINQ(Grid(bits=4, group_size=16))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dense")
    tiny_model("llama").save_pretrained(folder, max_shard_size="40KB")
    return folder


@pytest.fixture
def target(source: Path, tmp_path: Path) -> Path:
    sinq.stream(source, tmp_path / "small", METHOD)
    return tmp_path / "small"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != JOURNAL}


@pytest.mark.parametrize("damage", [*DAMAGES, "gone"])
@pytest.mark.parametrize(
    "name", ["model-00002-of", "sinq.json", "model.safetensors.index.json", "config.json"]
)
def test_a_damaged_file_is_made_again(source: Path, target: Path, name: str, damage: str) -> None:
    whole = contents(target)
    (file,) = (path for path in target.iterdir() if path.name.startswith(name))
    file.unlink() if damage == "gone" else DAMAGES[damage](file)
    sinq.stream(source, target, METHOD)
    assert contents(target) == whole


def test_files_that_change_places_are_made_again(source: Path, target: Path) -> None:
    whole = contents(target)
    one, other = sorted(target.glob("model-*"))[1:3]
    one.rename(target.parent / "away")
    other.rename(one)
    (target.parent / "away").rename(other)
    assert contents(target) != whole
    sinq.stream(source, target, METHOD)
    assert contents(target) == whole


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_journal_is_named_and_nothing_is_written(source: Path, target: Path, damage: str) -> None:
    whole = contents(target)
    DAMAGES[damage](target / JOURNAL)
    with pytest.raises(JournalError, match=rf"{target / JOURNAL}.*delete {target}, or choose another folder"):
        sinq.stream(source, target, METHOD)
    assert contents(target) == whole


@pytest.mark.parametrize("change", ["nbytes", "tensors", "sha256", "layers"])
def test_every_value_of_a_journal_counts(source: Path, target: Path, change: str) -> None:
    journal = json.loads((target / JOURNAL).read_text())
    shard = next(iter(journal["content"]["done"].values()))
    shard[change] = {"nbytes": 1, "tensors": ["x"], "sha256": "0" * 64, "layers": [{}]}[change]
    (target / JOURNAL).write_text(json.dumps(journal))
    with pytest.raises(JournalError, match="its content does not have its hash, so it is damaged"):
        sinq.stream(source, target, METHOD)


@pytest.mark.parametrize(
    "text", ["[]", "null", "{}", '{"format": 2, "identity": {}, "done": {}}', "[" * 9999]
)
def test_a_journal_of_another_form_is_named(source: Path, target: Path, text: str) -> None:
    (target / JOURNAL).write_text(text)
    with pytest.raises(JournalError, match=rf"{target / JOURNAL}.*delete"):
        sinq.stream(source, target, METHOD)
