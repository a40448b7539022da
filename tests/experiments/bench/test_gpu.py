"""The prepared script for a GPU in its dry form, so that no mistake costs minutes of a GPU."""

import json
import signal
import subprocess
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from experiments.bench.gpu import __main__ as script
from experiments.bench.gpu.check import Check, Setting, at_least, at_most, attempted, verdict
from tests.conftest import needs_data


def made(step: str, out: Path) -> list[Check]:
    setting = Setting(torch.device("cpu"), dry=True, out=out)
    return list(import_module(f"experiments.bench.gpu.{step}").checks(setting))


@pytest.mark.parametrize(("step", "least"), [("files", 9), ("quantize", 5), ("decode", 9)])
def test_a_step_passes_in_its_dry_form(step: str, least: int, tmp_path: Path) -> None:
    found = made(step, tmp_path)
    assert [check for check in found if verdict(check) not in ("ok", "")] == []
    assert len(found) >= least


@pytest.mark.interpreted
def test_the_kernels_pass_in_the_interpreter(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    found = made("kernels", tmp_path)
    assert len(found) == 17
    assert {verdict(check) for check in found} == {"ok"}


@needs_data
@pytest.mark.slow
def test_rows_are_compared_with_those_of_the_cpu(tmp_path: Path) -> None:
    found = made("rows", tmp_path)
    assert [(check.name.split(" beside")[0], verdict(check)) for check in found] == [
        ("perplexity.value", "ok"),
        ("compression.relative_error_mean", "ok"),
    ] * 2


def test_a_method_without_a_row_fails() -> None:
    rows = import_module("experiments.bench.gpu.rows")
    (check,) = rows._of("rtn", "stories260k", None, None)
    assert verdict(check) == "FAILED"
    assert "no row" in check.note


def test_a_process_that_runs_too_long_is_killed() -> None:
    process = subprocess.Popen(["sleep", "60"], start_new_session=True)
    assert not script._wait(process, 0.1)
    assert process.returncode == -signal.SIGKILL


def test_a_step_that_runs_too_long_keeps_what_it_found_and_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_long(process: Any, budget: float) -> bool:
        process.kill()
        process.wait()
        made_before = Check("decode", "made before", 1.0)
        (tmp_path / "decode.jsonl").write_text(json.dumps(vars(made_before)) + "\n")
        return False

    monkeypatch.setattr(script, "_wait", too_long)
    first, late, _ = script._run("decode", script._parse(["--dry", "--out", str(tmp_path)]), 60)
    assert (first.name, verdict(late)) == ("made before", "skipped")


def test_a_step_that_dies_or_has_no_time_is_named(tmp_path: Path) -> None:
    chosen = script._parse(["--dry", "--out", str(tmp_path)])
    dead, _ = script._run("unknown", chosen, 60)
    assert verdict(dead) == "FAILED"
    (none_left,) = script._run("decode", chosen, 0)
    assert none_left.skipped == "no time was left for it"


def test_an_error_is_a_failed_check_and_the_step_goes_on() -> None:
    def broken() -> Check:
        raise RuntimeError("CUDA error: an illegal memory access")

    (check,) = attempted("kernels", "products", broken)
    assert verdict(check) == "FAILED"
    assert "illegal memory access" in check.note


def test_nan_meets_no_goal() -> None:
    assert [verdict(goal("s", "n", float("nan"), 1.0)) for goal in (at_most, at_least)] == [
        "FAILED",
        "FAILED",
    ]
