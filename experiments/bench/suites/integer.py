"""The suite `integer`: x Wᵀ with rounded inputs, as integers and simulated, compared with dense weights.

Shapes are those of SmolLM2's layers, the last one its output head. As in `linear.py`, each contender has a
stack of layers, and times are per layer.

    fp32, bf16           torch's product with dense weights, x of that number format (the baseline is fp32)
    torch int_mm         torch._int_mm of bytes that are there already, one scale per row and token
    W8A8 codes           our product of integers, x as codes already
    W8A8 layer           `CompressedLinear`: inputs are rounded by token, then the same product
    W8A8 simulated       the same layer, which multiplies floats

x and results are float32 but for bf16. Weights are rounded to nearest, in groups; W4A8 … have fewer bits.
"""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from baselines.rtn import RTN
from experiments.bench.case import Case
from experiments.bench.suites.linear import contender, dense_layers
from experiments.bench.suites.quantize import Shape, random_weight
from experiments.bench.timing import Implementation
from sinq import ActivationFormat, CompressedLinear, Grid, QuantizedTensor
from sinq.kernels.integer import Products, integer_kernel_of, integer_product
from sinq.model.activations import ActivationQuantizer

CPU_SHAPES: tuple[Shape, ...] = ((576, 576), (192, 576), (1536, 576), (576, 1536), (49152, 576))
CUDA_SHAPES: tuple[Shape, ...] = CPU_SHAPES
INPUTS = ActivationFormat(8)


def case(shape: Shape, bits: tuple[int, ...], group_size: int, tokens: int, device: torch.device) -> Case:
    """Return the case of a shape (out, in), at every number of bits, for x (tokens, in).

    Raises:
        ValueError: the group size does not divide the shape.
    """
    weight = random_weight(shape, device)
    x = torch.randn(tokens, shape[1], generator=torch.Generator().manual_seed(1)).to(device)
    contenders = [
        dense_layers("fp32", weight, x),
        dense_layers("bf16", weight.bfloat16(), x.bfloat16()),
        _int_mm(weight, x),
    ]
    for count in bits:
        contenders += _ours(weight, Grid(bits=count, group_size=group_size), x)
    name = f"{shape[0]}×{shape[1]}, {tokens} tokens, groups of {group_size}"
    return Case("integer", name, contenders, "fp32")


def _ours(weight: Tensor, grid: Grid, x: Tensor) -> Iterator[Implementation]:
    value = RTN(grid).quantize(weight)
    rounded, kernel = ActivationQuantizer(INPUTS).quantize(x), integer_kernel_of(value, 0, x.device).kernel

    def copied() -> QuantizedTensor:
        tensors = {name: tensor.clone() for name, tensor in value.state_dict().items()}
        return QuantizedTensor.from_state(value.config(), tensors)

    def layer(products: Products) -> Callable[[], object]:
        made = CompressedLinear(copied(), None)
        made.inputs = ActivationQuantizer(INPUTS, products)
        return partial(made, x)

    name, nbytes = f"W{grid.bits}A{INPUTS.bits}", value.nbytes
    add = partial(contender, weight_nbytes=nbytes, weight=weight, x=x)
    yield add(f"{name} codes", lambda: partial(integer_product, copied(), rounded), kernel=kernel)
    yield add(f"{name} layer", partial(layer, Products.integer), kernel=kernel)
    yield add(
        f"{name} simulated", partial(layer, Products.simulated), kernel=CompressedLinear(value, None).kernel
    )


def _int_mm(weight: Tensor, x: Tensor) -> Implementation:
    scale, input_scale = (each.abs().amax(1, keepdim=True) / 127 for each in (weight, x))
    codes, rounded = (
        (each / step).round().to(torch.int8) for each, step in ((weight, scale), (x, input_scale))
    )

    def layer() -> Callable[[], Tensor]:
        return partial(int_mm, rounded, codes.clone(), input_scale, scale.T.contiguous())

    return contender("torch int_mm", layer, codes.nbytes, weight, x, is_peer=True)


def int_mm(x: Tensor, codes: Tensor, input_scale: Tensor, scale: Tensor) -> Tensor:
    """Return x Wᵀ from bytes: torch's product of integers, times a scale of each token and of each row."""
    return torch._int_mm(x, codes.T) * input_scale * scale
