"""The suite `bitplanes`: x Wᵀ with rounded inputs, bit plane by bit plane, compared with bytes and with bf16.

For each number of bits of weights, p, inputs have 8 bits, and p where that is fewer. Each contender has a
stack of layers, as in `linear.py`, and times are per layer; x is there as codes already.

    fp32, bf16      torch's product with dense weights (the baseline is bf16)
    W4 bytes        our product of integers (`integer.py`), whose cost does not depend on the inputs' bits
    W4A8 planes     bit planes; "× peer" is the time over that of the bytes

"bit operations" are p · q · tokens · out · in, products of one bit by one bit: the work that times of planes
should grow with. Weights are rounded to nearest, in groups and in whole rows, as ABQ-LLM's are. The first
call takes the weights apart; others find them so.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from baselines.rtn import RTN
from experiments.bench.case import Case
from experiments.bench.suites.linear import contender, dense_layers
from experiments.bench.suites.quantize import Shape, random_weight
from experiments.bench.timing import Implementation
from sinq import ActivationFormat, Grid, QuantizedTensor
from sinq.kernels.integer import Products, integer_kernel_of, integer_product

CPU_SHAPES: tuple[Shape, ...] = ((576, 576), (1536, 576), (4096, 4096))
CUDA_SHAPES: tuple[Shape, ...] = CPU_SHAPES
INPUT_BITS = 8


def cases(
    shape: Shape, bits: tuple[int, ...], group_size: int, tokens: int, device: torch.device
) -> Iterator[Case]:
    """Yield the cases of a shape (out, in) for x (tokens, in), with weights in groups and in whole rows.

    Raises:
        ValueError: the group size does not divide the shape.
    """
    weight = random_weight(shape, device)
    x = torch.randn(tokens, shape[1], generator=torch.Generator().manual_seed(1)).to(device)
    for size in dict.fromkeys((group_size, shape[1])):
        contenders = [
            dense_layers("fp32", weight, x),
            dense_layers("bf16", weight.bfloat16(), x.bfloat16()),
        ]
        for count in bits:
            contenders += _ours(weight, Grid(bits=count, group_size=size), x)
        name = f"{shape[0]}×{shape[1]}, {tokens} tokens, groups of {size}"
        yield Case("bitplanes", name, contenders, "bf16")


def _ours(weight: Tensor, grid: Grid, x: Tensor) -> Iterator[Implementation]:
    value = RTN(grid).quantize(weight)

    def layer(inputs: ActivationFormat, products: Products) -> Callable[[], object]:
        tensors = {name: tensor.clone() for name, tensor in value.state_dict().items()}
        codes = inputs.quantize(x, *inputs.scales(*inputs.extremes(x)))
        copied = QuantizedTensor.from_state(value.config(), tensors)
        return partial(integer_product, copied, codes, products=products)

    def made(name: str, inputs: ActivationFormat, products: Products, peer: str | None) -> Implementation:
        kernel = integer_kernel_of(value, 0, x.device, products).kernel
        work = partial(layer, inputs, products)
        return contender(name, work, value.nbytes, weight, x, kernel=kernel, peer=peer)

    bytes_name = f"W{grid.bits} bytes"
    yield made(bytes_name, ActivationFormat(INPUT_BITS), Products.integer, None)
    for count in dict.fromkeys((grid.bits, INPUT_BITS)):
        planes = made(f"W{grid.bits}A{count} planes", ActivationFormat(count), Products.bitplanes, bytes_name)
        yield replace(planes, bit_operations=grid.bits * count * x.numel() * weight.shape[0])
