import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from experiments.common.cache import CHECKSUM
from experiments.data.corpora import C4, PLACES, C4New, C4Saved, PennTreebank, Pile, WikiText2
from experiments.data.text import Corpus, StateOfTheUnion, Text, tokenize, windows
from tests.conftest import needs_data, tiny_tokenizer


def paragraphs(text: str) -> set[str]:
    """Paragraphs long enough to be nobody's formula."""
    return {part.strip() for part in text.split("\n") if len(part) > 200}


@pytest.mark.parametrize(
    "text",
    [StateOfTheUnion(), pytest.param(WikiText2(), marks=needs_data), pytest.param(C4(), marks=needs_data)],
)
def test_what_calibrates_is_never_what_evaluates(text: Text) -> None:
    evaluation, calibration = paragraphs(text.evaluation().text), paragraphs(text.calibration().text)
    assert len(evaluation) > 10
    assert len(calibration) > 10
    assert not evaluation & calibration


@needs_data
def test_wikitext2_rows_are_those_of_the_hub() -> None:
    # a row ends with its own newline, a blank one is empty
    rows = WikiText2().evaluation().text.split("\n\n")
    assert (
        WikiText2()
        .evaluation()
        .text.startswith("\n\n = Robert Boulter = \n\n\n\n\n Robert Boulter is an English film")
    )
    assert len(rows) == 4358


def test_lines_and_json_become_rows(tmp_path: Path) -> None:
    (tmp_path / "ptb").mkdir()
    (tmp_path / "c4").mkdir()
    (tmp_path / "ptb/ptb.test.txt").write_text(" one \n two \n")
    with gzip.open(tmp_path / "c4/c4-validation.00000-of-00008.json.gz", "wt") as file:
        file.writelines(json.dumps({"text": word, "url": "-"}) + "\n" for word in ("alpha", "beta"))
    assert PennTreebank(path=str(tmp_path)).evaluation().text == "one two"
    assert C4(path=str(tmp_path)).evaluation().text == "alpha\n\nbeta"


def test_c4_new_is_the_first_documents_joined_by_a_space(tmp_path: Path) -> None:
    (tmp_path / "c4").mkdir()
    with gzip.open(tmp_path / "c4/c4-validation.00000-of-00008.json.gz", "wt") as file:
        file.writelines(json.dumps({"text": f"d{k}\n"}) + "\n" for k in range(1103))
    passage = C4New(path=str(tmp_path)).evaluation()
    assert passage.text == " ".join(f"d{k}\n" for k in range(1100))
    assert passage.source == "file c4/c4-validation.00000-of-00008.json.gz, first 1100 documents"


def test_c4_new_is_not_made_of_a_sample(tmp_path: Path) -> None:
    (tmp_path / "c4").mkdir()
    (tmp_path / "c4/c4_train_sample.jsonl").write_text(json.dumps({"text": "d"}) + "\n")
    with pytest.raises(
        ValueError, match=r"text=c4_new: text\.path=.* has no c4/c4-validation\.00000-of-00008\.json\.gz"
    ):
        C4New(path=str(tmp_path)).evaluation()


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """Folder of documents of growing length, and three positions; the second ends before its excerpt."""
    (tmp_path / "c4").mkdir()
    with gzip.open(tmp_path / "c4/c4-validation.00000-of-00008.json.gz", "wt") as file:
        file.writelines(
            json.dumps({"text": f"Tale {k}: " + "once upon a time " * 60 * k}) + "\n" for k in range(4)
        )
    for name, values in zip(PLACES, ([3, 1, 3], [7, 40, 2000]), strict=True):
        torch.save(values, tmp_path / "c4" / name)
    return tmp_path


def test_c4_saved_is_cut_out_of_documents_that_are_tokenised_alone(saved: Path) -> None:
    tokenizer, passage = tiny_tokenizer(), C4Saved(path=str(saved)).evaluation()
    expected: list[int] = []
    for number, start in ((3, 7), (1, 40), (3, 2000)):
        document = tokenizer(f"Tale {number}: " + "once upon a time " * 60 * number)["input_ids"]
        expected += [document[index] for index in range(start, start + 2048) if index < len(document)]
    assert passage.ids(tokenizer) == expected
    assert len(expected) % 2048 != 0  # the short one moves the windows after it
    assert len(windows(tokenize(passage, tokenizer, "hash"), 2048)) == len(expected) // 2048
    assert passage.source.endswith("3 excerpts of 2048 tokens at saved places of documents 3, 1, 3, …")


def test_c4_saved_is_known_by_documents_and_places(saved: Path, tmp_path: Path) -> None:
    here = C4Saved(path=str(saved)).identity()
    (tmp_path / "other").mkdir()
    for name, values in zip(PLACES, ([3, 1, 3], [7, 40, 2001]), strict=True):
        torch.save(values, tmp_path / "other" / name)
    there = C4Saved(path=str(saved), indices=str(tmp_path / "other"))
    assert (here["name"], here["fingerprint"]) != (there.identity()["name"], there.identity()["fingerprint"])
    assert C4Saved(path=str(saved), indices=str(saved / "c4")).identity() == here


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            ([0], [1, 2]),
            r"c4_seed_tmp\.pth has 1 numbers up to 0, c4_seed_index\.pth 2; both must have as many",
        ),
        (([4], [0]), "documents be numbered from 0 to 3"),
        (([0], [-1]), r"c4_seed_index\.pth holds \[-1\]; it must be a list of whole numbers from 0 on"),
        (([0], {"a": 1}), "it must be a list of whole numbers from 0 on"),
    ],
)
def test_places_that_cannot_be_are_refused(saved: Path, values: tuple[Any, Any], message: str) -> None:
    for name, value in zip(PLACES, values, strict=True):
        torch.save(value, saved / "c4" / name)
    with pytest.raises(ValueError, match=message):
        C4Saved(path=str(saved)).evaluation()


def test_c4_saved_without_its_places_says_where_they_are(saved: Path) -> None:
    (saved / "c4" / PLACES[0]).write_bytes(b"no pickle")
    with pytest.raises(ValueError, match=r"c4_seed_tmp\.pth cannot be read as torch\.save writes it"):
        C4Saved(path=str(saved)).evaluation()
    (saved / "c4" / PLACES[0]).unlink()
    with pytest.raises(
        ValueError,
        match=r"c4_saved needs c4_seed_tmp\.pth and .*eval_my of github\.com/Efficient-ML/Qwen3-Quantization",
    ):
        C4Saved(path=str(saved)).evaluation()


def test_a_sample_is_split_and_said_to_be_one(tmp_path: Path) -> None:
    (tmp_path / "c4").mkdir()
    (tmp_path / "c4/c4_train_sample.jsonl").write_text(
        "".join(json.dumps({"text": f"d{k}"}) + "\n" for k in range(5))
    )
    text = C4(path=str(tmp_path))
    assert (text.evaluation().text, text.calibration().text) == ("d0\n\nd1", "d2\n\nd3\n\nd4")
    assert text.evaluation().source == "file c4/c4_train_sample.jsonl, rows 0–1"


def test_a_document_that_evaluates_is_left_out_of_calibration(tmp_path: Path) -> None:
    (tmp_path / "c4").mkdir()
    documents = ["a" * 200, "heading", "heading", "a" * 200, "b" * 200, "b" * 200]
    (tmp_path / "c4/c4_train_sample.jsonl").write_text(
        "".join(json.dumps({"text": text}) + "\n" for text in documents)
    )
    assert C4(path=str(tmp_path)).calibration().text == "b" * 200 + "\n\n" + "b" * 200


def test_a_folder_without_the_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"text=ptb: text\.path=.* has no ptb/ptb\.test\.txt"):
        PennTreebank(path=str(tmp_path)).evaluation()


def test_years_must_not_overlap() -> None:
    with pytest.raises(
        ValueError, match=r"text\.calibrate_until=2001 must be before text\.evaluate_from=2001"
    ):
        StateOfTheUnion(calibrate_until=2001)


def test_identity_is_content_not_place(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name / "ptb").mkdir(parents=True)
        (tmp_path / name / "ptb/ptb.test.txt").write_text("same\n")
    first, second = (PennTreebank(path=str(tmp_path / name)).identity() for name in ("a", "b"))
    assert first == second
    (tmp_path / "c/ptb").mkdir(parents=True)
    (tmp_path / "c/ptb/ptb.test.txt").write_text("other\n")
    assert PennTreebank(path=str(tmp_path / "c")).identity() != first


def test_tokens_are_cached_by_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SINQ_CACHE", str(tmp_path))
    passage, tokenizer = StateOfTheUnion(evaluate_from=2024).evaluation(), tiny_tokenizer()
    first = tokenize(passage, tokenizer, "hash")
    assert first.tolist() == tokenizer(passage.text)["input_ids"]
    monkeypatch.setattr(type(tokenizer), "__call__", lambda *args, **options: pytest.fail("tokenised again"))
    assert torch.equal(tokenize(passage, tokenizer, "hash"), first)
    assert sorted(file.suffix for file in (tmp_path / "tokens").iterdir()) == [".npy", CHECKSUM]


def test_windows_do_not_overlap_and_leave_out_the_rest() -> None:
    tokens = torch.arange(23)
    assert windows(tokens, 5).tolist() == torch.arange(20).reshape(4, 5).tolist()
    assert len(windows(tokens, 5, 2)) == 2
    with pytest.raises(ValueError, match="23 tokens, fewer than one window of seqlen=24"):
        windows(tokens, 24)


@pytest.mark.parametrize("text", [WikiText2, C4, PennTreebank, Pile])
def test_no_text_calibrates_on_what_it_evaluates(text: type[Corpus], tmp_path: Path) -> None:
    """A calibration file may hold rows of the evaluation part; the real texts are looked at above."""
    shared, unshared = "s" * 200, "o" * 200
    for files, rows in (
        (text.evaluation_files, [shared, "e" * 200]),
        (text.calibration_files, [shared, unshared]),
    ):
        file = tmp_path / files[0].path
        file.parent.mkdir(exist_ok=True)
        before = _rows(file) if file.exists() else []
        _write(file, before + rows)
    found = text(path=str(tmp_path))
    assert shared in found.evaluation().text
    assert unshared in found.calibration().text
    assert shared not in found.calibration().text


def _rows(file: Path) -> list[str]:
    return [json.loads(line)["text"] for line in file.read_text().splitlines()]


def _write(file: Path, rows: list[str]) -> None:
    content = "".join((json.dumps({"text": row}) if "json" in file.name else row) + "\n" for row in rows)
    file.write_bytes(gzip.compress(content.encode()) if file.suffix == ".gz" else content.encode())
