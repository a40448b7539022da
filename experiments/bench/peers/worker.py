"""A process that quantizes with another package and times itself.

It is started by `manager.py`, and imports nothing of this project, because one of the packages is named
`sinq` too.

    python -P worker.py <peer> <threads> [<folder>]

One JSON object per line in each direction; any answer may be {"error": "…"} instead:

    → (start)                                                  ← {"version": "0.2.8"}
    → {"file": "weights.pt", "bits": 4, "group_size": 64}      ← {}
    → {}                                                       ← {"seconds": 0.25}, all matrices once

The folder is put on the import path only after Python has started: `sinq` has a `sitecustomize.py` that
patches other packages in every interpreter that finds it.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

Quantize = Callable[[Tensor, int, int], object]


def hqq() -> Quantize:
    """Return HQQ as its package runs it by default: groups along rows, float32, packed codes."""
    quantizer = import_module("hqq.core.quantize").Quantizer

    def quantize(weight: Tensor, bits: int, group_size: int) -> object:
        whole = bits == 4  # as its `BaseQuantizeConfig` has it; the function's own default is False
        options = {
            "axis": 1,
            "device": str(weight.device),
            "compute_dtype": torch.float32,
            "round_zero": whole,
        }
        return quantizer.quantize(weight, nbits=bits, group_size=group_size, **options)

    return quantize


def sinq() -> Quantize:
    """Return official SINQ with 1-D tiling: scales and codes.

    The codes stay float32 and unpacked, which is less work than our methods do.
    """
    tiled = import_module("sinq.dual_shift").tiled_quant_rectangle
    return lambda weight, bits, group_size: tiled(weight, [0, 2**bits - 1], group_size, method="sinq")


def asinq() -> Quantize:
    """Return official A-SINQ on random inputs.

    It tries 20 scales, each with SINQ's whole iteration, then runs SINQ at the best.
    """
    search = import_module("sinq.awq").compute_awq_scale
    tiled = import_module("sinq.dual_shift").tiled_quant_rectangle

    def quantize(weight: Tensor, bits: int, group_size: int) -> object:
        levels, name = [0, 2**bits - 1], "sinq_awq_l1_quantAux"
        scale = search(
            weight, _inputs(weight)[None], levels, tile=group_size, method=name, use_weightscale=False
        )
        return tiled(weight, levels, group_size, method=name, awq_scale=scale)

    return quantize


def autoawq() -> Quantize:
    """Return AutoAWQ on random inputs: its search for scales and for clipping, and the rounding.

    It runs for a single layer, as AutoAWQ does for `o_proj`. The package's `__init__` imports every model
    family of an older transformers, so its modules are imported by folder, without it.
    """
    package = ModuleType("awq")
    package.__path__ = [str(Path(folder, "awq")) for folder in sys.path]
    sys.modules["awq"] = package
    quantizer = import_module("awq.quantize.quantizer").AwqQuantizer

    def quantize(weight: Tensor, bits: int, group_size: int) -> object:
        work, inputs = object.__new__(quantizer), _inputs(weight)
        work.w_bit, work.group_size, work.zero_point, work.duo_scaling = bits, group_size, True, True
        work.max_chunk_memory, work.n_parallel_calib_samples = 1024**3, None
        layer = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False, device=weight.device)
        layer.weight.data = weight.clone()
        names = torch.nn.ModuleDict({"o_proj": layer})
        *_, scale = work._search_best_scale(names, layer, [layer], inputs[None])
        scaled = weight * scale.to(weight.device)
        limit = work._compute_best_clip(scaled, inputs / scale.to(weight.device))
        clipped = scaled.view(*limit.shape[:2], -1).clamp(-limit, limit).view_as(scaled)
        return work.pseudo_quantize_tensor(clipped)

    return quantize


def _inputs(weight: Tensor) -> Tensor:
    return torch.randn(TOKENS, weight.shape[1], generator=torch.Generator().manual_seed(1)).to(weight.device)


TOKENS = 512
"""Number of inputs of calibrated methods, as in `suites/quantize.py`."""
PEERS: dict[str, tuple[str, Callable[[], Quantize]]] = {
    "hqq": ("hqq", hqq),
    "sinq": ("sinq", sinq),
    "asinq": ("sinq", asinq),
    "autoawq": ("autoawq", autoawq),
}
"""Peer → its distribution, and the function that loads it."""


def serve(peer: str, answer: Callable[[dict[str, Any]], None]) -> None:
    """Answer requests until the input ends."""
    distribution, load = PEERS[peer]
    quantize = load()
    answer({"version": version(distribution)})
    weights: list[Tensor] = []
    grid: dict[str, Any] = {}
    for line in sys.stdin:
        request = json.loads(line)
        if request:
            grid, weights = request, torch.load(request["file"], weights_only=True)
            answer({})
        else:
            answer({"seconds": _seconds(quantize, weights, grid["bits"], grid["group_size"])})


@torch.no_grad()
def _seconds(quantize: Quantize, weights: list[Tensor], bits: int, group_size: int) -> float:
    start = time.perf_counter()
    for weight in weights:
        quantize(weight, bits, group_size)
    if weights[0].is_cuda:
        torch.cuda.synchronize(weights[0].device)
    return time.perf_counter() - start


def main() -> None:
    """Serve the peer of the command line; output of the package goes to standard error."""
    peer, threads, *folder = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    os.environ["SINQ_AUTO_PATCH"] = "0"
    sys.path[:0] = folder
    torch.set_num_threads(int(threads))

    def answer(content: dict[str, Any]) -> None:
        print(json.dumps(content), file=answers, flush=True)

    try:
        serve(peer, answer)
    except Exception as error:  # noqa: BLE001 - the manager handles any error of a package
        answer({"error": f"{type(error).__name__}: {error}"})


if __name__ == "__main__":
    main()
