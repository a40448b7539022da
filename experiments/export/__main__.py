"""A compressed model, written in another project's format.

    python -m experiments.export run=3f2a format=compressed_tensors out=exported/model
    python -m experiments.export run=method=sinq,bits=4 format=torchao dtype=bfloat16 out=exported/model
    python -m experiments.export run=results/checkpoints/3f2a55c0 format=mlx out=exported/model
    python -m experiments.export run=3f2a format=gguf low_bits=true out=exported/model

`run` is a run's id, the beginning of one, a name or a query, whose model is made again; or a folder that
`sinq.save` or `stream=true` wrote. Column scales are folded into the layers before where that is exact; what
a format cannot hold is refused, with what would help, before anything is written. `requantize=true` rounds
such matrices a second time, which is another model: both errors are on its card. Options of a format
(`low_bits` of gguf) are those of its class.
"""

import argparse
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

import sinq
from experiments.common.console import bar, console, set_up
from experiments.common.errors import run_cli
from experiments.compare.query import select
from experiments.export.again import compress_again, facts, run_of, streamed
from experiments.results import record
from sinq.common.named import named, names
from sinq.export.report import ExportReport

OPTIONS = ("run", "format", "out", "dtype", "requantize")
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


def main() -> None:
    """Export a model and print a line about it.

    Raises:
        ValueError: an option is missing, unknown or has a value that is not possible; or the format cannot
            hold the model.
    """
    options = _parse()
    set_up()
    report = _export(options["run"], options, options["results"])
    show(report, options["out"])


def _export(words: str, options: dict[str, Any], results: Path) -> ExportReport:
    """Export the model that `words` name; in its checkpoint's dtype, unless another is given."""
    common: dict[str, Any] = {"dtype": options["dtype"], "progress": bar}
    if Path(words).is_dir():
        if options["requantize"]:
            raise ValueError("requantize=true compares with the dense model; give run=<id>, not a folder")
        return sinq.export(words, options["out"], options["format"], **common)
    rows, _ = record.read(results)
    row, note = select(rows, words)
    if note:
        console.print(note, soft_wrap=True)
    common["about"] = facts(row)
    if (folder := streamed(row, results)) is not None and not options["requantize"]:
        return sinq.export(folder, options["out"], options["format"], **common)
    again = compress_again(run_of(row), bar)
    common["dtype"] = options["dtype"] or again.loaded.stored_dtype
    return sinq.export(
        again.model,
        options["out"],
        options["format"],
        tokenizer=again.loaded.tokenizer,
        requantize=options["requantize"],
        dense=again.loaded.model,
        **common,
    )


def show(report: ExportReport, out: Path) -> None:
    """Print what was written."""
    again = f", {len(report.requantized)} of them rounded a second time" if report.requantized else ""
    console.print(
        f"{out}: {report.format}, {len(report.matrices)} matrices{again}, column scales of"
        f" {len(report.folded)} folded; {report.bits_per_weight:.3f} bits per weight there,"
        f" {report.nbytes / 1e6:.1f} MB, {report.seconds:.1f} s",
        soft_wrap=True,
    )


def _parse() -> dict[str, Any]:
    """Return the options, checked."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.export",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"formats: {', '.join(names(sinq.Exporter))}",
    )
    parser.add_argument("--results", metavar="FOLDER", default="results", type=Path, help="default: results")
    parser.add_argument("options", nargs="*", metavar="option=value", help=", ".join(OPTIONS))
    words = parser.parse_args()
    pairs = [word.partition("=") for word in words.options]
    given = {key: value for key, _, value in pairs}
    if missing := [key for key in OPTIONS[:3] if not given.get(key)]:
        raise ValueError(f"{missing[0]} is missing; write {missing[0]}=…, see --help")
    exporter = named(sinq.Exporter, given["format"])  # type: ignore[type-abstract]
    options = [field.name for field in fields(exporter)]
    if unknown := [key for key in given if key not in (*OPTIONS, *options)]:
        accepted = ", ".join((*OPTIONS, *options))
        raise ValueError(f"there is no option {unknown[0]} of {given['format']}; there are: {accepted}")
    dtype = given.get("dtype")
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"dtype={dtype} is not possible; it must be one of {', '.join(DTYPES)}")
    return {
        "run": given["run"],
        "format": exporter(**{name: _flag(name, given[name]) for name in options if name in given}),
        "out": Path(given["out"]),
        "dtype": None if dtype is None else DTYPES[dtype],
        "requantize": _flag("requantize", given.get("requantize", "false")),
        "results": words.results,
    }


def _flag(name: str, word: str) -> bool:
    if word not in ("true", "false"):
        raise ValueError(f"{name}={word} is not possible; it must be true or false")
    return word == "true"


if __name__ == "__main__":
    run_cli(main)
