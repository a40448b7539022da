"""A process that quantizes with somebody else's package and times itself. Started by `peers.py`, and standing alone: it imports nothing of
this project, because one of the packages is called `sinq` too.

    python -P peer_worker.py <package> <threads> [<folder>]

One JSON object per line in each direction:

    → (start)                                                  ← {"version": "0.2.8"} or {"error": "…"}
    → {"file": "weights.pt", "bits": 4, "group_size": 64}      ← {} or {"error": "…"}
    → {}                                                       ← {"seconds": 0.25} or {"error": "…"}     all matrices of the file, once

The folder is put on the import path by hand, after Python has started: `sinq` brings a `sitecustomize.py` that patches other packages of
every interpreter that finds it.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

Quantize = Callable[[Tensor, int, int], object]


def hqq() -> Quantize:
    """HQQ as its package runs it for itself: groups along rows, float32, codes packed."""
    quantizer = import_module("hqq.core.quantize").Quantizer

    def quantize(weight: Tensor, bits: int, group_size: int) -> object:
        options = {"axis": 1, "device": str(weight.device), "compute_dtype": torch.float32}
        return quantizer.quantize(weight, nbits=bits, group_size=group_size, **options)

    return quantize


def sinq() -> Quantize:
    """Official SINQ, 1-D tiling: scales and codes. The codes stay float32 and unpacked, which is less work than ours do."""
    tiled = import_module("sinq.dual_shift").tiled_quant_rectangle
    return lambda weight, bits, group_size: tiled(weight, [0, 2**bits - 1], group_size, method="sinq")


PACKAGES: dict[str, Callable[[], Quantize]] = {"hqq": hqq, "sinq": sinq}


def serve(package: str, answer: Callable[[dict[str, Any]], None]) -> None:
    """Answer requests until there are no more."""
    quantize = PACKAGES[package]()
    answer({"version": version(package)})
    weights: list[Tensor] = []
    asked: dict[str, Any] = {}
    for line in sys.stdin:
        request = json.loads(line)
        if request:
            asked, weights = request, torch.load(request["file"], weights_only=True)
            answer({})
        else:
            answer({"seconds": _seconds(quantize, weights, asked["bits"], asked["group_size"])})


@torch.no_grad()
def _seconds(quantize: Quantize, weights: list[Tensor], bits: int, group_size: int) -> float:
    start = time.perf_counter()
    for weight in weights:
        quantize(weight, bits, group_size)
    if weights[0].is_cuda:
        torch.cuda.synchronize(weights[0].device)
    return time.perf_counter() - start


def main() -> None:
    """Read the command line, and serve; what the package prints goes to standard error."""
    package, threads, *folder = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    os.environ["SINQ_AUTO_PATCH"] = "0"
    sys.path[:0] = folder
    torch.set_num_threads(int(threads))

    def answer(content: dict[str, Any]) -> None:
        print(json.dumps(content), file=answers, flush=True)

    try:
        serve(package, answer)
    except Exception as error:  # noqa: BLE001 - whatever another package raises is told to the one who asked, who decides
        answer({"error": f"{type(error).__name__}: {error}"})


if __name__ == "__main__":
    main()
