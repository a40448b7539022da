"""A model is identified by what its files hold: the commit of a hub's model, the content of a folder."""

import shutil
from collections.abc import Callable
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from transformers import BertConfig, BertLMHeadModel, PreTrainedModel

from experiments.models.source import LoadedModel, Pretrained, hub_config, load, reads_ahead
from tests.conftest import CONFIGS, SMALL, tiny_model, tiny_tokenizer

COMMITS = ("a" * 40, "b" * 40)


@pytest.fixture
def point(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """A hub's cache with two commits of acme/tiny; calling it moves `main`."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("SINQ_CACHE", str(tmp_path / "cache"))
    repository = tmp_path / "hub/models--acme--tiny"
    for name in COMMITS:
        shutil.copytree(tiny_folder, repository / "snapshots" / name)
    (repository / "refs").mkdir()

    def move(name: str) -> None:
        (repository / "refs/main").write_text(name)
        hub_config.cache_clear()

    move(COMMITS[0])
    return move


def test_a_model_of_the_hub_counts_by_its_commit(point: Callable[[str], None]) -> None:
    source = Pretrained(path="acme/tiny")
    first = source.identity()
    assert first == {"name": "acme/tiny", "revision": None, "commit": COMMITS[0]}
    point(COMMITS[1])
    assert source.identity() == first | {"commit": COMMITS[1]}
    assert source.location() == ("acme/tiny", COMMITS[1])
    assert source.asked() == {"name": "acme/tiny", "revision": None}  # what tables look rows up by


def test_the_commit_stays_the_same_in_one_process(point: Callable[[str], None], tmp_path: Path) -> None:
    source = Pretrained(path="acme/tiny")
    first = source.location()
    (tmp_path / "hub/models--acme--tiny/refs/main").write_text(COMMITS[1])
    assert source.location() == first


def test_a_model_that_is_nowhere_is_an_error(point: Callable[[str], None]) -> None:
    with pytest.raises(ValueError, match=r"model acme/other cannot be loaded: .* must be a local folder"):
        Pretrained(path="acme/other").identity()
    with pytest.raises(
        ValueError, match=r"model\.path=/no/such/folder is not possible: there is no such folder"
    ):
        Pretrained(path="/no/such/folder").identity()


def test_a_folder_has_no_revision(tiny_folder: Path) -> None:
    with pytest.raises(ValueError, match=r"model\.revision=main is not possible: .* is a local folder"):
        Pretrained(path=str(tiny_folder), revision="main").identity()


@pytest.mark.parametrize(
    "name",
    ["merges.txt", "vocab.txt", "chat_template.jinja", "tokenizer.json", "spiece.model", "config.json"],
)
def test_every_file_that_may_decide_a_number_counts(
    name: str, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SINQ_CACHE", str(tmp_path / "cache"))
    source = Pretrained(path=str(tiny_folder))
    (tiny_folder / name).touch()
    before = source.identity()
    (tiny_folder / "README.md").write_text("not one of them")
    assert source.identity() == before
    (tiny_folder / name).write_text("other content")
    assert source.identity() != before


def test_the_state_of_a_python_tokenizer_is_in_its_hash() -> None:
    class Plain:
        """A tokenizer without a backend."""

        def __init__(self, **options: object) -> None:
            self.init_kwargs = options

        def get_vocab(self) -> dict[str, int]:
            return {"a": 0, "b": 1}

    def hashed(**options: object) -> str:
        return LoadedModel(None, Plain(**options), torch.float32).tokenizer_hash  # type: ignore[arg-type]

    assert hashed(add_bos_token=True) != hashed(add_bos_token=False)
    assert hashed(name_or_path="/here") == hashed(name_or_path="/there")


def bert(is_decoder: bool) -> PreTrainedModel:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    return BertLMHeadModel(BertConfig(**SMALL, **sizes, is_decoder=is_decoder)).eval()


def test_an_encoder_reads_ahead_and_a_decoder_does_not() -> None:
    assert reads_ahead(bert(is_decoder=False))
    assert not reads_ahead(bert(is_decoder=True))
    for architecture in CONFIGS:
        assert not reads_ahead(tiny_model(architecture)), architecture
    assert not reads_ahead(tiny_model("llama").to(torch.bfloat16))


def test_an_encoder_is_refused_when_it_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SINQ_CACHE", str(tmp_path / "cache"))
    bert(is_decoder=False).save_pretrained(tmp_path / "bert")
    tiny_tokenizer().save_pretrained(tmp_path / "bert")
    with pytest.raises(ValueError, match=r"bert \(BertLMHeadModel\) is an encoder"):
        load(Pretrained(path=str(tmp_path / "bert")), torch.device("cpu"))
