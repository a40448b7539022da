"""Matrices that other projects' own code stores, or decodes: the same here, to the last bit.

`make readers` runs these where the packages are: compressed-tensors, autoawq, gptqmodel.
"""

from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
import torch

from sinq.checkpoint.foreign.awq import AWQGemm
from sinq.checkpoint.foreign.compressed_tensors import CompressedTensors
from sinq.checkpoint.foreign.gptq import GPTQ
from tests.sinq.checkpoint.foreign import writers
from tests.sinq.checkpoint.foreign.writers import Matrix

pytestmark = pytest.mark.readers


def needs(package: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(find_spec(package) is None, reason=f"not installed: {package}")


@needs("compressed_tensors")
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_compressed_tensors_packs(bits: int, symmetric: bool, dtype: torch.dtype) -> None:
    from compressed_tensors.compressors.pack_quantized import PackedQuantizationCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    arguments = QuantizationArgs(num_bits=bits, symmetric=symmetric, strategy="group", group_size=32)
    scheme = QuantizationScheme(targets=["Linear"], weights=arguments)
    torch.manual_seed(bits)
    weight, scale = torch.randn(48, 128).to(dtype), (torch.rand(48, 4) + 0.1).to(dtype) / bits
    half = 1 << (bits - 1)
    zero = torch.zeros(48, 4) if symmetric else torch.randint(-half, half, (48, 4))
    state = {"weight": weight, "weight_scale": scale, "weight_zero_point": zero.to(torch.int8)}
    packed = PackedQuantizationCompressor.compress(state, scheme)
    theirs = PackedQuantizationCompressor.decompress(packed, scheme)["weight"]
    ours = CompressedTensors(((bits, "g32"),)).decode("x", packed).value()
    assert torch.equal(ours.dequantize(dtype), theirs)


def awq_module() -> Any:
    """AutoAWQ's module of unpacking, without its package, which imports all architectures."""
    file = Path(str(find_spec("awq").origin)).parent / "utils/packing_utils.py"  # type: ignore[union-attr]
    spec = spec_from_file_location("awq_packing", file)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@needs("awq")
def test_what_autoawq_decodes() -> None:
    matrix = Matrix(64, 96, 4, 32, seed=0)
    stored = writers.awq(matrix)
    theirs = awq_module().dequantize_gemm(*stored.values(), 4, 32)
    assert torch.equal(AWQGemm(32).decode("x", stored).value().dequantize(torch.float16), theirs.T)


@needs("gptqmodel")
@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_what_gptqmodel_decodes(bits: int, version: int) -> None:
    from gptqmodel.nn_modules.qlinear.torch import TorchLinear
    from gptqmodel.utils.model import convert_gptq_v1_to_v2_format_module

    matrix = Matrix(64, 96, bits, 32, seed=0)
    layer = TorchLinear(
        bits=bits, group_size=32, sym=False, desc_act=False, in_features=96, out_features=64,
        bias=False, pack_dtype=torch.int32, register_buffers=True,
    )  # fmt: skip
    stored = writers.gptq(matrix, version)
    for name, tensor in stored.items():
        getattr(layer, name).copy_(tensor)
    if version == 1:
        convert_gptq_v1_to_v2_format_module(layer, bits, torch.int32)
    layer.qzero_format(format=2)
    layer.post_init()
    ours = GPTQ(bits, 32, version).decode("x", stored).value()
    assert torch.equal(ours.dequantize(torch.float16), layer.dequantize_weight().T)
