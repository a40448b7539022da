"""Folders as data: what is in them, what they name, and what a save that was killed leaves."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    LlamaConfig,
    LlamaForSequenceClassification,
    LlamaModel,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

import sinq
from sinq import SINQ, Grid
from sinq.checkpoint import folder as saving
from sinq.common.atomic_files import replacing
from sinq.common.inside import regular_file
from tests.conftest import BODY, SMALL, tiny_model, tiny_tokens

METHOD = SINQ(Grid(bits=4, group_size=16))
UP = "model.layers.1.mlp.up_proj"


def compressed(seed: int = 0) -> PreTrainedModel:
    model = tiny_model("llama")
    if seed:
        torch.manual_seed(seed)
        for parameter in model.parameters():
            parameter.copy_(0.1 * torch.randn_like(parameter))
    METHOD.compress(model)
    return model


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "model"
    sinq.save(compressed(), folder)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "model"))


def refusal(folder: Path, act: Callable[[Path], object] = sinq.load) -> str:
    """The one line by which a folder is refused."""
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        act(folder)
    message = str(caught.value)
    assert "\n" not in message
    assert str(folder) in message
    return message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cannot be read"),
        ("[]", "is not an object"),
        ("{}", "'format' is missing"),
        ("null", "not an object"),
        ('{"format": 3', "incomplete or damaged"),
        ('{"format": 3, "format": 3}', "given twice"),
        ('{"format": 4}', "this version reads 1, 2, 3"),
        ('{"format": [1]}', "must be of type int"),
        ('{"format": true}', "must be of type int"),
        ('{"format": 2}', "see edits"),
        ('{"format": 2, "edits": [], "digest": ""}', "see digest"),
        ('{"format": 2, "edits": {}}', "type list"),
        ('{"format": 3, "edits": [], "checksums": {}, "digest": ""}', "digest is not that of the content"),
        ('{"format": 1, "places": [1]}', "is not an object"),
        ('{"format": 1, "places": [{}]}', "'values' is missing"),
        ('{"format": 2, "edits": [[]]}', "is not an object"),
        ('{"format": 2, "edits": [{"name": 1}]}', "type str"),
        ('{"format": 2, "edits": [{"name": "os.system", "version": 1}]}', "not the name of a known Edit"),
        ("[" * 100_000, "cannot be read"),
        ("\xff\xfe", "cannot be read"),
        ('{"format": NaN}', "must be of type int"),
    ],
)
def test_a_layout_of_any_form_is_refused_in_a_line(folder: Path, text: str, message: str) -> None:
    (folder / "sinq.json").write_text(text, encoding="latin-1")
    assert message in refusal(folder)


def as_format_2(folder: Path, change: Callable[[list[Any]], object]) -> None:
    """Write the layout as one without checksums, with other edits."""
    edits = json.loads((folder / "sinq.json").read_text())["edits"]
    change(edits)
    (folder / "sinq.json").write_text(json.dumps({"format": 2, "edits": edits}))


def option(name: str, value: object) -> Callable[[list[Any]], object]:
    return lambda edits: edits[0].__setitem__(name, value)


def described(name: str, tensor: object) -> Callable[[list[Any]], object]:
    return lambda edits: edits[0]["weight"]["tensors"].__setitem__(name, tensor)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (option("layer", "model.nope"), "has no layer model.nope"),
        (option("layer", "model.norm"), "model.norm is a LlamaRMSNorm; a linear layer was compressed"),
        (option("layer", "model.layers"), "a linear layer was compressed"),
        (option("layer", 3), "must be of type str"),
        (option("layer", "model.layers.0.mlp.up_proj"), "is compressed as 64×64; the model has it as 128×64"),
        (lambda edits: edits.append(edits[0]), "is a CompressedLinear; a linear layer was compressed"),
        (lambda edits: edits.pop(), "not of the model"),
        (option("weight", []), "is not an object"),
        (option("weight", {"name": "os.system"}), "'tensors' is missing"),
        (lambda edits: edits[0]["weight"].__setitem__("name", "os.system"), "not the name of a known"),
        (
            lambda edits: edits[0]["weight"]["tensors"].__setitem__("codes", ["load", [1]]),
            "a type and a shape",
        ),
        (
            lambda edits: edits[0]["weight"]["tensors"].__setitem__("codes", ["uint8", [2**62, 2**62]]),
            "no tensor's",
        ),
        (lambda edits: edits[0]["weight"]["tensors"].__setitem__("more", ["uint8", [1]]), "unknown more"),
    ],
)
def test_edits_that_do_not_fit_the_model_are_refused_by_name(
    folder: Path, change: Callable[[list[Any]], object], message: str
) -> None:
    as_format_2(folder, change)
    line = refusal(folder)
    assert message in line
    assert "sinq.json" in line or "not of the model" in line


def test_a_folder_without_checksums_is_still_read(folder: Path) -> None:
    expected = sinq.load(folder)(tiny_tokens()).logits
    as_format_2(folder, lambda edits: None)
    assert torch.equal(sinq.load(folder)(tiny_tokens()).logits, expected)


def with_tensor(folder: Path, name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    tensors = {key: tensor.clone() for key, tensor in load_file(folder / "model.safetensors").items()}
    tensors[name] = change(tensors[name])
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_a_changed_bit_of_any_tensor_is_found(folder: Path) -> None:
    for name in (f"{UP}.weight.codes", f"{UP}.weight.scale", "model.norm.weight"):
        whole = (folder / "model.safetensors").read_bytes()
        with_tensor(folder, name, lambda x: (x.view(torch.uint8) ^ 1).view(x.dtype))
        assert f"{name}; the files are damaged, or of two saves" in refusal(folder)
        (folder / "model.safetensors").write_bytes(whole)
    sinq.load(folder)


@pytest.mark.parametrize("after", range(4))
def test_a_save_over_another_that_is_killed_is_whole_or_not_loaded(
    folder: Path, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files are replaced in an order; after each, the process ends as by a kill."""
    old, new = sinq.load(folder)(tiny_tokens()).logits, compressed(seed=1)
    honest, done = os.replace, []

    class Killed(BaseException):
        pass

    def replace(*paths: Any) -> None:
        if len(done) == after:
            raise Killed
        done.append(paths)
        honest(*paths)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(Killed):
        sinq.save(new, folder)
    monkeypatch.undo()
    with pytest.raises(FileNotFoundError, match=r"has no sinq\.json"):
        sinq.load(folder)
    sinq.save(new, folder)
    found = sinq.load(folder)(tiny_tokens()).logits
    assert not torch.equal(found, old)
    assert torch.equal(found, new(tiny_tokens()).logits)


def test_a_save_that_fails_leaves_the_old_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = sinq.load(folder)(tiny_tokens()).logits

    def full(*_: object, **__: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(saving, "save_file", full)
    with pytest.raises(OSError, match="no space left"):
        sinq.save(compressed(seed=1), folder)
    assert torch.equal(sinq.load(folder)(tiny_tokens()).logits, expected)
    assert not list(folder.glob(".*"))


def test_files_of_two_saves_are_not_mixed(folder: Path, tmp_path: Path) -> None:
    sinq.save(compressed(seed=1), tmp_path / "other")
    shutil.copyfile(tmp_path / "other/model.safetensors", folder / "model.safetensors")
    assert "of two saves" in refusal(folder)


def in_two_files(folder: Path, name: str) -> Path:
    """Write the tensors as a shard of a name, with an index."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").rename(folder / "real.safetensors")
    index = {"weight_map": dict.fromkeys(tensors, name)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder / "real.safetensors"


def readers(source: Path) -> list[Callable[[Path], object]]:
    return [sinq.load, lambda folder: sinq.stream(folder, source / "streamed", METHOD)]


@pytest.mark.parametrize("reader", [0, 1])
@pytest.mark.parametrize(
    "name", ["../real.safetensors", "/real.safetensors", "a/../../real.safetensors", "", "\0", "."]
)
def test_an_index_names_files_of_its_folder(folder: Path, tmp_path: Path, name: str, reader: int) -> None:
    real = in_two_files(folder, str(tmp_path / "real.safetensors") if name.startswith("/") else name)
    shutil.copyfile(real, tmp_path / "real.safetensors")
    assert "model.safetensors.index.json lists it" in refusal(folder, readers(tmp_path)[reader])


def test_links_out_of_a_folder_devices_and_pipes_are_refused(folder: Path, tmp_path: Path) -> None:
    for name in ("model.safetensors", "sinq.json", "config.json", "generation_config.json"):
        path, outside = folder / name, tmp_path / name
        shutil.move(path, outside)
        path.symlink_to(outside)
        assert f"{name} is a link out of its folder" in refusal(folder)
        path.unlink()
        path.symlink_to("/dev/zero")
        assert "out of its folder" in refusal(folder)
        path.unlink()
        os.mkfifo(path)
        assert f"{name} is not a regular file" in refusal(folder)
        path.unlink()
        path.symlink_to(name)  # to itself
        assert name in refusal(folder)
        path.unlink()
        shutil.move(outside, path)
    sinq.load(folder)


def test_the_cache_of_the_hub_is_a_folder_of_links(folder: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "models--a--b/snapshots/c0ffee"
    blobs = tmp_path / "models--a--b/blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, path in enumerate(folder.iterdir()):
        shutil.copyfile(path, blobs / str(number))
        (snapshot / path.name).symlink_to(f"../../blobs/{number}")
    sinq.load(snapshot)
    (snapshot / "config.json").unlink()
    (snapshot / "config.json").symlink_to(folder / "config.json")
    assert "a link out of its folder" in refusal(snapshot)
    linked = tmp_path / "linked"
    linked.symlink_to(folder)  # the folder itself may be one
    sinq.load(linked)
    assert regular_file(linked, "config.json") == linked / "config.json"


@pytest.mark.parametrize(
    "index",
    ["[]", "{", '{"weight_map": 3}', '{"weight_map": {"a": 3}}', '{"weight_map": {"a": ["x"]}}', "{}"],
)
def test_an_index_of_any_form_is_refused_in_a_line(folder: Path, tmp_path: Path, index: str) -> None:
    in_two_files(folder, "real.safetensors")
    (folder / "model.safetensors.index.json").write_text(index)
    for reader in readers(tmp_path):
        assert "model.safetensors.index.json" in refusal(folder, reader)


def dense(folder: Path) -> Path:
    tiny_model("llama").save_pretrained(folder)
    return folder


def change_config(folder: Path, **options: object) -> None:
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(content | options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_hidden_layers": 20_000}, "num_hidden_layers=20000; the files hold"),
        ({"num_hidden_layers": 2_000_000_000}, "num_hidden_layers=2000000000; the files hold"),
        ({"num_hidden_layers": 900}, "far more than there are tensors"),
        ({"num_hidden_layers": 3}, "missing model.layers.2."),
        ({"vocab_size": 2_000_000_000}, "which is [2000000000, 64] in the model"),
        ({"hidden_size": 10**12, "intermediate_size": 10**12}, "config.json"),
        ({"hidden_size": "64"}, "config.json"),
        ({"hidden_size": -64}, "config.json"),
        ({"num_attention_heads": 0}, "config.json"),
        ({"model_type": "nonsense"}, "config.json"),
        ({"model_type": 3}, "has no model_type"),
        ({"model_type": "bert"}, "do not fit BertForMaskedLM: missing"),
        ({"model_type": "t5"}, "no causal language model of a T5Config"),
        ({"attn_implementation": "someone/kernel"}, "would run code from elsewhere"),
        ({"auto_map": {"AutoConfig": "code.Config"}, "model_type": "nonsense"}, "config.json"),
    ],
)
def test_an_absurd_configuration_is_refused_before_memory_is_taken(
    tmp_path: Path, folder: Path, options: dict[str, object], message: str
) -> None:
    change_config(dense(tmp_path / "dense"), **options)
    line = refusal(tmp_path / "dense", lambda source: sinq.stream(source, tmp_path / "new", METHOD))
    assert message in line
    change_config(folder, **options)
    refusal(folder)


def test_both_an_index_and_a_single_file_are_refused(tmp_path: Path) -> None:
    source = dense(tmp_path / "dense")
    tiny_model("llama").save_pretrained(tmp_path / "shards", max_shard_size="40KB")
    for file in (tmp_path / "shards").glob("model*"):
        shutil.copyfile(file, source / file.name)
    line = refusal(source, lambda folder: sinq.stream(folder, tmp_path / "new", METHOD))
    assert "delete one of them" in line


@pytest.mark.parametrize("content", [b"", b"\0" * 100, b"garbage" * 100])
def test_a_file_that_is_no_safetensors_is_named(folder: Path, tmp_path: Path, content: bytes) -> None:
    (folder / "model.safetensors").write_bytes(content)
    for reader in readers(tmp_path):
        assert "model.safetensors cannot be read" in refusal(folder, reader)


@pytest.mark.parametrize(
    "make",
    [
        lambda: LlamaModel(LlamaConfig(**SMALL, **BODY, intermediate_size=128)),
        lambda: LlamaForSequenceClassification(LlamaConfig(**SMALL, **BODY, intermediate_size=128)),
        lambda: T5ForConditionalGeneration(
            T5Config(vocab_size=96, d_model=64, d_kv=16, d_ff=128, num_layers=1, num_heads=4)
        ),
    ],
)
def test_a_model_that_load_could_not_make_is_not_saved(make: Callable[[], Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is loaded as a|no causal language model") as caught:
        sinq.save(make(), tmp_path / "new")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "new").exists()


SETTINGS = GenerationConfig(eos_token_id=[2, 7, 9], do_sample=True, temperature=0.6, pad_token_id=0)


def test_save_and_stream_write_the_same_settings(tmp_path: Path) -> None:
    model = tiny_model("llama")
    model.generation_config = SETTINGS
    model.save_pretrained(tmp_path / "dense")
    METHOD.compress(model)
    sinq.save(model, tmp_path / "saved")
    sinq.stream(tmp_path / "dense", tmp_path / "streamed", METHOD)
    for name in ("saved", "streamed"):
        assert sinq.load(tmp_path / name).generation_config.eos_token_id == [2, 7, 9]
    beside = {"config.json", "generation_config.json", "sinq.json", "README.md"}
    saved, streamed = ({file.name for file in (tmp_path / name).iterdir()} for name in ("saved", "streamed"))
    assert saved == beside | {"model.safetensors"}
    assert {name for name in streamed if "model" not in name} == beside | {"stream.json"}
    first, second = ((tmp_path / name / "generation_config.json") for name in ("saved", "streamed"))
    assert json.loads(first.read_text()) == json.loads(second.read_text())
    (tmp_path / "saved/generation_config.json").write_text("[]")
    assert "generation_config.json" in refusal(tmp_path / "saved")


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"format": 3, "identity": {}, "done": []}', '{"format": 2}']
)
def test_a_journal_of_any_form_is_refused_in_a_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "new").mkdir()
    (tmp_path / "new/stream.json").write_text(text)
    source = dense(tmp_path / "dense")
    assert "stream.json" in refusal(tmp_path / "new", lambda target: sinq.stream(source, target, METHOD))


def test_a_finished_file_that_was_changed_is_made_again(tmp_path: Path) -> None:
    source = dense(tmp_path / "dense")
    sinq.stream(source, tmp_path / "new", METHOD)
    file = sorted((tmp_path / "new").glob("model-*"))[1]
    whole = file.read_bytes()
    (tmp_path / "new/sinq.json").unlink()
    with replacing(file) as scratch:
        scratch.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    sinq.stream(source, tmp_path / "new", METHOD)
    assert file.read_bytes() == whole
    sinq.load(tmp_path / "new")


@pytest.mark.parametrize("assign", [False, True])
def test_loaded_and_replaced_buffers_are_what_computes(assign: bool) -> None:
    model, other = compressed(), compressed(seed=1)
    model.load_state_dict(other.state_dict(), assign=assign)
    assert torch.equal(model(tiny_tokens()).logits, other(tiny_tokens()).logits)
    third = compressed()
    for mine, theirs in zip(third.modules(), other.modules(), strict=True):
        for name, buffer in theirs.named_buffers(recurse=False):
            mine._buffers[name] = buffer  # as accelerate does
    third.load_state_dict(
        {k: v for k, v in other.state_dict().items() if v.is_floating_point()}, strict=False
    )
    assert torch.equal(third(tiny_tokens()).logits, other(tiny_tokens()).logits)
    state = model.state_dict() | {f"{UP}.weight.codes": torch.zeros(8, dtype=torch.uint8)}
    before = model(tiny_tokens()).logits
    with pytest.raises(RuntimeError, match=rf"{UP}.*codes is uint8 \[8\]"):
        model.load_state_dict(state, assign=assign)
    assert torch.equal(model(tiny_tokens()).logits, before)


def test_a_streamed_folder_without_stored_settings_has_those_of_the_configuration(tmp_path: Path) -> None:
    source = dense(tmp_path / "dense")
    (source / "generation_config.json").unlink()
    sinq.stream(source, tmp_path / "new", METHOD)
    expected = AutoModelForCausalLM.from_pretrained(source).generation_config
    assert sinq.load(tmp_path / "new").generation_config.eos_token_id == expected.eos_token_id
