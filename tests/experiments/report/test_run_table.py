"""The table as data: its columns, cells, filters; and the details of a run."""

from pathlib import Path

import pytest

from experiments.report.comparable import groups
from experiments.report.details import details
from experiments.report.page import collect
from experiments.report.run_table import NONE, Table, table
from experiments.results.record import Row
from tests.experiments.rows import finished, store


def of(*rows: Row) -> Table:
    return table(groups(list(rows)), {})


def test_headline_numbers_come_first_and_columns_without_a_value_are_left_out() -> None:
    found = of(finished("none"), finished("sinq"), finished("rtn", 3))
    keys = [column.key for column in found.columns]
    assert keys[:2] == ["run", "model_and_text"]
    assert keys.index("perplexity") < keys.index("kl") < keys.index("quantize_s") < keys.index("id")
    assert not {"delta_nll", "exact_kl", "kv_bits"} & set(keys)
    usual = [column.key for column in found.columns if column.usual]
    assert "model_and_text" not in usual  # one group: all rows are of one model and text
    assert 5 <= len(usual) <= 10
    two = of(finished("sinq"), finished("sinq", text="u"))
    assert "model_and_text" in [column.key for column in two.columns if column.usual]


def test_a_column_says_what_is_better_and_how_it_is_judged() -> None:
    found = {column.key: (column.better, column.judged) for column in of(finished("sinq")).columns}
    assert found["perplexity"] == ("low", "paired")
    assert found["bits_per_weight"] == ("low", "exact")
    assert found["decode"] == ("high", "")
    assert found["method"] == ("", "")


def test_cells_are_sorted_by_the_value_and_not_by_its_words() -> None:
    exact, unknown = finished("sinq"), finished("none")
    (dense, record) = of(unknown, exact).records
    assert record.cells["perplexity"].sort == exact["metrics"]["perplexity"]["value"]
    assert record.cells["decode"].words.endswith("2.00× (2.00–2.50)")
    assert (dense.cells["decode"].words, dense.cells["decode"].sort) == ("10 alone", None)
    assert (dense.ranked, record.ranked) == (False, True)


def test_filters_are_what_tells_runs_apart_in_the_order_of_numbers() -> None:
    rows = [finished("none"), finished("sinq", 16), finished("sinq", 3), finished("rtn", 4, group_size=128)]
    filters = of(*rows).filters
    assert filters == {
        "method": ("rtn", "sinq", "none"), "bits": ("3", "4", "16", NONE), "group_size": ("64", "128", NONE),
    }  # fmt: skip


def test_options_that_differ_from_their_defaults_come_first() -> None:
    row = finished("sinq")
    row["identity"] |= {"stream": False, "kernel": "cpu"}
    row["identity"]["method"]["version"] = 3
    row["options"]["method"]["early_stop"] = True
    row["provenance"]["command"] = ["run.py", "method=sinq", "text=a b"]
    row["cost"] = {"seconds": 12.34, "peak_memory_bytes": 5e8}
    found = details(row)
    assert list(found.chosen.items())[:3] == [
        ("method.grid.bits", "4"), ("method.grid.group_size", "64"), ("method.name", "sinq"),
    ]  # fmt: skip
    assert found.chosen["kernel"] == "cpu"
    assert {
        "method.early_stop": "True",
        "method.version": "3",
        "stream": "False",
    }.items() <= found.others.items()
    assert found.command == "python run.py method=sinq 'text=a b'"
    assert found.provenance["code"] == "0123456789"
    assert (found.provenance["took"], found.provenance["peak memory"]) == ("12.3 s", "500 MB")
    assert found.provenance["row"] == "runs/sinq4t.json"


def test_a_row_that_says_little_has_few_details() -> None:
    row = finished("sinq")
    del row["provenance"]
    assert details(row).command == ""
    assert details(row).provenance["code"] == "unknown"


def test_the_difference_to_the_reference_has_its_columns(tmp_path: Path) -> None:
    store(tmp_path, finished("sinq"), finished("rtn"))
    found = collect(tmp_path).table
    cells = {record.run_id: record.cells for record in found.records}
    assert cells["rtn4t"]["verdict"].words == "worse"
    assert float(cells["rtn4t"]["delta_nll"].words) == pytest.approx(0.1, abs=0.005)
    assert cells["sinq4t"]["delta_nll"].sort is None
    assert not next(column for column in found.columns if column.key == "delta_nll").better
