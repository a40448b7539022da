"""Sources of models, and the facts that a run needs about a loaded model.

A source is a small frozen dataclass; `load` turns it into a `LoadedModel` once per process, so that a sweep
loads a model once. The dense model is never changed: `sparing_clone` copies its module tree while sharing
every tensor, and compression replaces modules of the copy.
"""

import copy
import enum
import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import HFValidationError
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from experiments.common.files import atomic_write
from experiments.common.paths import cache_dir
from experiments.models import smollm2
from sinq.common.options import check

CHECKPOINT = ("*.safetensors", "*.json", "*.model", "*.txt", "*.jinja")
"""The files of a hub's repository that make a checkpoint."""
DECIDING = (".json", ".safetensors", ".bin", ".model", ".txt", ".jinja")
"""Endings of the files that may decide a number: weights, configuration, tokenizer, templates."""
PROBE_TOKENS = 8


class UnfitModelError(ValueError):
    """A model that this project does not measure; the message says which and why."""


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
        return Path(snapshot_download(path, revision=commit, allow_patterns=list(CHECKPOINT)))

    @abstractmethod
    def asked(self) -> dict[str, str | None]:
        """Return the facts known about the model without asking the hub; tables find rows by them."""

    def identity(self) -> dict[str, str | None]:
        """Return the facts that identify the content of the model, wherever its files are."""
        return self.asked()


@dataclass(frozen=True)
class SmolLM2(ModelSource):
    """The embedded default (see `smollm2.py`)."""

    def location(self) -> tuple[str, str | None]:
        return str(smollm2.folder()), None

    def asked(self) -> dict[str, str | None]:
        return {"name": "smollm2", "sha256": smollm2.SHA256}


@dataclass(frozen=True)
class Pretrained(ModelSource):
    """Any Hugging Face causal language model: a hub id, or a local folder.

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

    def _folder(self) -> Path | None:
        """Return the local folder; None for a model of the hub."""
        folder = Path(self.path).expanduser()
        if folder.is_dir() and self.revision is not None:
            raise ValueError(
                f"model.revision={self.revision} is not possible: model.path={self.path} is a local folder,"
                " which has no revisions; leave model.revision out"
            )
        return folder if folder.is_dir() else None


@lru_cache(maxsize=64)
def commit(path: str, revision: str | None) -> str:
    """Return the commit that a revision of a hub's model means, the same for the life of this process.

    It is read from the path of `config.json` in the hub's cache. With a network the hub is asked; without
    one it is the commit of the files in the cache.

    Raises:
        ValueError: the hub has no such model, or it cannot be asked and the cache has none.
    """
    try:
        config = Path(hf_hub_download(path, "config.json", revision=revision))
    except HFValidationError as error:
        raise ValueError(
            f"model.path={path} is not possible: there is no such folder here,"
            " and a hub's model is named like Qwen/Qwen3-1.7B"
        ) from error
    except (OSError, ValueError) as error:
        raise ValueError(_cannot_be_loaded(path, error)) from error
    name = config.parent.name
    if not re.fullmatch("[0-9a-f]{40}", name):
        raise ValueError(f"model {path} has no commit: its file is {config}; give a local folder instead")
    return name


def _cannot_be_loaded(path: str, error: Exception) -> str:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    if "trust_remote_code" in str(error):
        return f"model {path} cannot be loaded: it comes with code of its own, which is never run here"
    advice = "Check model.path; without a network it must be a local folder"
    return f"model {path} cannot be loaded: {reason} {advice}"


def fingerprint(folder: Path) -> str:
    """Return a hash of every file of a model's folder that may decide a number, 16 hexadecimal digits."""
    files = sorted(f for f in folder.iterdir() if f.suffix in DECIDING and f.is_file())
    content = "".join(f"{file.name}:{_file_hash(file)}" for file in files)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _file_hash(file: Path) -> str:
    """Return the SHA-256 of a file's content, cached until the file changes: reading may take minutes."""
    stat = file.stat()
    key = hashlib.sha256(f"{file.resolve()}:{stat.st_size}:{stat.st_mtime_ns}".encode()).hexdigest()[:24]
    known = cache_dir() / "hashes" / key
    if not known.exists():
        with file.open("rb") as content, atomic_write(known) as out:
            out.write(hashlib.file_digest(content, "sha256").hexdigest().encode())
    return known.read_text()


@dataclass(frozen=True)
class LoadedModel:
    """A dense model in memory."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    stored_dtype: torch.dtype
    """The number format of the checkpoint, which decides the dense model's bytes on disk."""
    commit: str | None = None
    """The hub's commit of the files; None for a local folder."""
    identity: Mapping[str, str | None] = field(default_factory=lambda: {"unknown": uuid4().hex})
    """Identifying facts (`ModelSource.identity`); a model made by hand gets a unique one."""

    @property
    def context(self) -> int:
        """Return the longest input the model was made for, in tokens."""
        return int(getattr(self.model.config, "max_position_embeddings", 0) or 2**31)

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
    def tokenizer_hash(self) -> str:
        """Return a hash of everything that decides how text becomes tokens."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        state = backend.to_str() if backend is not None else _state(self.tokenizer)
        return hashlib.sha256(state.encode()).hexdigest()[:16]


def _state(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the settings and the vocabulary of a tokenizer written in Python, which has no other state."""
    plain = {key: value for key, value in tokenizer.init_kwargs.items() if key != "name_or_path"}
    settings = {key: str(value) for key, value in plain.items() if not key.endswith("_file")}
    return str((type(tokenizer).__name__, sorted(settings.items()), sorted(tokenizer.get_vocab().items())))


@lru_cache(maxsize=1)
def load(source: ModelSource, device: torch.device) -> LoadedModel:
    """Return the model of a source, on a device, in evaluation mode.

    Code that comes with a model is never run.

    Raises:
        ValueError: it cannot be loaded, is quantized already, or reads later tokens; the message says why and
            what to do.
    """
    path, revision = source.location()
    known: Any = {"revision": revision, "trust_remote_code": False}
    try:
        config = AutoConfig.from_pretrained(path, **known)
        _refuse_quantized(path, config)
        tokenizer = AutoTokenizer.from_pretrained(path, **known)
        model = AutoModelForCausalLM.from_pretrained(path, dtype=source.dtype.on(device), **known)
    except UnfitModelError:
        raise
    except (OSError, ValueError) as error:
        raise ValueError(_cannot_be_loaded(path, error)) from error
    model.requires_grad_(False)
    model.to(device)  # type: ignore[arg-type]
    if reads_ahead(model.eval()):
        raise UnfitModelError(
            f"model {path} ({type(model).__name__}) is an encoder: its predictions depend on later tokens,"
            " so it has no perplexity; give a causal language model"
        )
    return LoadedModel(model, tokenizer, config.dtype or torch.float32, revision, source.identity())


def _refuse_quantized(path: str, config: PretrainedConfig) -> None:
    if found := getattr(config, "quantization_config", None):
        kind = found.get("quant_method") if isinstance(found, dict) else type(found).__name__
        raise UnfitModelError(
            f"model {path} is quantized already ({kind}); its dense model is what can be compressed"
        )


@torch.inference_mode()
def reads_ahead(model: PreTrainedModel) -> bool:
    """Return whether a model's logits depend on later tokens: the last of a few is changed, and nothing else.

    A difference counts where it is above what rounding may do in the model's number format.
    """
    size = model.config.get_text_config().vocab_size
    ids = (torch.arange(PROBE_TOKENS, device=model.device) * 7 % size).repeat(2, 1)
    ids[1, -1] = (ids[1, -1] + 1) % size
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1].float()
    rounding = max(1e-4, 4 * torch.finfo(model.dtype).eps)
    return bool((logits[0] - logits[1]).abs().max() > rounding * logits.std())


def sparing_clone(model: nn.Module) -> nn.Module:
    """Return a copy of a module tree that shares every parameter and buffer with the original."""
    shared = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in shared})
