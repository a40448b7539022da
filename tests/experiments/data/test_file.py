"""A text of one's own: how each kind of file is read, what identifies it, and mistakes."""

import gzip
import json
from pathlib import Path

import pandas as pd
import pytest

from experiments.config.options import run_of
from experiments.data.file import TextFile

ROWS = ["First row.", "Second row,\nof two lines.", "Drïttе"]


def written(folder: Path, name: str) -> Path:
    file = folder / name
    lines = "".join(json.dumps({"text": row, "id": k}) + "\n" for k, row in enumerate(ROWS))
    if ".parquet" in name:
        pd.DataFrame({"id": range(len(ROWS)), "text": ROWS}).to_parquet(file)
    elif name.endswith(".gz"):
        file.write_bytes(gzip.compress(lines.encode()))
    else:
        file.write_text(lines if ".json" in name else "\n\n".join(ROWS), encoding="utf-8")
    return file


NAMES = ["a.txt", "a", "notes.v2.md", "a.jsonl", "a.json", "a.jsonl.gz", "a.parquet"]


@pytest.mark.parametrize("name", NAMES)
def test_every_kind_of_file_is_the_same_text(name: str, tmp_path: Path) -> None:
    text = TextFile(path=str(written(tmp_path, name)))
    assert text.evaluation().text == "\n\n".join(ROWS)
    assert text.calibration() == text.evaluation()
    assert text.evaluation().source == f"file {name}"


def test_it_is_identified_by_its_content(tmp_path: Path) -> None:
    identities = {json.dumps(TextFile(path=str(written(tmp_path, name))).identity()) for name in NAMES}
    assert len(identities) == 1
    file = written(tmp_path, "a.txt")
    file.write_text(file.read_text() + "!")
    assert json.dumps(TextFile(path=str(file)).identity()) not in identities


def damaged(folder: Path, name: str, content: bytes) -> str:
    (folder / name).write_bytes(content)
    return str(folder / name)


CUT_GZIP = gzip.compress(b'{"text": "x"}' * 999, mtime=0)[:-9]  # a time of day would be in the test's name


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "x"}\n{"txt": "y", "id": 3}\n', r"line 2 has no text .* the fields txt, id"),
        ("a.jsonl", b'{"text": "x"}\n{"text": 3}\n', "line 2 has no text that is a string"),
        ("a.jsonl", b'["x"]\n', "line 1 has no text that is a string; it has list"),
        ("a.jsonl", b'{"text": "x"}\n{"text"\n', "line 2 is no JSON"),
        ("a.txt", b"\xff\xfe\x00", "cannot be read: .*; it must be text in UTF-8"),
        ("a.txt", b" \n", "has no text in it"),
        ("a.jsonl.gz", b"no gzip", "cannot be read"),
        ("a.jsonl.gz", CUT_GZIP, "cannot be read"),
        ("a.parquet", b"no parquet", "cannot be read as Parquet"),
        ("a.parquet", b"PAR1 cut", "cannot be read as Parquet"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_read_is_one_line(
    name: str, content: bytes, message: str, tmp_path: Path
) -> None:
    text = TextFile(path=damaged(tmp_path, name, content))
    with pytest.raises(ValueError, match=message) as raised:
        text.evaluation()
    assert str(raised.value).startswith(f"text.path={tmp_path}")
    assert "\n" not in str(raised.value)


def test_columns_of_parquet_are_checked(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    pd.DataFrame({"body": ["x"]}).to_parquet(file)
    with pytest.raises(ValueError, match="has no column text; it has body"):
        TextFile(path=str(file)).evaluation()
    pd.DataFrame({"text": ["x", None]}).to_parquet(file)
    with pytest.raises(ValueError, match="row 1 of text is None; it must be a string"):
        TextFile(path=str(file)).evaluation()


def test_a_path_that_is_no_file_is_one_line(tmp_path: Path) -> None:
    for path, message in ((tmp_path, "is a folder"), (tmp_path / "none.txt", "does not exist")):
        with pytest.raises(ValueError, match=f"text.path={path} {message}; give a file"):
            TextFile(path=str(path)).evaluation()
    with pytest.raises(ValueError, match=r"text\.path is missing"):
        TextFile()


def test_options_choose_it_for_evaluation_and_calibration(tmp_path: Path) -> None:
    one, other = written(tmp_path, "a.txt"), written(tmp_path, "b.jsonl")
    run = run_of(("text=file", f"text.path={one}", "method=rtn"))
    assert run.text == TextFile(path=str(one))
    words = (
        "method=gptq",
        "text=file",
        f"text.path={one}",
        "calibration=file",
        f"calibration.text.path={other}",
    )
    with pytest.raises(ValueError, match="are the same text: a method must not see"):
        run_of(words)
    other.write_text('{"text": "other"}')
    assert run_of((*words, "seed=3")).calibration.identity()["text"]["name"] == "file"
