"""The suite `rotation`: a layer whose inputs are rotated at run time, against the same layer without.

    product             `CompressedLinear` around round-to-nearest, the baseline
    rotated layer       the same, with its inputs rotated: all that QuaRot adds to down and to o
    rotation            rotation of x alone, by the kernel of the device
    rotation (torch)    the same by the definition

x is float32 on a processor, bfloat16 on CUDA.

As in `linear`, layers are in stacks that are larger than a cache, and times are per layer. A rotation costs
n·(k + m) additions for each row of x with n = m·2^k numbers, a layer n·out products: the fewer outputs, the
more it counts.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from baselines.rtn import RTN
from experiments.bench.case import Case
from experiments.bench.suites.linear import contender
from experiments.bench.suites.quantize import Shape, random_weight
from experiments.bench.timing import Implementation
from sinq import CompressedLinear, CompressedWeight, Grid, Rotated, Rotation
from sinq.kernels import chosen
from sinq.kernels.rotation import rotated, rotated_rows

CPU_SHAPES: tuple[Shape, ...] = ((576, 576), (576, 1536), (4096, 11008), (4096, 14336))
"""Shapes of o and down in SmolLM2-135M, and of down in Llama-2-7B and Llama-3-8B."""
CUDA_SHAPES: tuple[Shape, ...] = CPU_SHAPES[2:]
BASELINE = "product"


def case(shape: Shape, grid: Grid, batch: int, device: torch.device) -> Case:
    """Return the case of a shape (out, in), for x (batch, in).

    Raises:
        NotApplicable: no Hadamard matrix of the number of inputs is known.
        ValueError: the group size does not divide the shape.
    """
    weight, rotation = random_weight(shape, device), Rotation.random(shape[1], 0, device)
    value = RTN(grid).quantize(weight)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    x = torch.randn(batch, shape[1], generator=torch.Generator().manual_seed(1)).to(device, dtype)
    contenders = [
        _layer(BASELINE, value, weight, x),
        _layer("rotated layer", Rotated(rotation, value), weight, x),
        _rotation("rotation", rotated, chosen(device).value, rotation, weight, x),
        _rotation("rotation (torch)", rotated_rows.definition, "torch", rotation, weight, x),
    ]
    name = f"{shape[0]}×{shape[1]}, batch {batch}, {grid.bits} bits, groups of {grid.group_size}"
    return Case("rotation", name, contenders, BASELINE)


def _layer(name: str, value: CompressedWeight, weight: Tensor, x: Tensor) -> Implementation:
    def layer() -> CompressedLinear:
        tensors = {name: tensor.clone() for name, tensor in value.state_dict().items()}
        return CompressedLinear(value.with_tensors(tensors), None)

    return contender(name, lambda: partial(layer(), x), value.nbytes, weight, x, kernel=layer().kernel)


def _rotation(
    name: str, work: Callable[..., object], kernel: str, rotation: Rotation, weight: Tensor, x: Tensor
) -> Implementation:
    nbytes = rotation.signs.nbytes
    return contender(name, lambda: partial(work, x, rotation), nbytes, weight, x, kernel=kernel)
