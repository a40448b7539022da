"""Exported folders read by the programs they are for: the same logits as the model here.

`make readers` runs them where the packages of `[readers]` are; a missing one is a skip with its name.
"""

import json
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
import torch

import sinq
from baselines.rtn import RTN
from sinq import SINQ, Context, Grid, Layers
from sinq.checkpoint.weight_files import all_tensors
from sinq.export.matrices import compressed_matrices
from sinq.formats.rounding import by_group
from tests.conftest import tiny_tokenizer, tiny_tokens
from tests.sinq.decoders import random_decoder
from tests.sinq.export.exported import NF4, FinerDown, balanced, logits

pytestmark = pytest.mark.readers
FLOAT32 = 2e-5
"""Largest difference of logits of size 1 that float32 in another order makes."""

HALVES = 2e-2
"""Largest difference where scales and products are halves."""


def needs(*packages: str) -> pytest.MarkDecorator:
    missing = [package for package in packages if find_spec(package) is None]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


def difference(found: torch.Tensor, model: Any) -> float:
    """Largest difference of logits, relative to the largest logit."""
    wanted = logits(model)
    return ((found - wanted).abs().max() / wanted.abs().max()).item()


def by_transformers(folder: Path, **options: Any) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, **options).eval()


def by_compressed_tensors(folder: Path) -> Any:
    from transformers import CompressedTensorsConfig

    return by_transformers(folder, quantization_config=CompressedTensorsConfig(dequantize=True))


@needs("compressed_tensors")
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize("name", ["llama-biases", "qwen3-tied"])
def test_transformers_reads_compressed_tensors(name: str, bits: int, tmp_path: Path) -> None:
    model = balanced(name, Grid(bits, 32))
    sinq.export(model, tmp_path / "out", "compressed_tensors")
    assert difference(logits(by_compressed_tensors(tmp_path / "out")), model) < FLOAT32


@needs("compressed_tensors")
def test_transformers_reads_compressed_tensors_of_mixed_bits(tmp_path: Path) -> None:
    """Symmetric ones: with `dequantize=True` transformers decodes all layers as the first group says."""
    model = balanced("qwen2", Grid(4, 64, symmetric=True), FinerDown)
    sinq.export(model, tmp_path / "out", "compressed_tensors")
    assert len(config_groups(tmp_path / "out")) == 2
    assert difference(logits(by_transformers(tmp_path / "out")), model) < FLOAT32


def config_groups(folder: Path) -> list[Any]:
    return list(
        json.loads((folder / "config.json").read_text())["quantization_config"]["config_groups"].values()
    )


@needs("compressed_tensors")
def test_compressed_tensors_unpacks_mixed_bits_with_zeros(tmp_path: Path) -> None:
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationScheme

    model = balanced("qwen2", Grid(3, 32), FinerDown)
    sinq.export(model, tmp_path / "out", "compressed_tensors")
    schemes = [QuantizationScheme(**group) for group in config_groups(tmp_path / "out")]
    unpacker, tensors = (
        BaseCompressor.get_value_from_registry("pack-quantized"),
        all_tensors(tmp_path / "out"),
    )
    for name, matrix in compressed_matrices(model).items():
        (scheme,) = [scheme for scheme in schemes if name in scheme.targets]
        stored = {k.removeprefix(f"{name}."): v for k, v in tensors.items() if k.startswith(f"{name}.")}
        found = unpacker.decompress(stored, scheme)["weight"]
        assert torch.allclose(found, matrix.view().dense(), rtol=1e-6, atol=1e-7)


@needs("compressed_tensors")
def test_transformers_reads_symmetric_compressed_tensors_by_default(tmp_path: Path) -> None:
    model = balanced("llama", Grid(4, 32, symmetric=True))
    sinq.export(model, tmp_path / "out", "compressed_tensors")
    assert difference(logits(by_transformers(tmp_path / "out")), model) < FLOAT32


def by_mlx(folder: Path) -> torch.Tensor:
    import mlx.core as mx
    from mlx_lm.utils import load_model

    mx.set_default_device(mx.cpu)
    model, _ = load_model(folder)
    found = model(mx.array(tiny_tokens().numpy())).astype(mx.float32)
    return torch.tensor(found.tolist())


@needs("mlx", "mlx_lm")
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize("name", ["llama", "qwen3-tied"])
def test_mlx_lm_reads_mlx(name: str, bits: int, tmp_path: Path) -> None:
    model = balanced(name, Grid(bits, 32))
    sinq.export(model, tmp_path / "out", "mlx")
    assert difference(by_mlx(tmp_path / "out"), model) < FLOAT32


@needs("mlx", "mlx_lm")
def test_mlx_lm_reads_mixed_bits_and_fractional_zeros(tmp_path: Path) -> None:
    model = balanced("qwen2", Grid(4, 32), FinerDown)
    sinq.export(model, tmp_path / "mixed", "mlx")
    assert difference(by_mlx(tmp_path / "mixed"), model) < FLOAT32
    refined = random_decoder("llama")
    sinq.PreSINQ(SINQ(Grid(3, 32), refinement=sinq.HalfQuadratic())).compress(refined)
    with pytest.raises(sinq.NotApplicable, match="column scales"):
        sinq.export(refined, tmp_path / "refined", "mlx")


@needs("mlx", "mlx_lm")
def test_mlx_lm_reads_experts_and_a_head_of_its_own(tmp_path: Path) -> None:
    model = balanced("moe", Grid(4, 32))
    sinq.export(model, tmp_path / "moe", "mlx")
    assert difference(by_mlx(tmp_path / "moe"), model) < FLOAT32
    untied = random_decoder("qwen3-untied")
    sinq.PreSINQ(RTN(Grid(4, 32))).compress(untied, context=Context(Layers(exclude=())))
    sinq.export(untied, tmp_path / "untied", "mlx")
    assert difference(by_mlx(tmp_path / "untied"), untied) < FLOAT32


@needs("bitsandbytes", "accelerate")
def test_bitsandbytes_reads_nf4(tmp_path: Path) -> None:
    from bitsandbytes.functional import dequantize_4bit

    model = balanced("llama", NF4)
    sinq.export(model, tmp_path / "out", "bnb_nf4")
    found = by_transformers(tmp_path / "out", device_map="cpu")
    for name, matrix in compressed_matrices(model).items():
        weight = found.get_submodule(name).weight
        assert torch.equal(dequantize_4bit(weight.data, weight.quant_state), matrix.view().dense())
    assert difference(logits(found), model) < 0.1  # its product on a CPU rounds to bfloat16


def decoded(weight: Any) -> torch.Tensor:
    """The matrix of torchao's `Int4Tensor`, by the formula of its kernel: q · scale + zero_point."""
    packed = weight.qdata.view(torch.uint8).int()
    signed = torch.stack([packed & 15, packed >> 4], -1).flatten(1)
    signed = torch.where(signed > 7, signed - 16, signed)
    groups = by_group(signed.float(), weight.block_size[1])
    matrix = groups * weight.scale.T.float()[..., None] + weight.zero_point.T.float()[..., None]
    return matrix.reshape(weight.shape) * weight.act_pre_scale.float()


@needs("torchao")
def test_torchao_reads_column_scales(tmp_path: Path) -> None:
    """Its product needs a GPU: what transformers and torchao read is multiplied here."""
    model = random_decoder("qwen2").to(torch.bfloat16)
    SINQ(Grid(4, 32)).compress(model)
    sinq.export(model, tmp_path / "out", "torchao")
    found = by_transformers(tmp_path / "out")
    assert found.dtype is torch.bfloat16
    for name, matrix in compressed_matrices(model).items():
        weight, wanted = found.get_submodule(name).weight, matrix.view().dense()
        assert type(weight).__name__ == "Int4Tensor"
        assert ((decoded(weight) - wanted).norm() / wanted.norm()).item() < 2**-6  # of bfloat16, cancelling


def by_gptqmodel(folder: Path) -> Any:
    from gptqmodel import BACKEND, GPTQModel

    return GPTQModel.load(str(folder), device="cpu", backend=BACKEND.TORCH, dtype=torch.float16).model


@needs("gptqmodel")
@pytest.mark.parametrize("bits", [4, 8])
def test_gptqmodel_reads_gptq(bits: int, tmp_path: Path) -> None:
    model = balanced("llama", Grid(bits, 32))
    sinq.export(model, tmp_path / "out", "gptq", tokenizer=tiny_tokenizer())
    found = by_gptqmodel(tmp_path / "out")
    layer = found.model.layers[0].mlp.up_proj
    wanted = model.model.layers[0].mlp.up_proj.weight.value.dequantize()
    assert torch.allclose(
        layer.dequantize_weight().T.float(), wanted, rtol=2e-3, atol=1e-5
    )  # halves of scales
    assert difference(logits(found), model) < HALVES


def awq_unpacker() -> Any:
    """AutoAWQ's module of unpacking, without its package, which imports all architectures."""
    file = Path(str(find_spec("awq").origin)).parent / "utils/packing_utils.py"  # type: ignore[union-attr]
    spec = spec_from_file_location("awq_packing", file)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@needs("awq")
def test_autoawq_unpacks_awq(tmp_path: Path) -> None:
    model = balanced("llama", Grid(4, 32))
    sinq.export(model, tmp_path / "out", "awq")
    unpacker, tensors = awq_unpacker(), all_tensors(tmp_path / "out")
    for name, matrix in compressed_matrices(model).items():
        stored = [tensors[f"{name}.{key}"] for key in ("qweight", "qzeros", "scales")]
        found = unpacker.dequantize_gemm(*stored, 4, 32).T.float()
        assert torch.allclose(found, matrix.view().dense(), rtol=2**-9, atol=1e-4)


@needs("mlx", "mlx_lm")
def test_mlx_lm_reads_awq(tmp_path: Path) -> None:
    model = balanced("qwen2", Grid(4, 64))
    sinq.export(model, tmp_path / "out", "awq", dtype=torch.float16)
    assert difference(by_mlx(tmp_path / "out"), model) < 2e-2
