"""The step `kernels`: the Triton kernels against their definitions, on random inputs that no test has.

The definitions run on the CPU: products in float64, quantizing in plain torch. The sums behind SINQ's scales
are taken in another order on a GPU, so a few codes differ by one; their share is what is checked.
"""

import random
import time
from collections.abc import Iterator
from functools import partial
from itertools import product as combinations

import torch
from torch import Tensor

from experiments.bench.gpu.check import Check, Setting, at_most, attempted
from sinq import SINQ, Grid, Kernel, QuantizedTensor, kernel_of, product, using
from sinq.formats.activations import ActivationFormat
from sinq.formats.rotation import Rotation
from sinq.kernels.integer import integer_product
from sinq.kernels.quantize import sinkhorn_scales
from sinq.kernels.rotation import rotated_rows

STEP = "kernels"
BITS = (4, 2, 3, 8, 5, 6)
ROTATED = (576, 1536, 4096, 14336)
"""Lengths of rows that are rotated: with and without one of Paley's factors."""
SHAPES = ((512, 1024), (1000, 2560), (2048, 1536))
INPUTS = ((1, torch.bfloat16), (5, torch.float16), (16, torch.bfloat16), (40, torch.float32))
"""Rows and dtype of x: one row, few rows, a tile of rows, and more than a kernel takes at once."""
TOLERANCE = {torch.bfloat16: 1e-2, torch.float16: 2e-3, torch.float32: 1e-4}


def checks(setting: Setting) -> Iterator[Check]:
    """Yield the checks of every combination of bits, groups, shapes and dtypes of scales."""
    yield from _of_inputs(setting)
    end, all_of_them = time.monotonic() + 0.8 * setting.seconds, _combinations(setting)
    for number, (shape, grid) in enumerate(all_of_them):
        if time.monotonic() > end:
            left = len(all_of_them) - number
            yield Check(STEP, f"{left} more combinations", None, skipped="the time was used up")
            return
        name = (
            f"{grid.bits} bits, g{grid.group_size}, {shape[0]}×{shape[1]}, {grid.auxiliary_bits}-bit scales"
        )
        yield from attempted(STEP, name, partial(_of, setting, shape, grid, name))


def _of_inputs(setting: Setting) -> Iterator[Check]:
    """Yield the checks of kernels on inputs: rotations, and products in integers."""
    for size in ROTATED[:1] if setting.dry else ROTATED:
        yield from attempted(STEP, f"rotation of {size}", partial(_rotation, setting, size))
    bits = BITS[:1] if setting.dry else BITS
    for count, tokens, group in combinations(bits, (1, 40), (0, 64)):
        name = f"{tokens} rows of bytes, scales per {group or 'token'}, with {count} bits"
        yield from attempted(STEP, name, partial(_integers, setting, count, tokens, group, name))


def _rotation(setting: Setting, size: int) -> Check:
    generator = torch.Generator().manual_seed(size)
    x = torch.randn(7, size, generator=generator)
    with using(Kernel.triton):
        found = rotated_rows(x.to(setting.device), Rotation.random(size, 0, setting.device))
    return at_most(
        STEP, f"rotation of {size}", relative_error(found, Rotation.random(size, 0).apply(x)), 1e-5
    )


def _integers(setting: Setting, bits: int, tokens: int, group: int, name: str) -> Check:
    generator, shape = torch.Generator().manual_seed(bits), (96, 256) if setting.dry else SHAPES[1]
    value = QuantizedTensor.round(torch.randn(shape, generator=generator), Grid(bits=bits, group_size=64))
    format = ActivationFormat(8, group_size=group)
    x = torch.randn(tokens, shape[1], generator=generator).to(setting.device)
    q = format.quantize(x, *format.scales(*format.extremes(x)))
    exact = q.dequantize(torch.float64).cpu() @ value.dequantize(torch.float64).T
    with using(Kernel.triton):
        y = integer_product(value.to(setting.device), q)
    return at_most(STEP, name, relative_error(y, exact), 1e-5)


def _combinations(setting: Setting) -> list[tuple[tuple[int, int], Grid]]:
    """Return shapes and grids in random order, so that a part of them is a sample of all."""
    if setting.dry:
        return [((24, 128), Grid(bits=bits, group_size=64)) for bits in (4, 3)]
    combined = combinations(SHAPES, BITS, (64, 128, 32), (16, 8, 32))
    every = [(shape, Grid(bits, size, auxiliary_bits=auxiliary)) for shape, bits, size, auxiliary in combined]
    random.Random(0).shuffle(every)
    return every


def _of(setting: Setting, shape: tuple[int, int], grid: Grid, name: str) -> list[Check]:
    generator = torch.Generator().manual_seed(grid.bits + 10 * grid.group_size + shape[0])
    weight = torch.randn(shape, generator=generator) * torch.rand(shape[1], generator=generator).add(0.2)
    with using(Kernel.triton):
        value = SINQ(grid).quantize(weight.to(setting.device))
    stored = on_cpu(value)
    found = [_scales(weight, grid, setting, name), _codes(weight, stored, name)]
    exact = stored.dequantize().double()
    for rows, dtype in INPUTS:
        x = torch.randn(rows, shape[1], generator=generator).to(dtype)
        found.append(_product(value, x, x.double() @ exact.T, setting, name))
    return found


def on_cpu(value: QuantizedTensor) -> QuantizedTensor:
    """Return a value with its tensors on the CPU."""
    tensors = {name: tensor.cpu() for name, tensor in value.state_dict().items()}
    return QuantizedTensor.from_state(value.config(), tensors)


def _scales(weight: Tensor, grid: Grid, setting: Setting, name: str) -> Check:
    tile = grid.tile((weight.shape[0], weight.shape[1]))
    with using(Kernel.triton):
        found = sinkhorn_scales(weight.to(setting.device), tile)
    expected = sinkhorn_scales.definition(weight, tile)
    worst = max(relative_error(one, other) for one, other in zip(found, expected, strict=True))
    return at_most(STEP, f"row and column scales: {name}", worst, 1e-3)


def _codes(weight: Tensor, stored: QuantizedTensor, name: str) -> Check:
    with using(Kernel.reference):
        expected = SINQ(stored.grid).quantize(weight)
    differing = (stored.codes() != expected.codes()).double().mean().item()
    return at_most(STEP, f"share of codes that differ: {name}", differing, 2e-3)


def _product(value: QuantizedTensor, x: Tensor, expected: Tensor, setting: Setting, name: str) -> Check:
    with using(Kernel.triton), torch.no_grad():
        kernel = kernel_of(value, setting.device).kernel
        y = product(value, x.to(setting.device))
    error = relative_error(y, expected)
    return at_most(
        STEP, f"{len(x)} rows of {str(x.dtype)[6:]}: {name}", error, TOLERANCE[x.dtype], note=kernel
    )


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Return ‖found − expected‖ / ‖expected‖ of tensors on any devices, computed in float64 on the CPU."""
    exact = expected.cpu().double()
    return ((found.cpu().double() - exact).norm() / exact.norm()).item()
