"""Models from checkpoints of other projects: their matrices, logits, sizes, and what `save` makes of them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

import sinq
from sinq.checkpoint.foreign.reader import ForeignModel, load_foreign
from sinq.model.experts import CompressedExperts
from sinq.model.linear import WeightStore
from tests.conftest import tiny_model
from tests.sinq.checkpoint.foreign import writers
from tests.sinq.checkpoint.foreign.writers import CONFIG, KINDS, write

IDS = torch.arange(32)[None] * 5 % 96
TENSORS = "model.safetensors"


def dense_logits(folder: Path, matrices: dict[str, writers.Matrix]) -> torch.Tensor:
    """Logits of the plain model with the matrices that the codes stand for."""
    model = LlamaForCausalLM(LlamaConfig(**CONFIG)).eval()
    state = {name: held for name, held in load_file(folder / TENSORS).items() if name in model.state_dict()}
    state |= {f"{name}.weight": matrix.dense.float() for name, matrix in matrices.items()}
    model.load_state_dict(state)
    with torch.inference_mode():
        return model(IDS).logits


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_has_the_matrices_and_logits_of_its_codes(tmp_path: Path, kind: str) -> None:
    matrices = write(tmp_path, KINDS[kind])
    found = load_foreign(tmp_path)
    for name, matrix in matrices.items():
        value = found.model.get_submodule(name).weight.value  # type: ignore[union-attr]
        assert torch.equal(value.dequantize(), matrix.dense.float())
    with torch.inference_mode():
        logits = found.model(IDS).logits
    torch.testing.assert_close(logits, dense_logits(tmp_path, matrices), rtol=1e-3, atol=1e-3)
    assert found.report.method.startswith(("gptq", "awq", "compressed-tensors", "official"))


@pytest.mark.parametrize("kind", KINDS)
def test_sizes_are_those_of_the_files(tmp_path: Path, kind: str) -> None:
    matrices = write(tmp_path, KINDS[kind])
    found, stored = load_foreign(tmp_path), load_file(tmp_path / TENSORS)
    assert found.nbytes == sum(tensor.nbytes for tensor in stored.values())
    parts = {part.name: part for part in found.report.parts}
    assert parts.keys() == matrices.keys()
    for name, part in parts.items():
        assert part.nbytes == sum(
            tensor.nbytes for key, tensor in stored.items() if key.startswith(f"{name}.")
        )
    dense = LlamaForCausalLM(LlamaConfig(**CONFIG))
    assert found.dense_nbytes == sum(tensor.nbytes for tensor in dense.state_dict().values())


@pytest.mark.parametrize("kind", ["gptq", "official3"])
def test_a_model_can_be_saved_as_ours(tmp_path: Path, kind: str) -> None:
    write(tmp_path / "theirs", KINDS[kind])
    found = load_foreign(tmp_path / "theirs")
    sinq.save(found.model, tmp_path / "ours")
    again = sinq.load(tmp_path / "ours")
    with torch.inference_mode():
        assert torch.equal(again(IDS).logits, found.model(IDS).logits)
    config = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert config["quantization_config"] == {"quant_method": "sinq-harness"}


def with_experts(tmp_path: Path, kind: str, scales: bool = False) -> tuple[ForeignModel, dict[str, Any]]:
    """A mixture whose experts are stored one by one, as older checkpoints have them; what each stands for."""
    model, stored = tiny_model("moe"), KINDS[kind]
    state, dense, tensors, described = dict(model.state_dict()), {}, {}, {}
    for key in [key for key in state if key.endswith(("gate_up_proj", "down_proj"))]:
        fused, owner = state.pop(key), key.rpartition(".")[0]
        names = ("gate_proj", "up_proj") if key.endswith("gate_up_proj") else ("down_proj",)
        for expert in range(len(fused)):
            rows = fused.shape[1] // len(names)
            for name in names:
                layer = f"{owner}.{expert}.{name}"
                matrix = writers.Matrix(rows, fused.shape[2], stored.bits, 32, seed=len(dense))
                parts = stored.store(matrix)
                dense[layer] = matrix.dense
                if scales:
                    parts["meta.scale2"] = torch.rand(1, fused.shape[2]).half() + 0.5
                    dense[layer] = matrix.dense * parts["meta.scale2"].double()
                described[layer] = writers.sidecar(matrix)
                tensors |= {f"{layer}.{part}": held for part, held in parts.items()}
    tmp_path.mkdir(exist_ok=True)
    model.config.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"quantization_config": stored.config}))
    save_file({key: held.contiguous() for key, held in (state | tensors).items()}, tmp_path / TENSORS)
    (tmp_path / "model.safetensors.index.json.meta.json").write_text(json.dumps(described))
    return load_foreign(tmp_path), dense


@pytest.mark.parametrize(("kind", "scales"), [("gptq", False), ("compressed", False), ("official", True)])
def test_experts_that_are_stored_one_by_one_are_fused(tmp_path: Path, kind: str, scales: bool) -> None:
    found, dense = with_experts(tmp_path, kind, scales)
    fused = {name: part for name, part in found.model.named_modules() if isinstance(part, CompressedExperts)}
    assert len(fused) == 4
    for name, experts in fused.items():
        owner, _, parameter = name.rpartition(".")
        names = ("gate_proj", "up_proj") if parameter == "gate_up_proj" else ("down_proj",)
        for number, store in enumerate(experts.stores()):
            wanted = torch.cat([dense[f"{owner}.{number}.{part}"] for part in names])
            assert torch.equal(store.value.dequantize(), wanted.float())
    with torch.inference_mode():
        assert found.model(IDS).logits.isfinite().all()


def test_experts_of_which_some_are_dense_are_refused(tmp_path: Path) -> None:
    with_experts(tmp_path, "gptq")
    stored, layer = load_file(tmp_path / TENSORS), "model.layers.0.mlp.experts.1.up_proj"
    kept = {name: held for name, held in stored.items() if not name.startswith(layer)}
    save_file(kept | {f"{layer}.weight": torch.zeros(64, 64)}, tmp_path / TENSORS)
    with pytest.raises(ValueError, match=r"experts.1.up_proj.weight are dense, and others of them are"):
        load_foreign(tmp_path)


def test_a_layer_that_is_stored_transposed(tmp_path: Path) -> None:
    """GPT-2 keeps (in, out); a quantized matrix is (out, in) in every format."""
    model = tiny_model("gpt2")
    name = "transformer.h.0.mlp.c_fc"
    matrix = writers.Matrix(256, 64, 4, 32, seed=0)
    state = {
        key: held
        for key, held in model.state_dict().items()
        if key not in (f"{name}.weight", "lm_head.weight")
    }
    state |= {f"{name}.{part}": held for part, held in writers.gptq(matrix, 1).items()}
    model.config.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"quantization_config": KINDS["gptq"].config}))
    save_file({key: held.contiguous() for key, held in state.items()}, tmp_path / TENSORS)
    found = load_foreign(tmp_path)
    store = found.model.get_submodule(name).weight
    assert isinstance(store, WeightStore)
    assert torch.equal(store.value.dequantize(), matrix.dense.float())


def changed(folder: Path, kind: str, **tensors: Any) -> None:
    """Write a folder whose first layer has other tensors; None removes one."""
    write(folder, KINDS[kind])
    layer = "model.layers.0.self_attn.q_proj"
    stored = load_file(folder / TENSORS)
    for name, tensor in tensors.items():
        stored.pop(f"{layer}.{name}", None)
        if tensor is not None:
            stored[f"{layer}.{name}"] = tensor
    save_file(stored, folder / TENSORS)


ORDER = torch.randperm(64, generator=torch.Generator().manual_seed(0)).int() // 32


@pytest.mark.parametrize(
    ("kind", "tensors", "words"),
    [
        ("gptq", {"qzeros": None}, "q_proj: qzeros is missing beside"),
        ("gptq", {"g_idx": ORDER}, "desc_act=true"),
        ("gptq", {"scales": torch.ones(3, 64)}, "qzeros is int32"),
        ("gptq", {"scales": torch.full((2, 64), torch.nan)}, "scale has NaN or Inf"),
        ("gptq", {"qweight": torch.zeros(8, 64)}, "qweight is float32"),
        ("gptq", {"qweight": torch.zeros(7, 64, dtype=torch.int32)}, "7 rows of words for 64 inputs"),
        ("awq", {"qweight": torch.zeros(64, 9, dtype=torch.int32)}, "scales is float16"),
        ("compressed", {"weight_shape": torch.tensor([2**60, 64])}, "weight_packed is int32"),
        ("compressed", {"weight_shape": torch.tensor([64, 2**60])}, "fits no layout"),
        ("compressed", {"weight_shape": torch.tensor([64.0, 64.0])}, "two whole numbers"),
        ("compressed", {"weight_g_idx": ORDER}, "weight_g_idx"),
        ("official", {"meta.scale": torch.ones(7, 1)}, "the matrix has 128 groups"),
        ("official", {"meta.zero": torch.ones(7, 1)}, "there are 128 scales"),
        ("official", {"meta.scale2": torch.ones(1, 63)}, "no tiling"),
        ("official", {"W_q": torch.zeros(63, 32, dtype=torch.uint8)}, "does not hold 4096 codes"),
    ],
)  # fmt: skip
def test_tensors_that_do_not_fit_are_refused(
    tmp_path: Path, kind: str, tensors: dict[str, Any], words: str
) -> None:
    changed(tmp_path, kind, **tensors)
    with pytest.raises(ValueError, match=words) as caught:
        load_foreign(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_fused_experts_of_the_official_package_are_refused_with_a_way_out(tmp_path: Path) -> None:
    write(tmp_path, KINDS["official"])
    stored = load_file(tmp_path / TENSORS)
    name = "model.layers.0.mlp.experts.gate_up_W_q.0"
    save_file(stored | {name: torch.zeros(2, 32, dtype=torch.uint8)}, tmp_path / TENSORS)
    with pytest.raises(ValueError, match=rf"{name} is of fused experts, .*; quantize the dense model here"):
        load_foreign(tmp_path)


@pytest.mark.parametrize(
    ("stated", "words"),
    [
        ({"quant_method": "bitsandbytes"}, "sinq, compressed-tensors, gptq, awq are read"),
        ({"quant_method": 3}, "quant_method is 3"),
        ({"quant_method": "gptq"}, "bits is None"),
        ({"quant_method": "gptq", "bits": 5}, "bits is 5; 2, 3, 4, 8 are read"),
        ({"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"}, "gptq and gptq_v2 are read"),
        ({"quant_method": "awq", "bits": 4, "version": "gemv"}, "gemm is read"),
        ({"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized"}, "pack-quantized is read"),
        (writers.ct_config(9, 32), "num_bits=9"),
        ({"quant_method": "sinq"}, "meta.json is missing"),
        ([1], "quantization_config is"),
    ],
)  # fmt: skip
def test_what_a_configuration_states_is_checked(tmp_path: Path, stated: Any, words: str) -> None:
    write(tmp_path, KINDS["gptq"])
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"quantization_config": stated}))
    with pytest.raises(ValueError, match=words) as caught:
        load_foreign(tmp_path)
    assert str(tmp_path / "config.json") in str(caught.value)


def test_a_matrix_of_another_shape_than_the_model_s_is_refused(tmp_path: Path) -> None:
    write(tmp_path, KINDS["gptq"])
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"intermediate_size": 2**40}))
    with pytest.raises(ValueError, match="quantized as 64×128; the model has it as 64×1099511627776"):
        load_foreign(tmp_path)
