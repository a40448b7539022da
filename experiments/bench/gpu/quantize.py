"""The step `quantize`: the time to quantize the weights of large models, resident and streamed.

A model's set is the shapes of its linear layers, each as often as the model has it. Matrices are made once
per shape in bfloat16, with values of their own while memory lasts, so that no cache holds them.
"""

from collections.abc import Callable, Iterator
from functools import partial
from statistics import median

import torch
from torch import Tensor

from baselines.rtn import RTN
from experiments.bench.gpu.check import Check, Setting, at_most, attempted
from experiments.bench.timing import clocked
from experiments.common.meters import peak_memory, seconds
from sinq import SINQ, Grid, LayerMethod

STEP = "quantize"
Set = dict[tuple[int, int], int]
QWEN3_14B: Set = {(5120, 5120): 80, (1024, 5120): 80, (17408, 5120): 80, (5120, 17408): 40}
"""40 layers: query and output, key and value, gate and up, down."""
QWEN3_30B_A3B: Set = {
    (4096, 2048): 48,
    (512, 2048): 96,
    (2048, 4096): 48,
    (768, 2048): 12288,
    (2048, 768): 6144,
}
"""48 layers of 128 experts."""
ROUNDS = 3


def checks(setting: Setting) -> Iterator[Check]:
    """Yield times of the sets, as milliseconds and as ratios to RTN."""
    shapes = {(64, 128): 2} if setting.dry else QWEN3_14B
    yield from attempted(STEP, "Qwen3-14B", partial(_resident, setting, "Qwen3-14B's set", shapes, 150.0))
    yield from attempted(STEP, "Qwen3-14B, streamed", partial(_streamed, setting, shapes))
    if not setting.dry:
        sixteenth = {shape: max(1, count // 16) for shape, count in QWEN3_30B_A3B.items()}
        yield from attempted(
            STEP, "30B", partial(_resident, setting, "1/16 of Qwen3-30B-A3B's set", sixteenth)
        )


def _weights(setting: Setting, shapes: Set, device: torch.device) -> list[Tensor]:
    generator = torch.Generator(device).manual_seed(0)
    return [
        torch.randn(shape, generator=generator, device=device, dtype=torch.bfloat16) * 0.02
        for shape, count in shapes.items()
        for _ in range(count)
    ]


def _quantize(method: LayerMethod, weights: list[Tensor]) -> None:
    for weight in weights:
        method.quantize(weight, None)


@torch.no_grad()
def _resident(setting: Setting, name: str, shapes: Set, goal: float | None = None) -> list[Check]:
    weights, device = _weights(setting, shapes, setting.device), setting.device
    methods = {"RTN": RTN(Grid(bits=4, group_size=64)), "SINQ": SINQ(Grid(bits=4, group_size=64))}
    works: dict[str, Callable[[], float]] = {
        key: clocked(partial(_quantize, method, weights), device) for key, method in methods.items()
    }
    for work in works.values():
        work()  # compiles
    times = {key: [work() for _ in range(ROUNDS)] for key, work in works.items()}
    with peak_memory(device) as peak:
        methods["SINQ"].quantize(weights[-1], None)
    ours, rtn = (1000 * median(times[key]) for key in ("SINQ", "RTN"))
    return [
        at_most(STEP, f"SINQ 4 bits, {name}", ours, None if setting.dry else goal, "ms"),
        Check(STEP, f"RTN 4 bits, {name}", rtn, "ms"),
        at_most(STEP, f"SINQ over RTN, {name}", ours / rtn, None if setting.dry else 2.0, "×"),
        Check(
            STEP,
            f"peak while quantizing one matrix, {name}",
            peak.increase_bytes / weights[-1].nbytes,
            "× the matrix",
        ),
    ]


@torch.no_grad()
def _streamed(setting: Setting, shapes: Set) -> Check:
    """Return the time of one layer of the set from pinned memory, over that of copying it to the device."""
    layer = {shape: max(1, count // 40) for shape, count in shapes.items()}
    weights = [
        weight.pin_memory() if not setting.dry else weight
        for weight in _weights(setting, layer, torch.device("cpu"))
    ]
    method, device = SINQ(Grid(bits=4, group_size=64)), setting.device

    def moved() -> None:
        for weight in weights:
            weight.to(device, non_blocking=True)

    def quantized() -> None:
        for weight in weights:
            method.quantize(weight.to(device, non_blocking=True), None)

    pairs = [(seconds(quantized, device), seconds(moved, device)) for _ in range(ROUNDS + 1)][1:]
    ratio = median(one / other for one, other in pairs)
    return Check(STEP, "one layer of Qwen3-14B from pinned memory, over copying it", ratio, "×")
