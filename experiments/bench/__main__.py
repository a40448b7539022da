"""`make bench`: time our code and other packages alternately.

    python -m experiments.bench                                                  every suite, several minutes
    python -m experiments.bench --suite linear --bits 4,3 --threads 2
    python -m experiments.bench --suite quantize --peers hqq=peers/hqq,sinq=peers/sinq

Results are JSON, Markdown and a picture in `<results>/bench/<time>`, and tables on the terminal.
`peers/manager.py` says how to install the other packages.

Each case is built, measured and freed before the next, so only one case's weights are in memory. On CUDA the
suites are the same with larger shapes.
"""

import itertools
import json
from collections.abc import Iterator
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from experiments.bench import case, listing, models, options
from experiments.bench.peers import manager
from experiments.bench.suites import bitplanes, decode, engines, integer, linear, quantize, rotation
from experiments.common.console import console, set_up
from experiments.common.errors import run_cli
from experiments.common.files import atomic_write
from experiments.runs.provenance import provenance
from sinq import Grid

QUANTIZE_BITS, INTEGER_BITS, PLANES_BITS, PRODUCT_BITS = (4,), (8, 4), (2, 3, 4, 5, 6, 8), (4, 3, 2, 8)
"""Default bits of `engines` and suites that quantize or rotate; of `integer`, `bitplanes`; of the others."""


def main(words: list[str] | None = None) -> Path:
    """Measure, show and write the cases; return the folder written to."""
    chosen = options.parse(words)
    set_up()
    torch.set_num_threads(chosen.threads)
    report = {"options": json.loads(json.dumps(asdict(chosen), default=str)), "cases": measured(chosen)}
    report["provenance"] = provenance(torch.device(chosen.device))
    folder = chosen.results / "bench" / datetime.now().strftime("%Y-%m-%d_%H-%M-%S-%f")
    write(report, folder)
    console.print(f"written to {folder}", soft_wrap=True)
    return folder


def measured(chosen: options.Options) -> list[dict[str, Any]]:
    """Return the results of all cases; each is shown as soon as it is measured."""
    device, results = torch.device(chosen.device), []
    with manager.started(dict(chosen.peers), chosen.threads) as running:
        for each in cases(chosen, running, device):
            results.append(case.run(each, chosen.rounds, device, chosen.copied * options.MEGABYTE))
            listing.show(results[-1], console)
    return results


def cases(chosen: options.Options, running: manager.Peers, device: torch.device) -> Iterator[case.Case]:
    """Yield the cases of the chosen suites, in order."""
    for suite in chosen.suites:
        if suite == "quantize":
            yield from _matrix_cases(chosen, running, device)
        elif suite == "decode":
            model = models.find(chosen.model, device)
            yield from decode.cases(model, chosen.bits or PRODUCT_BITS, chosen.group_size, device)
        elif suite == "engines":
            model = models.find(chosen.model, device)
            bits = chosen.bits or QUANTIZE_BITS
            yield from engines.cases(model, bits, chosen.group_size, chosen.threads, device)
        elif suite == "quantize-model":
            model = models.find(chosen.model, device)
            yield from (quantize.model_case(model, grid, running, device) for grid in _grids(chosen))
        else:
            yield from _product_cases(suite, chosen, device)


def _grids(chosen: options.Options) -> list[Grid]:
    return [Grid(bits=bits, group_size=chosen.group_size) for bits in chosen.bits or QUANTIZE_BITS]


def _matrix_cases(
    chosen: options.Options, running: manager.Peers, device: torch.device
) -> Iterator[case.Case]:
    on_cuda = device.type == "cuda"
    for shape in chosen.shapes or (quantize.CUDA_SHAPES if on_cuda else quantize.CPU_SHAPES):
        yield from (quantize.matrix_case(shape, grid, running, device) for grid in _grids(chosen))


def _product_cases(suite: str, chosen: options.Options, device: torch.device) -> Iterator[case.Case]:
    """Yield the cases of a suite of single layers with some rows of x."""
    suites: dict[str, Any] = {
        "linear": linear, "integer": integer, "bitplanes": bitplanes, "rotation": rotation
    }  # fmt: skip
    shapes = chosen.shapes or (
        suites[suite].CUDA_SHAPES if device.type == "cuda" else suites[suite].CPU_SHAPES
    )
    for shape, batch in itertools.product(shapes, chosen.batch):
        if suite == "linear":
            yield linear.case(shape, chosen.bits or PRODUCT_BITS, chosen.group_size, batch, device)
        elif suite == "integer":
            yield integer.case(shape, chosen.bits or INTEGER_BITS, chosen.group_size, batch, device)
        elif suite == "bitplanes":
            yield from bitplanes.cases(shape, chosen.bits or PLANES_BITS, chosen.group_size, batch, device)
        else:
            yield from (rotation.case(shape, grid, batch, device) for grid in _grids(chosen))


def write(report: dict[str, Any], folder: Path) -> None:
    """Write the report as JSON, Markdown and a picture."""
    from experiments.bench import plot  # altair is an extra; `run_cli` says how to install it

    folder.mkdir(parents=True)
    with atomic_write(folder / "bench.md") as file:
        file.write(listing.markdown(report).encode())
    with atomic_write(folder / "bench.json") as file:
        file.write(json.dumps(report, indent=1, ensure_ascii=False).encode())
    with atomic_write(folder / "bench.png") as file:
        plot.draw(report["cases"], file)


if __name__ == "__main__":
    run_cli(main)
