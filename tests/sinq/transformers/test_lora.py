"""Adapters of peft on compressed layers, against the same adapters on the dequantized model."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sinq import SINQ, CompressedLinear, Grid
from tests.conftest import tiny_model, tiny_tokens

peft = pytest.importorskip("peft")

from sinq.transformers.lora import adaptable  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore:Unsupported layer type"),
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing"),
]
LAYERS = ["q_proj", "down_proj"]


def config() -> Any:
    return peft.LoraConfig(target_modules=LAYERS, r=4, lora_alpha=8, init_lora_weights=False)


@pytest.fixture(scope="module")
def model() -> Any:
    model = tiny_model("llama")
    SINQ(Grid(bits=4, group_size=16)).compress(model)
    return model


def decoded(model: Any) -> Any:
    """The model with dense layers of the same values."""
    dense = copy.deepcopy(model)
    for name, layer in list(dense.named_modules()):
        if isinstance(layer, CompressedLinear):
            plain = nn.Linear(layer.in_features, layer.out_features, bias=False)
            plain.weight = nn.Parameter(layer.weight.dense(), requires_grad=False)
            dense.set_submodule(name, plain)
    return dense


def adapted(model: Any, adapter: Any) -> Any:
    torch.manual_seed(0)
    return peft.get_peft_model(copy.deepcopy(model), adapter).eval()


def gradients(model: Any) -> dict[str, torch.Tensor]:
    model(tiny_tokens(), labels=tiny_tokens()).loss.backward()
    return {name: part.grad for name, part in model.named_parameters() if part.requires_grad}


def test_outputs_and_gradients_are_those_of_the_dequantized_model(model: Any) -> None:
    ours, theirs = adapted(model, adaptable(config())), adapted(decoded(model), config())
    tokens = tiny_tokens()
    torch.testing.assert_close(ours(tokens).logits, theirs(tokens).logits, rtol=1e-3, atol=1e-3)
    assert (ours(tokens).logits - model(tokens).logits).abs().max() > 0.01
    found, expected = gradients(ours), gradients(theirs)
    assert found.keys() == expected.keys()
    assert len(found) == 2 * 2 * len(LAYERS)
    for name, gradient in expected.items():
        assert (found[name] - gradient).norm() < 0.01 * gradient.norm(), name


def test_a_saved_adapter_is_loaded_on_the_compressed_model(model: Any, tmp_path: Path) -> None:
    ours = adapted(model, adaptable(config()))
    ours.save_pretrained(tmp_path)
    read = adaptable(peft.LoraConfig.from_pretrained(tmp_path))
    again = peft.PeftModel.from_pretrained(copy.deepcopy(model), tmp_path, config=read).eval()
    assert torch.equal(again(tiny_tokens()).logits, ours(tiny_tokens()).logits)
    assert torch.equal(ours.unload()(tiny_tokens()).logits, model(tiny_tokens()).logits)


def test_merging_is_refused(model: Any) -> None:
    with pytest.raises(ValueError, match="cannot be merged into compressed weights"):
        adapted(model, adaptable(config())).merge_and_unload()


def test_peft_names_the_layer_where_it_was_not_told(model: Any) -> None:
    with pytest.raises(ValueError, match="CompressedLinear"):
        adapted(model, config())


def test_save_pretrained_of_a_model_with_an_adapter_writes_the_adapter(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.integrations.peft.check_peft_version", lambda **given: None)
    other = copy.deepcopy(model)
    other.add_adapter(adaptable(config()))
    other.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.glob("*adapter*")} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    assert not (tmp_path / "sinq.json").exists()
