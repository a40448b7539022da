"""Folders of ours as models of transformers: against `sinq.load`, byte for byte, and in use."""

import copy
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, PreTrainedModel

import sinq
from sinq import SINQ, ActivationFormat, Activations, Grid, KeyValueFormat, KeyValues, StateFormat
from sinq.common.inside import exists
from sinq.model.attention import head_shapes, kept_layers
from sinq.model.edits import edit, edits
from sinq.model.key_value_edits import PrefixKeyValues, ShiftPositions, key_value_stores
from sinq.model.slicing import SliceBlock
from sinq.transformers import FolderConfig, quantizer
from tests.conftest import CONFIGS, tiny_model, tiny_tokenizer, tiny_tokens

METHOD = SINQ(Grid(bits=4, group_size=16))


@torch.no_grad()
def logits(model: Any, tokens: torch.Tensor | None = None) -> torch.Tensor:
    found: torch.Tensor = model(tiny_tokens() if tokens is None else tokens).logits
    return found


def compressed(architecture: str = "llama") -> PreTrainedModel:
    model = tiny_model(architecture)
    METHOD.compress(model)
    return model


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "model"
    sinq.save(compressed(), folder, tokenizer=tiny_tokenizer())
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "model"))


def loaded(folder: Path, **options: Any) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, **options)


def require_same(found: Any, expected: Any) -> None:
    """Compare all stored tensors, bit for bit, their types, and logits."""
    ours, theirs = sinq.stored_tensors(expected), sinq.stored_tensors(found)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype, name
        assert torch.equal(tensor.view(torch.uint8), theirs[name].view(torch.uint8)), name
    assert edits(found) == edits(expected)
    assert not found.training
    torch.testing.assert_close(logits(found), logits(expected), rtol=0, atol=0)


@pytest.mark.parametrize("architecture", sorted(CONFIGS))
def test_a_folder_is_loaded_as_by_the_library(architecture: str, tmp_path: Path) -> None:
    sinq.save(compressed(architecture), tmp_path)
    require_same(loaded(tmp_path), sinq.load(tmp_path))


def rounded_inputs() -> PreTrainedModel:
    model = tiny_model("llama")
    Activations(METHOD, ActivationFormat(bits=8)).compress(model)
    return model


def rounded_keys() -> PreTrainedModel:
    model = tiny_model("llama")
    KeyValues(METHOD, KeyValueFormat(StateFormat(4), StateFormat(4))).compress(model)
    return model


def behind_a_prefix() -> PreTrainedModel:
    model, ids = compressed(), (5, 7)
    shapes, kept = head_shapes(model), kept_layers(model, torch.tensor([ids]))
    for name, (heads, width) in shapes.items():
        edit(model, PrefixKeyValues(name, heads, width, len(ids)))
    edit(model, ShiftPositions(len(ids)))
    for name, store in key_value_stores(model).items():
        layer = kept[model.get_submodule(name).layer_idx]
        store.begin_with(layer.keys[0].clone(), layer.values[0].clone())
    return model


@pytest.mark.parametrize("make", [rounded_inputs, rounded_keys, behind_a_prefix])
def test_every_kind_of_edit_is_repeated(make: Callable[[], PreTrainedModel], tmp_path: Path) -> None:
    sinq.save(make(), tmp_path)
    require_same(loaded(tmp_path), sinq.load(tmp_path))


def test_sliced_models_are_loaded(tmp_path: Path) -> None:
    model = tiny_model("llama")
    edit(model, SliceBlock("model.layers.1", heads=4, kv_heads=4, neurons=96))
    for name, parameter in model.model.layers[1].named_parameters():  # which the edit leaves undefined
        nn.init.normal_(parameter) if "proj" in name else None
    METHOD.compress(model)
    sinq.save(model, tmp_path)
    assert loaded(tmp_path).model.layers[1].mlp.up_proj.weight.shape == (96, 64)
    require_same(loaded(tmp_path), sinq.load(tmp_path))


def test_folders_of_several_files_are_loaded(tiny_folder: Path, tmp_path: Path) -> None:
    sinq.stream(tiny_folder, tmp_path / "streamed", METHOD)
    assert exists(tmp_path / "streamed", "model.safetensors.index.json")
    require_same(loaded(tmp_path / "streamed"), sinq.load(tmp_path / "streamed"))


def test_dense_models_are_plain_folders(tmp_path: Path) -> None:
    sinq.save(tiny_model("llama"), tmp_path)
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dtype_is_that_of_dense_tensors_only(dtype: torch.dtype, saved: Path) -> None:
    model = loaded(saved, dtype=dtype)
    assert model.dtype == dtype
    require_same(model, sinq.load(saved, dtype=dtype))


@pytest.mark.parametrize("device_map", [{"": "cpu"}, "auto", "cpu"])
def test_devices_are_chosen_by_transformers(device_map: Any, saved: Path) -> None:
    require_same(loaded(saved, device_map=device_map), sinq.load(saved))


def test_a_tied_head_is_the_embedding(tmp_path: Path) -> None:
    sinq.save(compressed("qwen3-tied"), tmp_path)
    model = loaded(tmp_path)
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_saved_again_it_is_the_same_folder(saved: Path, tmp_path: Path) -> None:
    loaded(saved).save_pretrained(tmp_path)
    written = {path.name for path in tmp_path.iterdir()}
    assert {"config.json", "generation_config.json", "model.safetensors", "sinq.json"} <= written
    for name in written:
        assert (tmp_path / name).read_bytes() == (saved / name).read_bytes(), name


def test_a_model_that_was_compressed_here_is_saved_likewise(saved: Path, tmp_path: Path) -> None:
    compressed().save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == (saved / "model.safetensors").read_bytes()


def test_models_without_edits_are_saved_by_transformers(tmp_path: Path) -> None:
    tiny_model("llama").save_pretrained(tmp_path, max_shard_size="100KB")
    assert exists(tmp_path, "model.safetensors.index.json")
    assert not exists(tmp_path, "sinq.json")


def test_push_to_hub_sends_the_folder(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: dict[str, bytes] = {}

    class Hub:
        def create_repo(self, repo_id: str, **options: Any) -> Any:
            return type("Created", (), {"repo_id": repo_id})

        def create_commit(self, repo_id: str, operations: list[Any], **options: Any) -> None:
            sent.update({each.path_in_repo: Path(each.path_or_fileobj).read_bytes() for each in operations})

    monkeypatch.setattr("transformers.utils.hub.hf_api", Hub)
    card = type("Card", (), {"save": lambda self, path: Path(path).write_text("card")})()
    monkeypatch.setattr("transformers.utils.hub.create_and_tag_model_card", lambda *given, **options: card)
    loaded(saved).push_to_hub("someone/model")
    for name in ("model.safetensors", "sinq.json", "config.json"):
        assert sent[name] == (saved / name).read_bytes()


def test_sinq_json_is_fetched_from_the_hub(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers loads config and tensors into the cache; the snapshot lacks what it does not know."""
    commit = "0123456789" * 4
    repository = tmp_path / "cache/models--someone--model"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs/main").write_text(commit)
    snapshot = Path(shutil.copytree(folder, repository / "snapshots" / commit))
    (snapshot / "sinq.json").unlink()
    asked = []

    def fetch(source: str, name: str, revision: str, cache_dir: Path) -> None:
        asked.append((source, name, revision, cache_dir))
        shutil.copyfile(folder / name, snapshot / name)

    monkeypatch.setattr(quantizer, "cached_file", fetch)
    model = AutoModelForCausalLM.from_pretrained("someone/model", cache_dir=tmp_path / "cache")
    assert asked == [("someone/model", "sinq.json", commit, tmp_path / "cache")]
    require_same(model, sinq.load(folder))


def test_batches_with_padding_on_the_left_are_generated_as_alone(saved: Path) -> None:
    model, tokenizer = loaded(saved), tiny_tokenizer()
    tokenizer.pad_token, tokenizer.padding_side = "<pad>", "left"
    texts = ["one", "a longer text", "!"]
    options = {"max_new_tokens": 8, "do_sample": False}
    batch = tokenizer(texts, return_tensors="pt", padding=True, return_token_type_ids=False)
    together = model.generate(**batch, **options)
    for text, row in zip(texts, together, strict=True):
        alone = model.generate(**tokenizer(text, return_tensors="pt", return_token_type_ids=False), **options)
        new = alone[0, len(text) :]
        assert torch.equal(row[batch["input_ids"].shape[1] :][: len(new)], new)


@pytest.mark.parametrize("again", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_are_models_of_their_kind(again: Callable[[Any], Any], saved: Path, tmp_path: Path) -> None:
    model = loaded(saved)
    other = again(model)
    with torch.no_grad():
        model.model.embed_tokens.weight.zero_()
    require_same(other, sinq.load(saved))
    other.save_pretrained(tmp_path)
    assert (tmp_path / "sinq.json").read_bytes() == (saved / "sinq.json").read_bytes()


def test_casts_keep_stored_numbers(saved: Path) -> None:
    require_same(loaded(saved).to(torch.bfloat16), sinq.load(saved).to(torch.bfloat16))  # type: ignore
    with pytest.raises(ValueError, match="not supported for quantized model"):
        loaded(saved).half()


@pytest.mark.slow
def test_a_compiled_model_is_one_graph(saved: Path) -> None:
    model = loaded(saved)
    graphs = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(logits(graphs), logits(model), rtol=0, atol=0)


def refusal(act: Callable[[], object]) -> str:
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        act()
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_damaged_folders_are_refused(folder: Path) -> None:
    file = folder / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert "damaged" in refusal(lambda: loaded(folder))
    (folder / "sinq.json").unlink()
    assert "no sinq.json" in refusal(lambda: loaded(folder))


def test_other_classes_are_refused(saved: Path) -> None:
    assert "LlamaModel" in refusal(lambda: AutoModel.from_pretrained(saved))


def test_what_cannot_be_loaded_is_said(saved: Path, tiny_folder: Path) -> None:
    assert "disk" in refusal(lambda: loaded(saved, device_map={"model": "disk", "lm_head": "cpu"}))
    assert "SINQ().compress(model)" in refusal(
        lambda: loaded(tiny_folder, quantization_config=FolderConfig())
    )
    plain = sinq.load(saved)
    tensors = sinq.stored_tensors(plain)
    assert "state_dict" in refusal(
        lambda: type(plain).from_pretrained(None, config=plain.config, state_dict=tensors)
    )
    assert "bits" in refusal(lambda: FolderConfig(bits=4))


@pytest.mark.parametrize(
    "option", [{"max_shard_size": "1MB"}, {"variant": "fp16"}, {"state_dict": {"a": torch.ones(1)}}]
)
def test_what_cannot_be_saved_is_said(option: dict[str, Any], saved: Path, tmp_path: Path) -> None:
    assert next(iter(option)) in refusal(lambda: loaded(saved).save_pretrained(tmp_path, **option))
    assert not list(tmp_path.iterdir())


def test_only_the_main_process_writes(saved: Path, tmp_path: Path) -> None:
    loaded(saved).save_pretrained(tmp_path, is_main_process=False)
    assert not list(tmp_path.iterdir())
