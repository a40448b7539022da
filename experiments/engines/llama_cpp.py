"""llama.cpp as a second engine: a GGUF file, run in a process of its own.

    with LlamaCpp(file, threads=2, context=2048) as engine:
        engine.nll(ids)

A crash of the library is an `EngineError` of one line.
"""

import os
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from subprocess import PIPE
from types import TracebackType
from typing import Self

import numpy as np
import torch
from torch import Tensor

from experiments.common.conversation import Conversation
from experiments.engines import library


class EngineError(ValueError):
    """Error of another project's engine; the message says what it reported."""


class LlamaCpp:
    """A GGUF file in llama.cpp, on a CPU; usable as a context.

    Args:
        file: the model.
        threads: of llama.cpp.
        context: the longest text, tokens.
        exact: keep keys and values in float32, without flash attention; by default llama.cpp chooses.

    Raises:
        ValueError: the library is not there; later `EngineError`, where it refuses the file or crashes.
    """

    def __init__(self, file: Path, threads: int, context: int, *, exact: bool = False) -> None:
        self.command = [
            sys.executable, "-m", "experiments.engines.worker",
            str(library.folder()), str(file.resolve()), str(threads), str(context), str(exact),
        ]  # fmt: skip

    def __enter__(self) -> Self:
        self.stack = ExitStack()
        self.scratch = Path(self.stack.enter_context(tempfile.TemporaryDirectory()))
        self.errors = self.stack.enter_context(tempfile.TemporaryFile())
        paths = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
        self.process = self.stack.enter_context(
            subprocess.Popen(self.command, stdin=PIPE, stdout=PIPE, stderr=self.errors, text=True, env=paths)
        )
        try:
            self.talk = Conversation("llama.cpp's process", self.process, self.errors, EngineError)
            facts = self.talk.answer()
        except BaseException:
            self.stack.close()
            raise
        self.version, self.vocabulary = facts["version"], facts["vocabulary"]
        self.chat_template: str | None = facts["chat_template"]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stack.close()  # closes the process's input, which ends it

    def logits(self, ids: Tensor) -> Tensor:
        """Return the logits after each of the ids, float32 (tokens, vocabulary)."""
        file = self.scratch / "logits.npy"
        self.talk.ask(do="logits", ids=ids.tolist(), file=str(file))
        return torch.from_numpy(np.load(file))

    def nll(self, ids: Tensor) -> float:
        """Return the mean negative log-likelihood of ids (tokens,) after the first, nats."""
        return float(self.talk.ask(do="nll", ids=ids.tolist())["value"])

    def tokens(self, text: str) -> list[int]:
        """Return the ids of a text by the file's own tokenizer, special tokens in it included."""
        return list(self.talk.ask(do="tokens", text=text)["value"])

    def greedy(self, ids: Tensor, count: int) -> list[int]:
        """Return the `count` most probable ids that follow."""
        return list(self.talk.ask(do="greedy", ids=ids.tolist(), count=count)["value"])

    def phase_seconds(self, ids: Tensor, count: int) -> tuple[float, float]:
        """Return the seconds of prefill of the ids, and of decoding `count` more."""
        prefill, decode = self.talk.ask(do="seconds", ids=ids.tolist(), count=count)["value"]
        return prefill, decode
