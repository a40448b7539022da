"""JSON of the page: what a row says stays text, numbers stay numbers, and shared texts stand once."""

import json

from experiments.report.comparable import groups
from experiments.report.page_data import data, plain, script
from experiments.report.run_table import table
from tests.experiments.rows import finished


def test_what_a_row_says_cannot_end_its_script() -> None:
    words = "</script><script>alert(1)</script><!-- é"
    packed = str(script({"name": words}))
    assert "<" not in packed
    assert json.loads(packed) == {"name": words}


def test_numbers_that_json_lacks_keep_their_order() -> None:
    values = plain([float("inf"), 2.5, -float("inf"), float("nan"), {"deep": (float("inf"),)}])
    assert sorted(values[:3]) == [values[2], 2.5, values[0]]
    assert values[3] is None
    assert json.loads(json.dumps(values, allow_nan=False)) == values


def test_cells_have_words_and_the_key_they_are_sorted_by() -> None:
    found = groups([finished("none"), finished("sinq")])
    packed = data(table(found, {}), found)
    keys = [column["key"] for column in packed["columns"]]
    dense, run = ({**dict(zip(keys, each["cells"], strict=True))} for each in packed["runs"])
    assert run["run"] == "sinq 4-bit g64"
    assert run["perplexity"][0] == f"{run['perplexity'][1]:.3f}"
    assert (dense["kl"], dense["decode"]) == (None, "10 alone")


def test_texts_that_runs_share_stand_once() -> None:
    found = groups([finished("sinq", bits) for bits in (2, 3, 4)])
    packed = data(table(found, {}), found)
    assert len(set(packed["texts"])) == len(packed["texts"])
    chosen = [[packed["texts"][index] for index in run["details"][1]] for run in packed["runs"]]
    assert [each[0] for each in chosen] == [f"method.grid.bits\t{bits}" for bits in (4, 3, 2)]
    assert chosen[0][1:] == chosen[1][1:]
