"""What is done to a model is brought back by loading it, or saving it is refused."""

import json
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

import sinq
from sinq import SINQ, Grid
from sinq.checkpoint.former_layouts import KINDS
from sinq.common.named import named
from sinq.model.edits import Edit, edit, edit_as_json, edit_from_json, edits, unexplained
from tests.conftest import ROOT, tiny_model, tiny_tokens

METHOD = SINQ(Grid(bits=4, group_size=32))
OLD = ROOT / "tests/fixtures/at_9b1396a"


@dataclass(frozen=True)
class Widen(Edit):
    """A toy: another width for one MLP."""

    name: ClassVar[str] = "widen"
    block: int
    width: int

    def apply(self, model: Any) -> None:
        mlp, hidden = model.model.layers[self.block].mlp, model.config.hidden_size
        mlp.gate_proj, mlp.up_proj = (nn.Linear(hidden, self.width, bias=False) for _ in range(2))
        mlp.down_proj = nn.Linear(self.width, hidden, bias=False)


def test_every_architecture_comes_back_bit_for_bit(architecture: str, tmp_path: Path) -> None:
    model = tiny_model(architecture)
    METHOD.compress(model)
    assert unexplained(model) == []
    sinq.save(model, tmp_path)
    again = sinq.load(tmp_path)
    assert edits(again) == edits(model) != ()
    state, other = model.state_dict(), again.state_dict()
    assert state.keys() == other.keys()
    assert all(torch.equal(state[name], other[name]) for name in state)


def test_a_change_of_shape_and_weights_on_top_of_it_come_back_in_their_order(tmp_path: Path) -> None:
    model = tiny_model("llama")
    torch.manual_seed(1)
    edit(model, Widen(block=1, width=96))
    METHOD.compress(model)
    sinq.save(model, tmp_path)
    again = sinq.load(tmp_path)
    assert [type(change).__name__ for change in edits(again)] == ["Widen"] + ["ReplaceLinear"] * 14
    assert torch.equal(again(tiny_tokens()).logits, model.eval().requires_grad_(False)(tiny_tokens()).logits)


def test_a_copy_of_a_model_has_its_edits_and_does_not_share_them() -> None:
    model = tiny_model("llama")
    edit(model, Widen(0, 96))
    other = deepcopy(model)
    METHOD.compress(other)
    assert len(edits(model)) == 1
    assert len(edits(other)) == 15


def hook(model: Any) -> None:
    model.model.layers[0].mlp.down_proj.register_forward_pre_hook(lambda _, args: (args[0].round(),))


def shape(model: Any) -> None:
    model.model.layers[1].mlp.up_proj = nn.Linear(64, 96, bias=False)


def parameter(model: Any) -> None:
    model.model.layers[0].register_parameter("gain", nn.Parameter(torch.ones(3)))


def module(model: Any) -> None:
    model.model.norm = nn.LayerNorm(64, bias=False)


def submodule(model: Any) -> None:
    model.model.layers[0].add_module("adapter", nn.Linear(2, 2))


def forward(model: Any) -> None:
    model.model.layers[0].forward = lambda states, *_, **__: states


def missing(model: Any) -> None:
    del model.model.layers[1].mlp.down_proj


def tie(model: Any) -> None:
    model.lm_head.weight = model.model.embed_tokens.weight


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (hook, r"module model\.layers\.0\.mlp\.down_proj has hooks: hook\.<locals>\.<lambda>"),
        (shape, r"tensor model\.layers\.1\.mlp\.up_proj\.weight is \[96, 64\], not \[128, 64\]"),
        (parameter, r"tensor model\.layers\.0\.gain is unknown"),
        (module, r"module model\.norm is a LayerNorm, not a LlamaRMSNorm"),
        (submodule, r"module model\.layers\.0\.adapter is unknown"),
        (forward, r"module model\.layers\.0 has a forward of its own"),
        (missing, r"module model\.layers\.1\.mlp\.down_proj is gone"),
        (tie, r"tensors lm_head\.weight and model\.embed_tokens\.weight are one, against the configuration"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("compressed", [False, True])
def test_a_change_that_loading_would_not_bring_back_is_refused_by_name(
    change: Callable[[Any], None], reason: str, compressed: bool, tmp_path: Path
) -> None:
    model = tiny_model("llama")
    if compressed:
        METHOD.compress(model, context=sinq.Context(sinq.Layers(exclude=("lm_head", "mlp.*"))))
    change(model)
    with pytest.raises(ValueError, match=f"cannot be saved.*{reason}"):
        sinq.save(model, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_class_that_would_load_as_another_is_refused(tmp_path: Path) -> None:
    model = tiny_model("llama").model
    with pytest.raises(ValueError, match="it is a LlamaModel, which is loaded as a LlamaForCausalLM"):
        sinq.save(model, tmp_path)


def test_hooks_that_a_library_keeps_for_itself_are_no_change(tmp_path: Path) -> None:
    model = tiny_model("llama")
    METHOD.compress(model)
    model(tiny_tokens(), output_hidden_states=True, output_attentions=True)
    sinq.save(model, tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"name": "os.system", "version": 1}, "'os.system' is not the name of a known Edit"),
        (
            {"name": "widen", "version": 2, "block": 0, "width": 9},
            "widen has version 2; this code reads version 1",
        ),
        ({"name": "widen", "version": 1, "blocks": 0}, "widen does not take the options blocks"),
    ],
)
def test_edits_are_plain_json_and_only_known_ones_are_read(content: dict[str, Any], message: str) -> None:
    assert edit_from_json(json.loads(json.dumps(edit_as_json(Widen(1, 96))))) == Widen(1, 96)
    with pytest.raises(ValueError, match=message):
        edit_from_json(content)


def test_a_value_knows_how_to_move() -> None:
    value = METHOD.quantize(torch.randn(32, 64, generator=torch.Generator().manual_seed(0)))
    moved = value.to("meta")
    assert {tensor.device.type for tensor in moved.state_dict().values()} == {"meta"}
    assert (moved.shape, moved.config()) == (value.shape, value.config())


@pytest.mark.parametrize("folder", ["rotated_gptq", "streamed_gwq"])
def test_checkpoints_of_format_1_are_read(folder: str, tmp_path: Path) -> None:
    expected = torch.tensor(json.loads((OLD / "expected.json").read_text())[folder])
    model = sinq.load(OLD / folder)
    with sinq.using(sinq.Kernel.reference):
        torch.testing.assert_close(model(tiny_tokens(1, 8)).logits[0, -1], expected)
    sinq.save(model, tmp_path)  # as one of today's format
    assert json.loads((tmp_path / "sinq.json").read_text())["format"] == 3
    with sinq.using(sinq.Kernel.reference):
        assert torch.equal(sinq.load(tmp_path)(tiny_tokens(1, 8)).logits, model(tiny_tokens(1, 8)).logits)


def test_every_kind_of_format_1_is_known_by_a_name() -> None:
    assert [named(sinq.CompressedWeight, name) for name in KINDS.values()]
