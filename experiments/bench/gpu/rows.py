"""The step `rows`: `run.py` for every method on the device; each row is held against the CPU's row.

A process of its own sweeps on each device, through the command that a user types; the CPU runs definitions
(`kernel=reference`). The model is stories260k, and, for few methods since the CPU must follow, two layers of
random weights in the shapes of Qwen3-0.6B.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from experiments.bench.gpu.check import Check, Setting, at_most
from experiments.bench.gpu.models import QWEN3_0_6B, qwen3
from experiments.common.paths import conf_dir, data_dir
from experiments.results import record
from experiments.results.paths import get_path

STEP = "rows"
COMMON = (
    "text=sotu", "text.evaluate_from=2025", "calibration=sotu", "calibration.samples=8",
    "calibration.seqlen=256", "on_misfit=shrink", "model.dtype=float32", "logger=none",
    "evaluation.perplexity.windows=4", "evaluation.perplexity.seqlen=256",
)  # fmt: skip
GROUPS, CODEBOOKS = "group_size=32", "{codebooks: 4, bits_per_codebook: 4, group: 4}"
UNUSUAL: dict[str, tuple[str, ...]] = {
    "sinq_nf3": ("bits=3", GROUPS),
    "hadamard": (
        GROUPS,
        "layers.exclude=[lm_head,down_proj]",
    ),
    "quarot": (GROUPS, "method.down=false"),
    "mixed": (GROUPS, "budget.bits_per_weight=5"),
    "aqlm_untuned": (f"method.format={CODEBOOKS}", "method.rounds=2", "method.steps=5"),
    "mgptq": (GROUPS, "bits=2"),
    "aqlm": (
        f"method.inner.format={CODEBOOKS}",
        "method.inner.rounds=2",
        "method.inner.steps=5",
        "method.tuning.epochs=1",
    ),
}
"""Options of methods whose published sizes do not fit a model of 260,000 weights."""
LEFT_OUT = ("none", "aqlm_1x16", "aqlm_cpu")
"""The dense run is made beside each other one; two presets of AQLM differ from a third in sizes only."""
LARGER = ("rtn", "sinq", "hqq", "gptq", "awq")
PERPLEXITY, ERROR = 0.005, 0.02
"""Largest relative difference of two rows' perplexities, and of their layers' mean errors."""
NEAR_TIES = {"awq": 0.05, "aqlm": 0.05, "aqlm_untuned": 0.05}
"""Larger differences where candidates nearly tie: on one CPU, AWQ's kernel and definition differ by 1 %."""


@dataclass(frozen=True)
class Sweep:
    """Methods that run with the same options."""

    model: str
    methods: tuple[str, ...]
    options: tuple[str, ...]


def checks(setting: Setting) -> Iterator[Check]:
    """Yield a check or two for each method, on both models."""
    stories = (data_dir() or Path()) / "models" / "stories260k"
    if data_dir() is None or not stories.is_dir():
        yield Check(STEP, "all methods", None, skipped="SINQ_DATA has no models/stories260k")
        return
    sweeps = list(_sweeps(setting, stories))
    with ThreadPoolExecutor(max(2, (os.cpu_count() or 1) // 4)) as pool:
        for sweep, rows in zip(sweeps, pool.map(partial(_swept, setting), sweeps), strict=True):
            for method in sweep.methods:
                yield from _of(method, sweep.model, *(found.get(method) for found in rows))


def _sweeps(setting: Setting, stories: Path) -> Iterator[Sweep]:
    """Yield the sweeps that together have every method."""
    usual = ("model=stories260k",)
    if setting.dry:
        yield Sweep(
            "stories260k", ("rtn", "sinq"), (*usual, GROUPS, "~evaluation.latency", "~evaluation.memory")
        )
        return
    methods = sorted(file.stem for file in (conf_dir() / "method").glob("*.yaml"))
    names = [name for name in methods if name not in (*UNUSUAL, *LEFT_OUT)]
    for name, options in UNUSUAL.items():
        yield Sweep("stories260k", (name,), (*usual, *options))
    model = ("model=hub", f"model.path={_larger(setting, stories)}", "evaluation=quality")
    yield Sweep("qwen3", LARGER, (*model, GROUPS, "~evaluation.layer_error"))
    for part in range(3):
        yield Sweep("stories260k", tuple(names[part::3]), (*usual, GROUPS))


def _larger(setting: Setting, stories: Path) -> Path:
    """Write a random model with the tokenizer of stories260k; return the folder."""
    folder = setting.out / "random"
    qwen3(setting, QWEN3_0_6B, layers=2, vocab_size=512).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(stories / name, folder / name)
    return folder


def _swept(setting: Setting, sweep: Sweep) -> list[dict[str, dict[str, Any]]]:
    """Run a sweep on the CPU and on the device at once; return the rows of each by method."""
    label = f"{sweep.model}-{sweep.methods[0]}"
    sides = {f"{label}-cpu": ("cpu", "reference"), f"{label}-device": (str(setting.device), "auto")}
    with ThreadPoolExecutor() as pool:
        runs = [pool.submit(_run, setting.out / name, sweep, *side) for name, side in sides.items()]
    return [_by_method(run.result()) for run in runs]


def _run(folder: Path, sweep: Sweep, device: str, kernel: str) -> Path:
    """Run a sweep in a process of its own; return the folder of its rows and its log."""
    command = [sys.executable, "-c", "from experiments.command import main; main()", "-m", *COMMON]
    options = [f"method={','.join(sweep.methods)}", f"device={device}", f"kernel={kernel}"]
    command += [*sweep.options, *options, f"results_dir={folder}"]
    environment = os.environ | {"OMP_NUM_THREADS": "2"}
    folder.mkdir(parents=True)
    with (folder / "log.txt").open("wb") as log:
        subprocess.run(command, stdout=log, stderr=log, env=environment, check=False)
    return folder


def _by_method(folder: Path) -> dict[str, dict[str, Any]]:
    return {row["choices"]["method"]: row for row in record.read(folder)[0]}


def _of(
    method: str, model: str, expected: dict[str, Any] | None, found: dict[str, Any] | None
) -> Iterator[Check]:
    """Yield the comparison of a row with the CPU's."""
    name = f"{method}, {model}"
    for device, row in (("CPU", expected), ("device", found)):
        if row is None or row["status"] != record.FINISHED:
            reason = "there is no row" if row is None else str(row.get("reason"))[:300]
            yield Check(STEP, name, None, passed=False, note=f"on the {device}: {reason}")
            return
    assert expected is not None
    assert found is not None
    kernel = str(get_path(found, "metrics.latency.kernel") or "")
    most = NEAR_TIES.get(method, PERPLEXITY)
    for metric, limit in (("perplexity.value", most), ("compression.relative_error_mean", ERROR)):
        one, other = (get_path(row, f"metrics.{metric}") for row in (expected, found))
        if one:
            difference = abs(other / one - 1)
            yield at_most(STEP, f"{metric} beside the CPU's: {name}", difference, limit, note=kernel)
