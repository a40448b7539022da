"""The command line of the bench. Options are checked before anything is measured."""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from experiments.bench.models import AUTO
from experiments.bench.peers.worker import PEERS
from experiments.bench.suites.quantize import Shape
from sinq.formats.grid import BITS

T = TypeVar("T")
SUITES = ("quantize", "quantize-model", "linear", "integer", "bitplanes", "rotation", "decode", "engines")
MEGABYTE = 2**20
HELP = """Time our code and other packages alternately in one process; what counts are ratios.

    python -m experiments.bench                                          every suite, several minutes
    python -m experiments.bench --suite linear --bits 4,3 --threads 2
"""


@dataclass(frozen=True)
class Options:
    """Options of the bench."""

    suites: tuple[str, ...] = SUITES
    shapes: tuple[Shape, ...] | None = None
    """Shapes (out, in) for suites of single layers; None: each suite's defaults."""
    bits: tuple[int, ...] | None = None
    """Bits; None: 4 for quantizing and rotation, 8 and 4 for `integer`, and 4, 3, 2, 8 for the
    others."""
    group_size: int = 64
    batch: tuple[int, ...] = (1,)
    """Rows of x in `linear`, `integer`, `bitplanes` and `rotation`."""
    model: str = AUTO
    threads: int = 1
    rounds: int = 5
    device: str = "cpu"
    peers: tuple[tuple[str, Path], ...] = ()
    results: Path = Path("results")
    copied: int = 256
    """Megabytes that the floor's copy reads."""


def parse(words: Sequence[str] | None = None) -> Options:
    """Return options from a command line; an error is one line, and exit status 2."""
    how = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="python -m experiments.bench", description=HELP, formatter_class=how
    )
    default = Options()
    add = parser.add_argument
    add(
        "--suite",
        dest="suites",
        type=_each(_suite),
        default=default.suites,
        help=f"comma-separated: {', '.join(SUITES)}",
    )
    add("--shapes", type=_each(_shape), help="for single layers, out×in: 4096x4096,11008x4096")
    add(
        "--bits",
        type=_each(_bits),
        help=f"of {', '.join(map(str, BITS))}; default 4 for quantizing, 8,4 for integer, all for bitplanes,"
        " 4,3,2,8 else",
    )
    add("--group-size", type=_count, default=default.group_size)
    add("--batch", type=_each(_count), default=default.batch, help="rows of x in products: 1,16,128")
    add(
        "--model",
        default=default.model,
        help="smollm2, random, a folder, or auto: smollm2 if no download is needed, else random",
    )
    add("--threads", type=_count, default=torch.get_num_threads(), help="of torch, Numba and every peer")
    add("--rounds", type=_count, default=default.rounds, help="that count; one more warms up")
    add("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    add(
        "--peers",
        type=_each(_peer),
        default=default.peers,
        help="folders of their packages: hqq=peers/hqq,sinq=peers/sinq; others in peers/manager.py",
    )
    add(
        "--results",
        metavar="FOLDER",
        type=Path,
        default=default.results,
        help="a new folder <results>/bench/<time> is written",
    )
    add(
        "--copied",
        type=_count,
        default=default.copied,
        help="megabytes that the floor's copy reads; more than the caches hold",
    )
    return Options(**vars(parser.parse_args(words)))


def _each(read: Callable[[str], T]) -> Callable[[str], tuple[T, ...]]:
    def reader(text: str) -> tuple[T, ...]:
        return tuple(read(part.strip()) for part in text.split(","))

    return reader


def _suite(text: str) -> str:
    return _among(text, text, SUITES)


def _bits(text: str) -> int:
    return _among(text, _count(text), BITS)


def _among(text: str, value: T, accepted: Sequence[Any]) -> T:
    if value not in accepted:
        raise argparse.ArgumentTypeError(
            f"{text} is not possible; choose from {', '.join(map(str, accepted))}"
        )
    return value


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not possible; it must be a whole number ≥ 1")
    return int(text)


def _shape(text: str) -> Shape:
    rows, sign, columns = text.replace("×", "x").partition("x")
    if not sign:
        raise argparse.ArgumentTypeError(f"{text!r} is no shape; write out×in, as in 4096x11008")
    return _count(rows), _count(columns)


def _peer(text: str) -> tuple[str, Path]:
    name, sign, folder = text.partition("=")
    if not sign or name not in PEERS:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not possible; write peer=folder, with a peer of {', '.join(PEERS)}"
        )
    if not Path(folder).is_dir():
        raise argparse.ArgumentTypeError(f"folder {folder!r} for {name} does not exist")
    return name, Path(folder)
