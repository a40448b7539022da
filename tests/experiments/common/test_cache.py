"""The cache under damage: whatever happens to an entry, what is computed with it is what it was before."""

import hashlib
import logging
import os
import re
import resource
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from baselines.gptq import GPTQ
from baselines.rtn import RTN
from experiments.common import cache, files
from experiments.common.cache import CHECKSUM, Entry, key
from experiments.common.tensor_folder import TensorFolder
from experiments.data.text import Document, tokenize
from experiments.evaluation import Perplexity
from experiments.models import embedded, source
from experiments.models.embedded import SMOLLM2, Embedded
from experiments.models.learned_tokenizer import Tokens, learned_tokenizer
from experiments.models.source import LoadedModel, sparing_clone
from experiments.runs.calibration import _made_from
from experiments.runs.text_free import SelfGenerated, vocabulary
from sinq import SINQ, Calibration, Context, Grid, Layers
from sinq.common.atomic_files import SCRATCH, abandoned, scratch_prefix
from sinq.common.progress import silent
from tests.conftest import ROOT, tiny_model, tiny_tokenizer, tiny_tokens
from tests.damage import DAMAGES
from tests.experiments.tiny import subject

GRID = Grid(bits=3, group_size=32)
QUERIES = Layers(exclude=("lm_head", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"))


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SINQ_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(source, "SETTLED_NS", 0)  # files of a test are younger
    return tmp_path / "cache"


def new_process() -> None:
    """Forget what this process has compared."""
    cache._digest.cache_clear()
    cache._tidy.cache_clear()


def tokens(variant: int) -> list[int]:
    return tokenize(Document("some text " * (variant + 1), "here"), tiny_tokenizer(), "hash").tolist()


def distance(variant: int) -> dict[str, Any]:
    """Return KL and flips of a compressed model, for which the dense predictions are read."""
    dense = subject()
    dense = replace(dense, loaded=replace(dense.loaded, identity={"name": "tiny"}))
    dense.loaded.model.lm_head.weight.mul_(20)
    model: Any = sparing_clone(dense.model)
    SINQ(Grid(bits=2, group_size=32)).compress(model)
    options = Perplexity(windows=2 + variant, seqlen=16, top_k=8)
    return options.measure(replace(dense, model=model)).samples


def gptq(variant: int) -> list[float]:
    """Return the errors of a method that reads statistics of the dense model."""
    loaded = LoadedModel(tiny_model("llama"), tiny_tokenizer(), torch.float32, identity={"name": "tiny"})
    windows = tiny_tokens(2 + variant)
    store = TensorFolder(f"statistics/{_made_from(loaded, windows)}")
    model: Any = sparing_clone(loaded.model)
    GPTQ(RTN(GRID)).compress(model, Calibration(windows, sequential=False, store=store), Context(QUERIES))
    return [
        module.value.dequantize().double().sum().item()
        for module in model.modules()
        if hasattr(module, "value")
    ]


def fingerprint(variant: int, tmp_path: Path) -> str:
    checkpoint = tmp_path / f"model{variant}"
    if not checkpoint.exists():
        checkpoint.mkdir()
        (checkpoint / "model.safetensors").write_bytes(bytes([variant]) * 100)
    return source.fingerprint(checkpoint)


def converted(variant: int, monkeypatch: pytest.MonkeyPatch) -> float:
    """Return the sum of the embedded model's weights, as another model would have another one."""

    def convert(gguf: Path, path: Path) -> None:
        model = tiny_model("llama")
        model.lm_head.weight += variant
        model.save_pretrained(path)

    monkeypatch.setattr(Embedded, "_download", lambda self, scratch, gguf: gguf.write_bytes(b""))
    monkeypatch.setattr(embedded, "convert", convert)
    other = replace(SMOLLM2, stem=f"converted-{variant}", sha256=hashlib.sha256().hexdigest())
    loaded = type(tiny_model("llama")).from_pretrained(other.folder())
    return sum(weight.double().sum().item() for weight in loaded.parameters())


def sampled(variant: int) -> list[int]:
    loaded = LoadedModel(tiny_model("llama"), tiny_tokenizer(), torch.float32, identity={"name": "tiny"})
    source = SelfGenerated(samples=2, seqlen=16, seed=variant)
    return source.tokens(loaded, vocabulary(loaded), 16, silent).flatten().tolist()


def tokenizer(variant: int) -> list[int]:
    passage = Document(("few words\n", "many letters\n")[variant] * 4, "here")
    learned = learned_tokenizer(passage, Tokens.byte_pairs.fewest + 4, Tokens.byte_pairs)
    ids: list[int] = learned.encode("few words, many letters")
    return ids


KINDS = {"tokens", "reference", "statistics", "hashes", "converted", "sampled", "tokenizers"}


AS_CONVERTED = ("smollm2_tuned.py", "trained.py", "library.py")
"""Modules whose models are made, and kept, as `embedded.py` keeps the converted one (`made_once`), and the
one that fetches llama.cpp, whose archive has a hash of its own."""


def test_every_kind_of_entry_is_damaged_here() -> None:
    made = [
        (file.name, text.count(" Entry("))
        for file in (ROOT / "experiments").rglob("*.py")
        if "experiments.common.cache import" in (text := file.read_text()) and file.name not in AS_CONVERTED
    ]
    assert sum(count for _, count in made) == len(KINDS), made


@pytest.fixture(params=sorted(KINDS))
def kind(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[str, Callable[[int], Any]]:
    """Return the pattern of a kind's files in the cache, and what is computed with entries of it."""
    uses: dict[str, tuple[str, Callable[[int], Any]]] = {
        "tokens": ("tokens/*", tokens),
        "reference": ("reference/*", distance),
        "statistics": ("statistics/*/*q_proj*", gptq),
        "sampled": ("sampled/*", sampled),
        "tokenizers": ("tokenizers/*", tokenizer),
        "hashes": ("hashes/*", partial(fingerprint, tmp_path=tmp_path)),
        "converted": ("converted-*/model.safetensors", partial(converted, monkeypatch=monkeypatch)),
    }
    return uses[request.param]


def contents(folder: Path, pattern: str) -> list[Path]:
    return sorted(file for file in folder.glob(pattern) if file.suffix not in (CHECKSUM, ".lock"))


def checksum_of(file: Path) -> Path:
    entry = file.parent if file.name == "model.safetensors" else file
    return entry.with_name(entry.name + CHECKSUM)


@pytest.mark.parametrize("damage", [*DAMAGES, "gone", "no checksum", "garbage in its checksum"])
def test_a_damaged_entry_is_made_again(
    kind: tuple[str, Callable[[int], Any]], damage: str, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pattern, use = kind
    right = use(0)
    file = contents(folder, pattern)[0]
    whole = file.read_bytes()
    assert use(0) == right
    assert not caplog.records
    if damage == "gone":
        file.unlink()
    elif damage == "no checksum":
        checksum_of(file).unlink()
    elif damage == "garbage in its checksum":
        checksum_of(file).write_bytes(b"\xff")
    else:
        DAMAGES[damage](file)
        assert file.read_bytes() != whole
    new_process()
    with caplog.at_level(logging.INFO, "experiments.common"):
        assert use(0) == right
    assert file.read_bytes() == whole
    said = [record.getMessage() for record in caplog.records]
    reported = damage not in ("gone", "no checksum") or (
        damage == "gone" and file.name == "model.safetensors"
    )
    assert len([line for line in said if "is not what was written there" in line]) == reported
    new_process()
    caplog.clear()
    assert use(0) == right
    assert not caplog.records


@pytest.mark.parametrize("with_checksums", [False, True])
def test_entries_that_change_places_are_made_again(
    kind: tuple[str, Callable[[int], Any]], with_checksums: bool, folder: Path, tmp_path: Path
) -> None:
    pattern, use = kind
    right = [use(0), use(1)]
    assert right[0] != right[1]
    files = contents(folder, pattern)
    one, other = files[0], files[-1]
    pairs = [(one, other)] + [(checksum_of(one), checksum_of(other))] * with_checksums
    assert one.read_bytes() != other.read_bytes()
    for a, b in pairs:
        a.rename(tmp_path / "away")
        b.rename(a)
        (tmp_path / "away").rename(b)
    new_process()
    assert [use(0), use(1)] == right


@settings(max_examples=30, deadline=None)
@given(data=st.data(), size=st.integers(1, 64))
def test_any_other_content_is_seen(tmp_path_factory: pytest.TempPathFactory, data: Any, size: int) -> None:
    content = data.draw(st.binary(min_size=size, max_size=size))
    other = data.draw(st.binary(max_size=80).filter(lambda drawn: drawn != content))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SINQ_CACHE", str(tmp_path_factory.mktemp("cache")))
        entry = Entry("kind", "name")
        entry.write(content)
        assert entry.intact
        entry.path.write_bytes(other)
        new_process()
        assert not entry.intact


@pytest.mark.parametrize("change", ["moved", "added", "renamed", "emptied"])
def test_a_folder_counts_with_all_its_files(folder: Path, change: str) -> None:
    made = folder / "made"
    (made / "inner").mkdir(parents=True)
    for name in ("a", "b", "inner/c"):
        (made / name).write_text(name)
    entry = Entry("kind", "name")
    (folder / "kind").mkdir()
    entry.adopt(made)
    assert entry.intact
    path = entry.path
    if change == "moved":
        (path / "a").rename(path / "inner/a")
    elif change == "added":
        (path / "model.bin").write_text("")
    elif change == "renamed":
        (path / "b").rename(path / "d")
    else:
        shutil.rmtree(path)
        path.mkdir()
    new_process()
    assert not entry.intact


def test_a_name_is_of_what_it_was_made_from_and_of_the_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    first = key(a=1, b=[2])
    assert first == key(b=[2], a=1)
    assert len({first, key(a=2, b=[2]), key(a=1), key(a=1, b=[2], c=None)}) == 4
    monkeypatch.setattr(cache, "_versions", lambda: {"torch": "0.1"})
    assert key(a=1, b=[2]) != first


def test_statistics_of_other_windows_of_the_same_tokens_are_others() -> None:
    loaded = LoadedModel(tiny_model("llama"), tiny_tokenizer(), torch.float32, identity={"name": "tiny"})
    windows = tiny_tokens(4, 16)
    assert _made_from(loaded, windows) != _made_from(loaded, windows.reshape(2, 32))


def test_a_file_changed_to_as_many_bytes_at_the_same_time_has_another_hash(tmp_path: Path) -> None:
    before = fingerprint(0, tmp_path)
    file = tmp_path / "model0/model.safetensors"
    times = file.stat()
    file.write_bytes(b"x" * 100)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert file.stat().st_mtime_ns == times.st_mtime_ns
    assert fingerprint(0, tmp_path) != before


def test_the_hash_of_a_file_just_written_is_not_kept(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source, "SETTLED_NS", 10**12)
    fingerprint(0, tmp_path)
    assert not (folder / "hashes").exists()


@contextmanager
def full_disk(limit: int = 4096) -> Iterator[None]:
    """Let no file grow beyond so many bytes, as a disk that takes no more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("kind", ["tokens", "reference"], indirect=True)
def test_a_full_cache_is_named_and_leaves_nothing(
    kind: tuple[str, Callable[[int], Any]], folder: Path
) -> None:
    pattern, use = kind
    with (
        full_disk(64),
        pytest.raises(ValueError, match=re.escape(str(folder)) + ".* cannot be written: .*SINQ_CACHE"),
    ):
        use(0)
    assert contents(folder, pattern) == []


def test_what_killed_processes_left_is_swept_and_what_living_ones_write_is_not(folder: Path) -> None:
    kind = folder / "kind"
    kind.mkdir(parents=True)
    mine = kind / f"{scratch_prefix(kind / 'a')}x{SCRATCH}"
    dead = kind / mine.name.replace(f"-{os.getpid()}.", f"-{2**22 + 1}.")  # above the largest process id
    far = kind / f".a.elsewhere-{os.getpid()}.x{SCRATCH}"
    old = kind / f".b.elsewhere-1.x{SCRATCH}"
    for scratch in (mine, far, old):
        scratch.write_text("half")
    dead.mkdir()
    (dead / "half").write_text("half")
    long_ago = time.time() - 3 * 24 * 3600
    os.utime(old, (long_ago, long_ago))
    assert [abandoned(scratch) for scratch in (mine, dead, far, old)] == [False, True, False, True]
    new_process()
    Entry("kind", "entry").write(b"content")
    assert sorted(kind.glob(f".*{SCRATCH}")) == sorted([mine, far])
    files.sweep_abandoned(kind)
