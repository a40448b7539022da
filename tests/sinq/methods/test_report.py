"""The report of parts: its counts, an empty compression, and that it survives being a file."""

import json
import re
from dataclasses import asdict

import pytest

from baselines.dense import Dense
from sinq import SINQ, CompressionReport, Context, Decision, Grid, Layers, OnMisfit, PartReport, PreSINQ
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


def test_a_printed_report_is_a_few_lines() -> None:
    report = SINQ(Grid(group_size=48)).compress(
        tiny_model("llama"), context=Context(Layers(on_misfit=OnMisfit.shrink))
    )
    lines = dict(re.split(r"\s{2,}|(?<=weight) ", line, maxsplit=1) for line in repr(report).splitlines())
    assert repr(report) == str(report)
    assert lines["method"] == "SINQ 4-bit g48"
    assert lines["parts"] == "14 compressed"
    weights = sum(part.parameters for part in report.parts)
    assert float(lines["bits per weight"]) == pytest.approx(8 * report.nbytes / weights, abs=5e-4)
    assert float(lines["MB"]) == pytest.approx(sum(part.nbytes for part in report.parts) / 1e6, abs=5e-4)
    assert float(lines["mean error"].split(",")[0]) == pytest.approx(report.relative_error_mean, abs=5e-5)
    assert "14 × shrunk_group_size=32" in lines["decisions"]
    assert len(lines) <= 8


def test_a_printed_report_names_what_is_inside() -> None:
    assert (
        PreSINQ(SINQ(Grid(group_size=32))).compress(tiny_model("llama")).method == "PreSINQ(SINQ 4-bit g32)"
    )
    assert "none is compressed" in repr(Dense().compress(tiny_model("llama")))
    assert "2 × kept=0" in repr(CompressionReport((PRUNED, PRUNED)))
