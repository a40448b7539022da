"""Sources of models, and the facts that a run needs about a loaded model.

A source is a small frozen dataclass; `load` turns it into a `LoadedModel` once per process, so that a sweep
loads a model once. The dense model is never changed: `sparing_clone` copies its module tree while sharing
every tensor, and compression replaces modules of the copy.
"""

import enum
import hashlib
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import torch
from torch import Tensor

from experiments.common.cache import Entry, key
from experiments.common.network import prepare_hub
from experiments.models.embedded import GEMMA3, SMOLLM2
from experiments.models.refusals import UnfitModelError, cannot_be_loaded
from sinq.checkpoint.foreign.formats import stated_quantization
from sinq.checkpoint.foreign.reader import ForeignModel, load_foreign
from sinq.common.library_errors import library_errors, reason
from sinq.common.options import check
from sinq.model.language_model import Predicts, predicts
from sinq.model.sharing import sparing_clone as sparing_clone  # noqa: PLC0414 - its users know it from here

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
DECIDING = (".json", ".safetensors", ".bin", ".model", ".txt", ".jinja")
"""Endings of the files that may decide a number: weights, configuration, tokenizer, templates."""
PROBE_TOKENS = 8


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
    """Source of a language model."""

    dtype: DType = DType.auto

    def __post_init__(self) -> None:
        check(self, "model")

    @abstractmethod
    def location(self) -> tuple[str, str | None]:
        """Return a local folder or hub id, and the commit of a hub's model. May download."""

    def folder(self) -> Path:
        """Return the local folder of the files. May download."""
        path, commit = self.location()
        if Path(path).is_dir():
            return Path(path)
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(path, revision=commit, allow_patterns=list(CHECKPOINT)))

    @abstractmethod
    def asked(self) -> dict[str, str | None]:
        """Return the facts known about the model without asking the hub; tables find rows by them."""

    def identity(self) -> dict[str, str | None]:
        """Return the facts that identify the content of the model, wherever its files are."""
        return self.asked()

    @property
    def is_made(self) -> bool:
        """Return False where `identity` must first train the model here."""
        return True

    @property
    def is_quantized(self) -> bool:
        """Return True if the checkpoint holds matrices that another project quantized."""
        return False


@dataclass(frozen=True)
class SmolLM2(ModelSource):
    """The embedded default, of 135 million parameters (see `embedded.py`)."""

    def location(self) -> tuple[str, str | None]:
        return str(SMOLLM2.folder()), None

    def asked(self) -> dict[str, str | None]:
        return {"name": SMOLLM2.name, "sha256": SMOLLM2.sha256}


@dataclass(frozen=True)
class Gemma3(ModelSource):
    """Gemma 3 of 270 million parameters, most of them in its embedding (see `embedded.py`)."""

    def location(self) -> tuple[str, str | None]:
        return str(GEMMA3.folder()), None

    def asked(self) -> dict[str, str | None]:
        return {"name": GEMMA3.name, "sha256": GEMMA3.sha256}


@dataclass(frozen=True)
class Pretrained(ModelSource):
    """Any Hugging Face language model, causal or masked: a hub id, or a local folder.

    A local folder is identified by the content of its files, a hub's model by the commit that its revision
    means now. The files of that commit are the ones that are loaded.

    Raises:
        ValueError: no path, or a type is wrong. Later: the folder has a revision, the hub has no such model.
    """

    path: str = ""
    revision: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.path:
            raise ValueError("model.path is missing; give a hub id (Qwen/Qwen3-1.7B) or a local folder")

    def location(self) -> tuple[str, str | None]:
        folder = self._folder()
        return (self.path, commit(self.path, self.revision)) if folder is None else (str(folder), None)

    def asked(self) -> dict[str, str | None]:
        folder = self._folder()
        if folder is None:
            return {"name": self.path, "revision": self.revision}
        return {"name": folder.name, "fingerprint": fingerprint(folder)}

    def identity(self) -> dict[str, str | None]:
        on_hub = {} if self._folder() else {"commit": commit(self.path, self.revision)}
        return self.asked() | on_hub

    @property
    def is_quantized(self) -> bool:
        folder = self._folder() or hub_config(self.path, self.revision).parent
        return stated_quantization(folder) is not None

    def _folder(self) -> Path | None:
        """Return the local folder; None for a model of the hub."""
        folder = Path(self.path).expanduser()
        if folder.is_dir() and self.revision is not None:
            raise ValueError(
                f"model.revision={self.revision} is not possible: model.path={self.path} is a local folder,"
                " which has no revisions; leave model.revision out"
            )
        return folder if folder.is_dir() else None


def commit(path: str, revision: str | None) -> str:
    """Return the commit that a revision of a hub's model means, the same for the life of this process.

    It is read from the path of `config.json` in the hub's cache.

    Raises:
        ValueError: as for `hub_config`.
    """
    config = hub_config(path, revision)
    name = config.parent.name
    if not re.fullmatch("[0-9a-f]{40}", name):
        raise ValueError(f"model {path} has no commit: its file is {config}; give a local folder instead")
    return name


@lru_cache(maxsize=64)
def hub_config(path: str, revision: str | None) -> Path:
    """Return the `config.json` of a hub's model in the hub's cache.

    With a network the hub is asked; without one it is that of the files in the cache.

    Raises:
        ValueError: the hub has no such model, or it cannot be asked and the cache has none.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HFValidationError

    prepare_hub()
    try:
        return Path(hf_hub_download(path, "config.json", revision=revision))
    except HFValidationError as error:
        raise ValueError(
            f"model.path={path} is not possible: there is no such folder here,"
            " and a hub's model is named like Qwen/Qwen3-1.7B"
        ) from error
    except (OSError, ValueError) as error:
        raise ValueError(cannot_be_loaded(path, error)) from error


def fingerprint(folder: Path) -> str:
    """Return a hash of every file of a model's folder that may decide a number, 16 hexadecimal digits."""
    files = sorted(f for f in folder.iterdir() if f.suffix in DECIDING and f.is_file())
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
    """A model in memory: dense, or as another project quantized it."""

    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    stored_dtype: torch.dtype
    """The number format of the checkpoint, which decides the dense model's bytes on disk."""
    commit: str | None = None
    """The hub's commit of the files; None for a local folder."""
    identity: Mapping[str, str | None] = field(default_factory=lambda: {"unknown": uuid4().hex})
    """Identifying facts (`ModelSource.identity`); a model made by hand gets a unique one."""
    foreign: "ForeignModel | None" = None
    """The checkpoint, with a report of its matrices, where another project quantized it."""

    @property
    def context(self) -> int:
        """Return the longest input the model was made for, in tokens."""
        config = self.model.config.get_text_config()
        known = (getattr(config, name, None) for name in CONTEXT_NAMES)
        return next((length for length in known if isinstance(length, int) and length > 0), 2**31)

    def refuse_unknown(self, tokens: Tensor) -> None:
        """Raise `ValueError` if a token id, int64 of any shape, is beyond the model's embedding."""
        known = getattr(self.model.get_input_embeddings(), "num_embeddings", None)
        largest = int(tokens.max()) if tokens.numel() else 0
        if known is not None and largest >= known:
            raise UnfitModelError(
                f"the tokenizer gives token {largest}, but the model's embedding has {known} tokens"
                f" ({self.identity.get('name', 'model')}); the two do not belong together"
            )

    @property
    def predicts(self) -> Predicts:
        return predicts(self.model.config)

    @property
    def tokenizer_hash(self) -> str:
        return hash_of_tokenizer(self.tokenizer)


def hash_of_tokenizer(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Return a hash of everything that decides how text becomes tokens."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    state = backend.to_str() if backend is not None else _state(tokenizer)
    return hashlib.sha256(state.encode()).hexdigest()[:16]


def _state(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Return the settings and the vocabulary of a tokenizer written in Python, which has no other state."""
    plain = {key: value for key, value in tokenizer.init_kwargs.items() if key != "name_or_path"}
    settings = {key: str(value) for key, value in plain.items() if not key.endswith("_file")}
    return str((type(tokenizer).__name__, sorted(settings.items()), sorted(tokenizer.get_vocab().items())))


@lru_cache(maxsize=1)
def load(source: ModelSource, device: torch.device) -> LoadedModel:
    """Return the model of a source, on a device, in evaluation mode.

    Code that comes with a model is never run.

    Raises:
        ValueError: it cannot be loaded, or reads later tokens; the message says why and what to do.
    """
    from transformers import AutoTokenizer

    from experiments.models.pretrained import load_pretrained

    path, revision = source.location()
    foreign = load_foreign(source.folder(), dtype=source.dtype.on(device)) if source.is_quantized else None
    if foreign is None:
        config, model = load_pretrained(path, revision, source.dtype.on(device))
        dtype: Any = config.dtype or torch.float32
    else:
        model, dtype = foreign.model, foreign.stored_dtype
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, revision=revision, trust_remote_code=False)
    except library_errors() as error:
        raise ValueError(f"the tokenizer of model {path} cannot be loaded: {reason(error)}") from error
    model.requires_grad_(False)
    model.to(device)  # type: ignore[arg-type]
    loaded = LoadedModel(model.eval(), tokenizer, dtype, revision, source.identity(), foreign)
    if loaded.predicts is Predicts.next_token and reads_ahead(model):
        raise UnfitModelError(
            f"model {path} ({type(model).__name__}) is an encoder: its predictions depend on later tokens,"
            " so it has no perplexity; give a causal language model, or an encoder with a head for masked"
            " tokens"
        )
    return loaded


@torch.inference_mode()
def reads_ahead(model: "PreTrainedModel") -> bool:
    """Return whether a model's logits depend on later tokens: the last of a few is changed, and nothing else.

    A difference counts where it is above what rounding may do in the model's number format.
    """
    size = model.config.get_text_config().vocab_size
    ids = (torch.arange(PROBE_TOKENS, device=model.device) * 7 % size).repeat(2, 1)
    ids[1, -1] = (ids[1, -1] + 1) % size
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1].float()
    rounding = max(1e-4, 4 * torch.finfo(model.dtype).eps)
    return bool((logits[0] - logits[1]).abs().max() > rounding * logits.std())
