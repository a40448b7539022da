"""Whole models of every kind of architecture, tiny and randomly initialised."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import nn

import sinq
from sinq import (
    SINQ,
    CompressedExperts,
    CompressedLinear,
    Context,
    Grid,
    Layers,
    OnMisfit,
    find_targets,
    stored_tensors,
)
from sinq.checkpoint.layout import _digest
from tests.conftest import tiny_model, tiny_tokens

EIGHT = SINQ(Grid(bits=8, group_size=32))
COUNTS = {"llama": 14, "qwen3-tied": 14, "qwen3-untied": 14, "gpt2": 8, "opt": 14, "moe": 2 * (4 + 2 * 4)}


def test_eight_bits_keep_the_function_of_any_architecture(architecture: str) -> None:
    model, tokens = tiny_model(architecture), tiny_tokens()
    before = model(tokens).logits
    report = EIGHT.compress(model)
    after = model(tokens).logits
    assert 0 < (after - before).norm() / before.norm() < 0.02
    assert len(report.parts) == COUNTS[architecture]
    assert all(layer.relative_error < 0.01 for layer in report.parts)
    assert not any("lm_head" in layer.name or "embed" in layer.name for layer in report.parts)


def test_every_matrix_is_compressed_as_if_alone(architecture: str) -> None:
    dense, model = tiny_model(architecture), tiny_model(architecture)
    EIGHT.compress(model)
    for target in find_targets(dense):
        for index, matrix in enumerate(target.matrices().values()):
            module: Any = model.get_submodule(target.name)
            store = module.stores()[index] if isinstance(module, CompressedExperts) else module.weight
            expected = EIGHT.quantize(matrix.float().contiguous())
            assert torch.equal(store.value.dequantize(), expected.dequantize())


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_a_reloaded_model_is_bit_for_bit_the_saved_one(architecture: str, bits: int, tmp_path: Path) -> None:
    model, tokens = tiny_model(architecture), tiny_tokens()
    SINQ(Grid(bits=bits, group_size=16, auxiliary_bits=8 if bits == 4 else 16)).compress(model)
    sinq.save(model, tmp_path)
    again = sinq.load(tmp_path)
    assert torch.equal(again(tokens).logits, model(tokens).logits)
    saved, loaded = stored_tensors(model), stored_tensors(again)
    assert saved.keys() == loaded.keys()
    assert all(torch.equal(saved[name], loaded[name]) for name in saved)


def test_the_file_has_the_bytes_that_are_reported(tmp_path: Path) -> None:
    model = tiny_model("qwen3-tied")
    report = SINQ(Grid(bits=3, group_size=32)).compress(model)
    sinq.save(model, tmp_path, dense_dtype=torch.float16)
    with (tmp_path / "model.safetensors").open("rb") as file:
        header = int.from_bytes(file.read(8), "little") + 8
    size = (tmp_path / "model.safetensors").stat().st_size
    assert size - header == sum(tensor.nbytes for tensor in stored_tensors(model, torch.float16).values())
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        layer = report.parts[0]
        stored = [
            file.get_tensor(key) for key in list(file.keys()) if key.startswith(f"{layer.name}.weight.")
        ]
    assert sum(tensor.nbytes for tensor in stored) == layer.nbytes


def test_a_tied_head_stays_tied(tmp_path: Path) -> None:
    model = tiny_model("qwen3-tied")
    EIGHT.compress(model)
    sinq.save(model, tmp_path)
    for checked in (model, sinq.load(tmp_path)):
        assert checked.lm_head.weight is checked.model.embed_tokens.weight
    with pytest.raises(ValueError, match=r"lm_head shares its weight .* layers\.exclude"):
        EIGHT.compress(tiny_model("qwen3-tied"), context=Context(Layers(exclude=())))


def test_an_untied_head_is_compressed_when_asked_for() -> None:
    model = tiny_model("qwen3-untied")
    report = EIGHT.compress(model, context=Context(Layers(exclude=())))
    assert "lm_head" in [layer.name for layer in report.parts]
    assert isinstance(model.lm_head, CompressedLinear)


def test_excluded_layers_stay_as_they_are() -> None:
    model = tiny_model("llama")
    report = EIGHT.compress(
        model, context=Context(Layers(exclude=("lm_head", "down_proj", "model.layers.0.*")))
    )
    assert {layer.name for layer in report.parts} == {
        f"model.layers.1.{name}"
        for name in (
            "self_attn.q_proj",
            "self_attn.k_proj",
            "self_attn.v_proj",
            "self_attn.o_proj",
            "mlp.gate_proj",
            "mlp.up_proj",
        )
    }
    assert isinstance(model.model.layers[1].mlp.down_proj, nn.Linear)


def test_a_pattern_that_matches_nothing_is_a_mistake() -> None:
    with pytest.raises(
        ValueError,
        match=r"'donw_proj' matches no layer; layers are named like 'model\.layers\.0\.self_attn\.q_proj'",
    ):
        EIGHT.compress(tiny_model("llama"), context=Context(Layers(exclude=("donw_proj",))))
    with pytest.raises(ValueError, match="no layer to compress"):
        EIGHT.compress(tiny_model("llama"), context=Context(Layers(exclude=("lm_head", "*"))))


class TestMisfit:
    method = SINQ(Grid(group_size=128))

    def test_an_error_lists_layers_and_sizes_before_anything_is_touched(self) -> None:
        model = tiny_model("llama")
        with pytest.raises(
            ValueError,
            match=r"group_size=128 does not divide 12 layers: "
            r"12 like model\.layers\.0.*64.* on_misfit=shrink\|skip",
        ):
            self.method.compress(model)
        assert not any(isinstance(module, CompressedLinear) for module in model.modules())

    def test_shrinking_is_counted(self) -> None:
        report = self.method.compress(tiny_model("llama"), context=Context(Layers(on_misfit=OnMisfit.shrink)))
        assert report.decisions == {"shrunk_group_size=64": 12}
        assert {layer.group_size for layer in report.parts} == {64, 128}

    def test_skipping_is_counted(self) -> None:
        report = self.method.compress(tiny_model("llama"), context=Context(Layers(on_misfit=OnMisfit.skip)))
        assert report.decisions == {"skipped": 12}
        assert len(report.parts) == 2

    def test_nothing_left_is_an_error(self) -> None:
        with pytest.raises(
            ValueError, match="leaves nothing to compress: group_size=100 does not divide 14 layers"
        ):
            SINQ(Grid(group_size=100)).compress(
                tiny_model("llama"), context=Context(Layers(on_misfit=OnMisfit.skip))
            )


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_named(value: float) -> None:
    model = tiny_model("llama")
    model.model.layers[1].mlp.up_proj.weight[3, 4] = value
    with pytest.raises(ValueError, match=r"model\.layers\.1\.mlp\.up_proj has NaN or Inf"):
        EIGHT.compress(model)


def test_experts_of_unknown_layout_are_refused() -> None:
    model = tiny_model("moe")
    del model.model.layers[0].mlp.experts.is_transposed
    with pytest.raises(ValueError, match=r"gate_up_proj is a 3-D parameter .* layers\.exclude"):
        EIGHT.compress(model)
    EIGHT.compress(
        model, context=Context(Layers(exclude=("lm_head", "gate_up_proj", "mlp.experts.down_proj")))
    )


def test_experts_are_dense_only_while_they_run() -> None:
    model = tiny_model("moe")
    EIGHT.compress(model)
    model(tiny_tokens())
    experts = model.model.layers[0].mlp.experts
    assert isinstance(experts.gate_up_proj, CompressedExperts)
    with pytest.raises(AttributeError):
        experts(torch.zeros(2, 3), None, None)
    assert isinstance(experts.gate_up_proj, CompressedExperts)


@pytest.mark.parametrize(
    ("text", "named"), [(None, r"has no sinq\.json"), ('{"format": 99, "edits": []}', "format is 99")]
)
def test_a_folder_that_is_not_ours_is_refused(text: str | None, named: str, tmp_path: Path) -> None:
    if text:
        (tmp_path / "sinq.json").write_text(text)
    with pytest.raises((FileNotFoundError, ValueError), match=named):
        sinq.load(tmp_path)


def test_a_checkpoint_may_only_name_compressed_weights(tmp_path: Path) -> None:
    model = tiny_model("llama")
    EIGHT.compress(model)
    sinq.save(model, tmp_path)
    layout = json.loads((tmp_path / "sinq.json").read_text())
    layout["edits"][0]["weight"]["name"] = "subprocess.Popen"
    layout["digest"] = _digest(layout)
    (tmp_path / "sinq.json").write_text(json.dumps(layout))
    with pytest.raises(
        ValueError, match=r"sinq.json: .*'subprocess.Popen' is not the name of a known CompressedWeight"
    ):
        sinq.load(tmp_path)


def test_parameters_that_ask_for_a_gradient_change_no_logits(architecture: str, tmp_path: Path) -> None:
    model, tokens = tiny_model(architecture).requires_grad_(), tiny_tokens()  # as transformers loads a model
    SINQ(Grid(group_size=16)).compress(model)
    assert any(parameter.requires_grad for parameter in model.parameters())
    with torch.no_grad():
        expected = model(tokens).logits
    logits = model(tokens).logits
    assert logits.requires_grad
    assert torch.equal(logits, expected)
    sinq.save(model, tmp_path)
    assert torch.equal(sinq.load(tmp_path)(tokens).logits, expected)
