"""Sources of models, and the facts that a run needs about a loaded model.

A source is a small frozen dataclass; `load` turns it into a `LoadedModel` once per process, so that a sweep
loads a model once. The dense model is never changed: `sparing_clone` copies its module tree while sharing
every tensor, and compression replaces modules of the copy.
"""

import copy
import enum
import hashlib
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import torch
from torch import nn

from experiments.common.cache import Entry, key
from experiments.models import smollm2
from sinq.common.library_errors import LIBRARY_ERRORS, reason

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

CHECKPOINT = ("*.safetensors", "*.json", "*.model", "*.txt", "*.jinja")
"""The files of a hub's repository that make a checkpoint."""
CONTEXT_NAMES = (
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",  # MPT, DBRX
    "context_length",  # RWKV
    "model_max_length",
    "max_target_positions",
    "seq_length",
)
"""Names that configurations have for the longest input."""
SETTLED_NS = 2 * 10**9
"""Nanoseconds after which a change of a file gives it another time, on any file system."""


class DType(enum.Enum):
    """The number format a model computes in. auto: float32 on a CPU, bfloat16 on an accelerator."""

    auto = None
    float32 = torch.float32
    bfloat16 = torch.bfloat16
    float16 = torch.float16

    def on(self, device: torch.device) -> torch.dtype:
        """Return the torch dtype on a device."""
        return self.value or (torch.float32 if device.type == "cpu" else torch.bfloat16)


@dataclass(frozen=True)
class ModelSource(ABC):
    """Source of a causal language model."""

    dtype: DType = DType.auto

    @abstractmethod
    def location(self) -> tuple[str, str | None]:
        """Return a local folder or hub id, and a revision. May download."""

    def folder(self) -> Path:
        """Return the local folder of the files. May download."""
        path, revision = self.location()
        if Path(path).is_dir():
            return Path(path)
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(path, revision=revision, allow_patterns=list(CHECKPOINT)))

    @abstractmethod
    def identity(self) -> dict[str, str | None]:
        """Return the facts that identify the model, wherever its files are."""


@dataclass(frozen=True)
class SmolLM2(ModelSource):
    """The embedded default (see `smollm2.py`)."""

    def location(self) -> tuple[str, str | None]:
        return str(smollm2.folder()), None

    def identity(self) -> dict[str, str | None]:
        return {"name": "smollm2", "sha256": smollm2.SHA256}


@dataclass(frozen=True)
class Pretrained(ModelSource):
    """Any Hugging Face causal language model: a hub id, or a local folder."""

    path: str = ""
    revision: str | None = None

    def __post_init__(self) -> None:
        if not self.path:
            raise ValueError("model.path is missing; give a hub id (Qwen/Qwen3-1.7B) or a local folder")

    def location(self) -> tuple[str, str | None]:
        folder = Path(self.path).expanduser()
        return str(folder) if folder.is_dir() else self.path, self.revision

    def identity(self) -> dict[str, str | None]:
        folder = Path(self.path).expanduser()
        if folder.is_dir():
            return {"name": folder.name, "fingerprint": fingerprint(folder)}
        return {"name": self.path, "revision": self.revision}


def fingerprint(folder: Path) -> str:
    """Return a hash of all configuration and weight files of a model's folder, 16 hexadecimal digits."""
    files = sorted(f for f in folder.iterdir() if f.suffix in (".json", ".safetensors", ".bin", ".model"))
    content = "".join(f"{file.name}:{_file_hash(file)}" for file in files)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _file_hash(file: Path) -> str:
    """Return the SHA-256 of a file's content, cached until the file changes: reading may take minutes.

    A file counts as changed when another one is there, or its length or times are others; the time of its
    last change of state cannot be set back. A file that was written just now is not cached: its next change
    may fall into the same tick of the clock.
    """
    stat = file.stat()
    changed = max(stat.st_mtime_ns, stat.st_ctime_ns)
    state = [stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
    entry = Entry("hashes", key(file=str(file.resolve()), state=state))
    if entry.intact:
        return entry.path.read_text()
    with file.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    if time.time_ns() - changed > SETTLED_NS:
        entry.write(digest.encode())
    return digest


@dataclass(frozen=True)
class LoadedModel:
    """A dense model in memory."""

    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    stored_dtype: torch.dtype
    """The number format of the checkpoint, which decides the dense model's bytes on disk."""
    commit: str | None = None
    """The hub's commit of the files; None for a local folder."""
    identity: Mapping[str, str | None] = field(default_factory=lambda: {"unknown": uuid4().hex})
    """Identifying facts (`ModelSource.identity`); a model made by hand gets a unique one."""

    @property
    def context(self) -> int:
        """Return the longest input the model was made for, in tokens."""
        config = self.model.config.get_text_config()
        known = (getattr(config, name, None) for name in CONTEXT_NAMES)
        return next((length for length in known if isinstance(length, int) and length > 0), 2**31)

    @property
    def tokenizer_hash(self) -> str:
        """Return a hash of everything that decides how text becomes tokens."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        state = backend.to_str() if backend is not None else str(sorted(self.tokenizer.get_vocab().items()))
        return hashlib.sha256(state.encode()).hexdigest()[:16]


@lru_cache(maxsize=1)
def load(source: ModelSource, device: torch.device) -> LoadedModel:
    """Return the model of a source, on a device, in evaluation mode.

    Raises:
        ValueError: it cannot be loaded; the message says why and what to do.
    """
    from transformers import AutoTokenizer

    from experiments.models.pretrained import load_pretrained

    path, revision = source.location()
    config, model = load_pretrained(path, revision, source.dtype.on(device))
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, revision=revision, trust_remote_code=False)
    except LIBRARY_ERRORS as error:
        raise ValueError(f"the tokenizer of model {path} cannot be loaded: {reason(error)}") from error
    model.requires_grad_(False)
    model.to(device)  # type: ignore[arg-type]
    return LoadedModel(
        model.eval(),
        tokenizer,
        config.dtype or torch.float32,  # type: ignore[arg-type]
        getattr(config, "_commit_hash", None),
        source.identity(),
    )


def sparing_clone(model: nn.Module) -> nn.Module:
    """Return a copy of a module tree that shares every parameter and buffer with the original."""
    shared = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in shared})
