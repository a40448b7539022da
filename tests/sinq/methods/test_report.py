"""The report of parts: its counts, an empty compression, and that it survives being a file."""

import json
from dataclasses import asdict

from baselines.dense import Dense
from sinq import SINQ, CompressionReport, Decision, Grid, PartReport
from tests.conftest import tiny_model

PRUNED = PartReport(
    "heads", "model.layers.0.self_attn", 100, 0, 0, None, 0.5, (Decision("kept", 0, chosen=True),)
)


def test_a_report_without_parts_is_legal() -> None:
    report = Dense().compress(tiny_model("llama"))
    assert report == CompressionReport()
    assert (report.decisions, report.relative_error_mean) == ({}, None)


def test_parts_that_are_no_matrices_have_a_place() -> None:
    report = CompressionReport((PRUNED, PRUNED))
    assert (PRUNED.bits_per_weight, report.relative_error_mean) == (0.0, None)
    assert report.decisions == {"kept=0": 2}
    assert PRUNED.as_row()["out_features"] is None
    assert PRUNED.as_row()["decisions"] == "kept=0"


def test_decisions_are_counted_by_what_was_chosen_and_not_by_what_was_measured() -> None:
    parts = [
        PartReport(
            "weight", str(k), 1, 1, 1, 0.1, 0.0, (Decision("bits", k % 2, chosen=True), Decision("rows", k))
        )
        for k in range(4)
    ]
    assert CompressionReport(tuple(parts)).decisions == {"bits=0": 2, "rows": 4, "bits=1": 2}


def test_a_part_survives_being_a_file() -> None:
    (part, *_) = SINQ(Grid(group_size=32)).compress(tiny_model("llama")).parts
    for each in (part, PRUNED):
        assert PartReport.from_json(json.loads(json.dumps(asdict(each)))) == each
    assert part.bits_per_weight == 8 * part.nbytes / (64 * 64)
    assert part.parameters == part.dense_parameters == 64 * 64
