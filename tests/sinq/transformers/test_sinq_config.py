"""transformers' own `SinqConfig`, unmodified, on this package: its codes are those of `SINQ`."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, SinqConfig

import sinq
from sinq import SINQ, Context, Grid, Layers
from sinq.hf_io import patch_hf_pretrained_io
from sinq.sinqlinear_hf import SINQLinear, sinq_base_quant_config
from tests.conftest import tiny_model, tiny_tokens

pytestmark = pytest.mark.filterwarnings("ignore:.*quantization_config")


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    found: torch.Tensor = model(tiny_tokens()).logits
    return found


@pytest.fixture(params=["llama", "qwen3-tied", "opt"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    tiny_model(request.param).save_pretrained(tmp_path / "dense")
    return tmp_path / "dense"


def quantized(source: Path, **options: Any) -> Any:
    config = SinqConfig(**{"nbits": 4, "group_size": 16} | options)
    return AutoModelForCausalLM.from_pretrained(source, quantization_config=config, dtype=torch.float32)


def by_the_method(source: Path, method: SINQ, exclude: tuple[str, ...]) -> Any:
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    method.compress(model, context=Context(Layers(exclude)))
    return model.requires_grad_(False)


def require_same(found: Any, expected: Any) -> None:
    ours, theirs = sinq.stored_tensors(expected), sinq.stored_tensors(found)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    torch.testing.assert_close(logits(found), logits(expected), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("options", "grid"),
    [
        ({}, Grid(4, 16)),
        ({"nbits": 3, "group_size": 32}, Grid(3, 32)),
        ({"tiling_mode": "2D"}, Grid(4, 16, 2)),
    ],
)
def test_codes_are_those_of_the_method(options: dict[str, Any], grid: Grid, source: Path) -> None:
    model = quantized(source, modules_to_not_convert=["lm_head"], **options)
    assert isinstance(model.get_decoder().layers[0].self_attn.q_proj, SINQLinear)
    require_same(model, by_the_method(source, SINQ(grid), ("lm_head",)))


def test_it_is_saved_as_a_folder_of_ours(source: Path, tmp_path: Path) -> None:
    model = quantized(source)
    model.save_pretrained(tmp_path / "saved")
    require_same(sinq.load(tmp_path / "saved"), model)
    require_same(AutoModelForCausalLM.from_pretrained(tmp_path / "saved"), model)


def test_a_head_with_a_weight_is_quantized_and_a_tied_one_is_not(tmp_path: Path) -> None:
    for name in ("llama", "qwen3-tied"):
        tiny_model(name).save_pretrained(tmp_path / name)
    untied, tied = quantized(tmp_path / "llama"), quantized(tmp_path / "qwen3-tied")
    require_same(untied, by_the_method(tmp_path / "llama", SINQ(Grid(4, 16)), ()))
    assert not tied.lm_head.ready
    assert tied.lm_head.weight is tied.model.embed_tokens.weight
    assert "dense" in repr(tied.lm_head)


def test_the_two_modules_replace_methods_once() -> None:
    before = (AutoModelForCausalLM.from_pretrained, SINQLinear.forward)
    patch_hf_pretrained_io()
    assert before == (AutoModelForCausalLM.from_pretrained, SINQLinear.forward)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"nbits": 7}, "bits"),
        ({"group_size": 48}, "modules_to_not_convert"),
        ({"tiling_mode": "3D"}, "tiling_mode=3D"),
        ({"method": "asinq"}, "asinq"),
    ],
)
def test_what_the_adapter_does_not_cover_is_said(options: dict[str, Any], said: str, tmp_path: Path) -> None:
    tiny_model("llama").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=said):
        quantized(tmp_path, **options)


def test_options_of_the_official_package_are_refused() -> None:
    assert sinq_base_quant_config(nbits=3, group_size=128) == SINQ(Grid(3, 128))
    with pytest.raises(ValueError, match="quant_scale=True is not possible; here it is False"):
        sinq_base_quant_config(quant_scale=True)


def official(folder: Path, stated: bool) -> dict[str, torch.Tensor]:
    """Write a folder as the official package does (4 bits, scales of 16 bits); return its matrices."""
    model = tiny_model("llama")
    tensors, sidecar, dense = {}, {}, {}
    for name, tensor in model.state_dict().items():
        layer = name.removesuffix(".weight")
        if not layer.endswith("proj"):
            tensors[name] = tensor.clone()
            continue
        value = SINQ(Grid(4, 16)).quantize(tensor)
        rows = value.codes().reshape(-1, 16)
        first, second = rows.chunk(2)
        tensors[f"{layer}.W_q"] = first << 4 | second
        tensors[f"{layer}.meta.scale"] = value.scale().reshape(-1, 1).half()
        tensors[f"{layer}.meta.zero"] = value.zero().reshape(-1, 1).half()  # type: ignore[union-attr]
        tensors[f"{layer}.meta.scale2"] = value.col_scale().half()  # type: ignore[union-attr]
        meta = {"nbits": 4, "group_size": 16, "shape": list(tensor.shape), "axis": 1, "packing": "4bit_u8"}
        sidecar[layer] = {"meta": meta | {"method": "sinq", "view_as_float": False}}
        dense[layer] = value.dequantize()
    model.config.save_pretrained(folder)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": dict.fromkeys(tensors, "model.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors.index.json.meta.json").write_text(json.dumps(sidecar))
    if stated:
        config = json.loads((folder / "config.json").read_text())
        config["quantization_config"] = SinqConfig(nbits=4, group_size=16).to_dict()
        (folder / "config.json").write_text(json.dumps(config))
    return dense


@pytest.mark.parametrize("stated", [False, True])
def test_folders_of_the_official_package_are_read(stated: bool, tmp_path: Path) -> None:
    dense = official(tmp_path, stated)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, device_map="cpu")
    for layer, matrix in dense.items():
        torch.testing.assert_close(model.get_submodule(layer).weight.dense(), matrix, rtol=0, atol=0)
    model.save_pretrained(tmp_path / "ours")
    require_same(AutoModelForCausalLM.from_pretrained(tmp_path / "ours"), model)


def test_official_folders_take_an_implementation_of_attention(tmp_path: Path) -> None:
    official(tmp_path, stated=False)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
    assert model.config._attn_implementation == "eager"


def test_options_that_official_folders_do_not_take_are_named(tmp_path: Path) -> None:
    official(tmp_path, stated=True)
    for option in ({"device_map": "auto"}, {"max_memory": {0: "1GB"}}):
        with pytest.raises(ValueError, match=next(iter(option))):
            AutoModelForCausalLM.from_pretrained(tmp_path, **option)


def test_without_a_sidecar_the_way_out_is_named(tmp_path: Path) -> None:
    official(tmp_path, stated=True)
    (tmp_path / "model.safetensors.index.json.meta.json").unlink()
    with pytest.raises(ValueError, match="snapshot_download"):
        AutoModelForCausalLM.from_pretrained(tmp_path)
