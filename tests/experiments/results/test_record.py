import json
from pathlib import Path

import pandas as pd
import pytest

from experiments.common.files import atomic_write
from experiments.results import record
from tests.experiments.rows import finished

ROW = finished() | {"run_id": "abc", "samples": {"x": [1]}}
ROW["metrics"]["perplexity"]["value"] = 12.5


def test_a_row_comes_back_and_becomes_a_line_of_a_table(tmp_path: Path) -> None:
    record.write(tmp_path, ROW, pd.DataFrame({"name": ["q_proj"], "bits_per_weight": [4.5]}))
    assert record.find(tmp_path, "abc") == {**ROW, "schema": record.SCHEMA}
    table = record.load(tmp_path)
    assert table.loc[0, "metrics.perplexity.value"] == 12.5
    assert "samples.x" not in table
    assert pd.read_csv(record.layers_path(tmp_path, "abc")).loc[0, "bits_per_weight"] == 4.5


def test_an_unreadable_row_is_named_and_does_not_stop_the_others(tmp_path: Path) -> None:
    record.write(tmp_path, ROW)
    (tmp_path / "runs/broken.json").write_text('{"run_id": "br')
    table = record.load(tmp_path)
    assert list(table["run_id"]) == ["abc"]
    assert table.attrs["unreadable"] == ["broken.json"]
    assert record.find(tmp_path, "broken") is None


def test_an_empty_folder_is_an_empty_table(tmp_path: Path) -> None:
    assert record.load(tmp_path).empty


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_write_that_is_cut_off_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, error: type[BaseException]
) -> None:
    (tmp_path / "file").write_text("old")
    with pytest.raises(error), atomic_write(tmp_path / "file") as file:  # noqa: PT012
        file.write(b"new")
        raise error
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"file": "old"}


def test_rows_are_plain_json(tmp_path: Path) -> None:
    path = record.write(tmp_path, ROW)
    assert json.loads(path.read_text())["run_id"] == "abc"
    assert path == record.row_path(tmp_path, "abc")
