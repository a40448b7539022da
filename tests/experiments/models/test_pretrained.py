"""Models through transformers: all tensors are from the files, or a refusal in the words of `stream`."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

import sinq
from experiments.models.source import Pretrained, load
from sinq import SINQ, Grid
from tests.conftest import tiny_model, tiny_tokenizer, tiny_tokens

DOWN = "model.layers.1.mlp.down_proj.weight"
Tensors = dict[str, Tensor]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_model("llama").save_pretrained(tmp_path / "tiny")
    tiny_tokenizer().save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


def change(folder: Path, act: Callable[[Tensors], object]) -> None:
    tensors = {name: tensor.clone() for name, tensor in load_file(folder / "model.safetensors").items()}
    act(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def change_config(folder: Path, **options: object) -> None:
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(content | options))


def refusals(folder: Path) -> tuple[str, str]:
    """The lines by which a folder is refused when it is loaded, and when it is streamed."""
    lines = []
    for act in (
        lambda: load(Pretrained(path=str(folder)), torch.device("cpu")),
        lambda: sinq.stream(folder, folder / "new", SINQ(Grid(group_size=16))),
    ):
        with pytest.raises((ValueError, FileNotFoundError)) as caught:
            act()
        assert "\n" not in str(caught.value)
        lines.append(str(caught.value))
    return lines[0], lines[1]


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda t: t.pop(DOWN), f"do not fit LlamaForCausalLM: missing {DOWN}"),
        (lambda t: t.pop("model.norm.weight"), "missing model.norm.weight"),
        (lambda t: t.pop("lm_head.weight"), "missing lm_head.weight"),
        (lambda t: t.update({"model.layers.0.more": torch.ones(1)}), "not of the model model.layers.0.more"),
        (lambda t: t.update({DOWN: torch.ones(64, 64)}), f"{DOWN} [64, 64], which is [64, 128] in the model"),
    ],
)
def test_files_that_do_not_fit_are_refused_in_the_same_words(
    folder: Path, act: Callable[[Tensors], object], message: str
) -> None:
    change(folder, act)
    loaded, streamed = refusals(folder)
    assert message in loaded
    assert loaded == streamed


@pytest.mark.parametrize(
    "options",
    [
        {"num_hidden_layers": 3},
        {"num_hidden_layers": 1},
        {"num_hidden_layers": 20_000},
        {"vocab_size": 2 * 10**9},
        {"hidden_size": 32},
        {"hidden_size": "x"},
        {"model_type": "bert"},
        {"num_attention_heads": 0},
    ],
)
def test_a_configuration_of_another_model_is_refused_in_the_same_words(
    folder: Path, options: dict[str, object]
) -> None:
    change_config(folder, **options)
    loaded, streamed = refusals(folder)
    assert loaded == streamed
    assert str(folder) in loaded


@pytest.mark.parametrize("content", [b"", b"garbage" * 100, None])
def test_a_damaged_file_is_a_line_that_names_it(folder: Path, content: bytes | None) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:5000] if content is None else content)
    loaded, streamed = refusals(folder)
    assert loaded == streamed
    assert "model.safetensors cannot be read" in loaded


def test_a_model_and_an_older_save_of_one_are_refused(folder: Path, tmp_path: Path) -> None:
    tiny_model("llama").save_pretrained(tmp_path / "shards", max_shard_size="40KB")
    for file in (tmp_path / "shards").glob("model*"):
        shutil.copyfile(file, folder / file.name)
    loaded, streamed = refusals(folder)
    assert loaded == streamed
    assert "delete one of them" in loaded


def test_an_index_does_not_lead_out_of_the_folder(folder: Path, tmp_path: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").rename(tmp_path / "x.safetensors")
    index = {"weight_map": dict.fromkeys(tensors, "../x.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    loaded, streamed = refusals(folder)
    assert loaded == streamed


def test_what_an_architecture_declares_ignorable_stays_so(folder: Path) -> None:
    expected = AutoModelForCausalLM.from_pretrained(folder)(tiny_tokens()).logits
    change(folder, lambda t: t.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}))
    found = load(Pretrained(path=str(folder)), torch.device("cpu")).model(tiny_tokens()).logits
    assert torch.equal(found, expected)


def test_tied_weights_need_not_be_stored(tmp_path: Path) -> None:
    folder = tmp_path / "tied"
    tiny_model("qwen3-tied").save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")
    load(Pretrained(path=str(folder)), torch.device("cpu"))


def test_a_folder_of_a_pickle_that_is_none_is_a_line(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"junk")
    with pytest.raises(ValueError, match=r"cannot be loaded|pytorch_model") as caught:
        load(Pretrained(path=str(folder)), torch.device("cpu"))
    assert "\n" not in str(caught.value)
