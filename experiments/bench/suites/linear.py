"""The suite `linear`: x Wᵀ with a compressed weight, compared with dense weights and torch's 4-bit product.

Decoding is this product with one row of x: every weight is read once for two operations, so bytes decide, and
fewer bits are faster, if the kernel allows. Each contender has a stack of layers of one shape, together
larger than a cache, and runs it once per sample, as a token passes a model: weights come from memory, and
code stays cached. Times are per layer.

    fp32, bf16     torch's product with dense weights (the baseline is fp32 on a CPU, bf16 on CUDA)
    torch int4     torch.ops.aten._weight_int4pack_mm_for_cpu, C++: asymmetric, groups along rows (CPU only)
    SINQ b bits    `CompressedLinear` around SINQ's weight, with the kernel it names

x has the number format of the baseline; for the contender bf16, x is bf16. On CUDA all run as graphs.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from baselines.rtn import RTN
from experiments.bench.case import Case
from experiments.bench.floor import product_nbytes
from experiments.bench.suites.quantize import Shape, random_weight
from experiments.bench.timing import Implementation, Skipped, graphed
from sinq import SINQ, CompressedLinear, Grid, QuantizedTensor

CPU_SHAPES: tuple[Shape, ...] = ((4096, 4096), (11008, 4096), (4096, 11008))
CUDA_SHAPES: tuple[Shape, ...] = ((5120, 5120), (17408, 5120), (5120, 17408), (28672, 8192))
INT4 = "torch int4"
INT4_BITS = 4
INT4_GROUPS = (32, 64, 128, 256)
INT4_ROWS = 16
"""Rows of a block of the packed form; the number of rows must be a multiple."""
STACK = 128 * 2**20
"""Least bytes of a stack's weights: more than the caches of most machines."""
MOST_LAYERS = 128
"""Most layers in a stack.

With layers below a megabyte, so many stay in a cache; making thousands would take longer than timing them.
"""


def case(shape: Shape, bits: tuple[int, ...], group_size: int, batch: int, device: torch.device) -> Case:
    """Return the case of a shape (out, in), at every number of bits, for x (batch, in).

    Raises:
        ValueError: the group size does not divide the shape.
    """
    weight = random_weight(shape, device)
    grids = [Grid(bits=count, group_size=group_size) for count in bits]
    if not grids[0].fits(shape):
        sizes = grids[0].fitting_sizes(shape)
        raise ValueError(f"group_size={group_size} does not divide {shape[1]}; sizes that fit are {sizes}")
    baseline = "bf16" if device.type == "cuda" else "fp32"
    dtype = torch.bfloat16 if baseline == "bf16" else torch.float32
    x = torch.randn(batch, shape[1], generator=torch.Generator().manual_seed(1)).to(device, dtype)
    dense = [dense_layers("fp32", weight, x)] if baseline == "fp32" else []
    dense.append(dense_layers("bf16", weight.bfloat16(), x.bfloat16()))
    int4, absent = _torch_int4(weight, group_size, x)
    ours = [_compressed(weight, grid, x, INT4 if int4 and grid.bits == INT4_BITS else None) for grid in grids]
    name = f"{shape[0]}×{shape[1]}, batch {batch}, groups of {group_size}"
    return Case("linear", name, [*dense, *int4, *ours], baseline, absent)


def dense_layers(name: str, weight: Tensor, x: Tensor) -> Implementation:
    """Return the contender of torch's product with a dense weight."""

    def layer() -> Callable[[], object]:
        copied = weight.clone()
        return lambda: nn.functional.linear(x, copied)

    return contender(name, layer, weight.nbytes, weight, x, is_peer=True)


def _compressed(weight: Tensor, grid: Grid, x: Tensor, peer: str | None) -> Implementation:
    value = SINQ(grid).quantize(weight)

    def layer() -> CompressedLinear:
        tensors = {name: tensor.clone() for name, tensor in value.state_dict().items()}
        return CompressedLinear(QuantizedTensor.from_state(value.config(), tensors), None)

    name, kernel = f"SINQ {grid.bits} bits", layer().kernel
    return contender(name, lambda: partial(layer(), x), value.nbytes, weight, x, kernel=kernel, peer=peer)


def _torch_int4(weight: Tensor, group_size: int, x: Tensor) -> tuple[list[Implementation], list[Skipped]]:
    if weight.is_cuda or weight.shape[0] % INT4_ROWS or group_size not in INT4_GROUPS:
        needs = f"it needs a processor, rows in multiples of {INT4_ROWS} and groups of {INT4_GROUPS}"
        return [], [Skipped(INT4, needs)]
    value = RTN(Grid(bits=INT4_BITS, group_size=group_size)).quantize(weight)
    packed, scales = int4_weight(value, x.dtype)

    def layer() -> Callable[[], Tensor]:
        return int4_product(packed.clone(), scales.clone(), group_size, x)

    return [contender(INT4, layer, packed.nbytes + scales.nbytes, weight, x, is_peer=True)], []


def int4_weight(value: QuantizedTensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return a 4-bit weight without column scales in the layout of torch's operator.

    Returns:
        packed codes, and scales with offsets (in / group_size, out, 2).

    The operator computes (code − 8) · scale + offset, so offset = (8 − zero) · scale.
    """
    scale, zero = value.scale(), value.zero()
    pairs = torch.stack([scale, (8 - zero) * scale], -1).transpose(0, 1).contiguous().to(dtype)
    return torch.ops.aten._convert_weight_to_int4pack_for_cpu(value.codes().int(), 1), pairs


def int4_product(packed: Tensor, scales: Tensor, group_size: int, x: Tensor) -> Callable[[], Tensor]:
    """Return x Wᵀ by torch's operator, as work to be timed."""
    return lambda: torch.ops.aten._weight_int4pack_mm_for_cpu(x, packed, group_size, scales)


def contender(
    name: str,
    layer: Callable[[], Callable[[], object]],
    weight_nbytes: int,
    weight: Tensor,
    x: Tensor,
    *,
    kernel: str = "torch",
    peer: str | None = None,
    is_peer: bool = False,
) -> Implementation:
    """Return a contender that runs a stack of layers, each made by `layer`."""
    nbytes = product_nbytes(weight_nbytes, len(x), (weight.shape[0], weight.shape[1]), x.itemsize)
    stack = [layer() for _ in range(min(MOST_LAYERS, -(-STACK // weight_nbytes)))]
    whole = graphed(lambda: [work() for work in stack], weight.device)
    return Implementation(name, lambda: whole() / len(stack), nbytes, kernel, peer, is_peer)
