"""`make gpu`: check everything on CUDA in ten minutes, without a network.

    python -m experiments.bench.gpu                                  all steps, at most nine minutes
    python -m experiments.bench.gpu --steps kernels,rows --seconds 200
    python -m experiments.bench.gpu --dry                            tiny shapes on the CPU

A step is a file beside this one with a function `checks(setting)`, a generator of `Check`s. Each step runs in
a process of its own with a time budget: an illegal memory access or a hang costs that step only, and what it
had found until then is kept. Checks are written to `<out>/<step>.jsonl` as they are made, and at the end to
`<out>/gpu.json`, with a table of verdicts on the terminal.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import datetime
from importlib import import_module
from pathlib import Path

import torch

from experiments.bench.gpu.check import Check, Setting, listing, verdict
from experiments.common.console import console, set_up
from experiments.common.errors import run_cli
from experiments.common.files import atomic_write
from experiments.runs.provenance import provenance

STEPS = {"kernels": 90.0, "files": 60.0, "rows": 190.0, "quantize": 50.0, "decode": 150.0}
"""Seconds of each step, in the order in which they run: correctness before speed.

They are shares of `--seconds`; what a step leaves goes to those after it.
"""
HELP = """Check on a GPU what cannot be checked without one; no network is needed.

    python -m experiments.bench.gpu                              all steps, at most nine minutes
    python -m experiments.bench.gpu --steps kernels,rows
    python -m experiments.bench.gpu --dry                        tiny shapes on the CPU
"""


def main(words: Sequence[str] | None = None) -> int:
    """Run the steps in turn; return the number of checks that failed."""
    chosen = _parse(words)
    if chosen.only:
        return _one_step(chosen)
    set_up()
    if not chosen.dry and not torch.cuda.is_available():
        raise ValueError(
            "make gpu needs a CUDA device, and torch sees none; --dry runs tiny shapes on the CPU"
        )
    chosen.out.mkdir(parents=True, exist_ok=True)
    end, found = time.monotonic() + chosen.seconds, []
    for number, step in enumerate(chosen.steps):
        console.print(f"{step} …", markup=False)
        share = STEPS[step] / sum(STEPS[each] for each in chosen.steps[number:])
        found += list(_run(step, chosen, share * (end - time.monotonic())))
    _write(found, chosen)
    console.print(listing(found))
    return sum(verdict(check) == "FAILED" for check in found)


def _parse(words: Sequence[str] | None) -> argparse.Namespace:
    how = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="python -m experiments.bench.gpu", description=HELP, formatter_class=how
    )
    default = Path("results") / "gpu" / datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    parser.add_argument(
        "--steps", type=_steps, default=tuple(STEPS), help=f"comma-separated: {', '.join(STEPS)}"
    )
    parser.add_argument(
        "--seconds", type=float, default=540.0, help="time for all steps together; default 540"
    )
    parser.add_argument("--out", type=Path, default=default, help="folder of the results")
    parser.add_argument("--dry", action="store_true", help="tiny shapes on the CPU, to test this script")
    parser.add_argument("--only", choices=STEPS, help=argparse.SUPPRESS)  # the process of one step
    return parser.parse_args(words)


def _steps(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    if unknown := [name for name in names if name not in STEPS]:
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: steps are {', '.join(STEPS)}")
    return names


def _one_step(chosen: argparse.Namespace) -> int:
    """Make the checks of a step in this process, one line of JSON for each."""
    device = torch.device("cpu" if chosen.dry else "cuda")
    setting = Setting(device, chosen.dry, chosen.out, chosen.seconds)
    with (chosen.out / f"{chosen.only}.jsonl").open("w") as file:
        for check in import_module(f"experiments.bench.gpu.{chosen.only}").checks(setting):
            file.write(json.dumps(asdict(check)) + "\n")
            file.flush()
    return 0


def _run(step: str, chosen: argparse.Namespace, budget: float) -> Iterator[Check]:
    """Run a step in a process of its own; yield its checks, and one that fails where the process did."""
    file, log = chosen.out / f"{step}.jsonl", chosen.out / f"{step}.log"
    command = [sys.executable, "-m", "experiments.bench.gpu", "--only", step, "--out", str(chosen.out)]
    command += ["--seconds", str(budget), *["--dry"] * chosen.dry]
    interpreted = {"TRITON_INTERPRET": "1"} if chosen.dry and step == "kernels" else {}
    if budget <= 1:
        yield Check(step, "the step", None, skipped="no time was left for it")
        return
    start = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=output,
            env=os.environ | interpreted,
            start_new_session=True,
        )
        ended = _wait(process, budget)
    lines = file.read_text().splitlines() if file.exists() else []
    yield from (Check(**json.loads(line)) for line in lines)
    if not ended:
        yield Check(step, "the rest of the step", None, skipped=f"its {budget:.0f} s were used up")
    elif process.returncode:
        tail = log.read_text(errors="replace").strip().splitlines()[-1:]
        yield Check(step, "the step", None, passed=False, note=f"exit status {process.returncode}: {tail}")
    yield Check(step, "seconds of the step", time.monotonic() - start, "s")


def _wait(process: "subprocess.Popen[bytes]", budget: float) -> bool:
    """Return whether a process ended within its time; kill it and what it started where it did not."""
    try:
        process.wait(budget)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return False
    return True


def _write(found: list[Check], chosen: argparse.Namespace) -> None:
    device = torch.device("cpu" if chosen.dry else "cuda")
    report = {
        "dry": chosen.dry,
        "provenance": provenance(device),
        "checks": [asdict(check) for check in found],
    }
    with atomic_write(chosen.out / "gpu.json") as file:
        file.write(json.dumps(report, indent=1).encode())


def _failing() -> None:
    if failed := main():
        sys.exit(f"{failed} checks failed")


if __name__ == "__main__":
    run_cli(_failing)
