"""A process that runs a GGUF file with llama.cpp, for `llama_cpp.py`; a crash of the library ends only it.

One JSON object per line in each direction, here without the braces. Any answer may be {"error": "…"}:

    → (start)                                              ← version, tokens of the vocabulary, chat template
    → do: logits, ids, file      float32 (ids, vocabulary) is written to the file        ← {}
    → do: nll, ids                                         ← value: mean nats of all ids but the first
    → do: tokens, text                                     ← value: ids
    → do: greedy, ids, count                               ← value: the next `count` ids
    → do: seconds, ids, count                              ← value: [prefill, decode of `count` ids]

Every request begins with an empty cache. llama.cpp rounds the inputs of products with quantized matrices to 8
bits; by default also keys and values to float16, which an exact context leaves in float32.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from cffi import FFI

from experiments.engines.declarations import BACKENDS, DECLARATIONS, RELEASE

BATCH = 512
"""Tokens of one call; the logits of a call are in memory at once."""
ERROR = 4
"""Level of errors in llama.cpp's log."""
FLOAT32, DISABLED = 0, 0
"""`ggml_type` of the cache, and type of flash attention, of an exact context."""


class Model:
    """A loaded model with a context.

    Raises:
        ValueError: the library is another release, or refuses the file.
    """

    def __init__(self, folder: Path, file: str, threads: int, context: int, exact: bool) -> None:
        self.exact = exact
        self.ffi = FFI()
        self.errors: list[str] = []
        self.ffi.cdef(DECLARATIONS + BACKENDS)
        self.library = self._opened(folder)
        self.model = self._load(file)
        self.vocabulary = self.library.llama_model_get_vocab(self.model)
        self.size = self.library.llama_vocab_n_tokens(self.vocabulary)
        self.context = self._new_context(threads, context)
        self.batch = self.library.llama_batch_init(BATCH, 0, 1)

    def _opened(self, folder: Path) -> Any:
        """Return the library, with the back end for this processor, and its log kept instead of printed."""
        library = self.ffi.dlopen(str(folder / f"libllama.{RELEASE}.so"))
        version = self.ffi.string(library.llama_version()).decode()
        if version.partition("-")[0] != RELEASE.removeprefix("v"):  # it says "0.5.0-dev"
            raise ValueError(f"the library is llama.cpp {version}; the declarations are of {RELEASE}")
        self.callback = self.ffi.callback("log_callback", self._note)
        library.llama_log_set(self.callback, self.ffi.NULL)
        backends = self.ffi.dlopen(str(folder / f"libggml.{RELEASE}.so"))
        backends.ggml_backend_load_all_from_path(str(folder).encode())
        library.llama_backend_init()
        return library

    def _note(self, level: int, text: Any, _: Any) -> None:
        if level == ERROR:
            self.errors.append(self.ffi.string(text).decode(errors="replace").strip())

    def _load(self, file: str) -> Any:
        model = self.library.llama_model_load_from_file(
            file.encode(), self.library.llama_model_default_params()
        )
        if model == self.ffi.NULL:
            raise ValueError(f"llama.cpp cannot read {file}: {'; '.join(self.errors) or 'no reason given'}")
        return model

    def _new_context(self, threads: int, length: int) -> Any:
        options = self.library.llama_context_default_params()
        options.n_ctx, options.n_batch, options.n_ubatch = length, BATCH, BATCH
        options.n_threads = options.n_threads_batch = threads
        if self.exact:
            options.type_k = options.type_v = FLOAT32
            options.flash_attn_type = DISABLED
        context = self.library.llama_init_from_model(self.model, options)
        if context == self.ffi.NULL:
            raise ValueError(f"llama.cpp makes no context of {length} tokens: {'; '.join(self.errors)}")
        return context

    def chat_template(self) -> str | None:
        """Return the chat template of the file."""
        found = self.library.llama_model_chat_template(self.model, self.ffi.NULL)
        return None if found == self.ffi.NULL else self.ffi.string(found).decode()

    def tokens(self, text: str) -> list[int]:
        """Return the ids of a text, as transformers tokenizes it: special tokens are found in it."""
        content = text.encode()
        out = self.ffi.new("llama_token[]", len(content) + 8)
        count = self.library.llama_tokenize(
            self.vocabulary, content, len(content), out, len(content) + 8, True, True
        )
        return list(out[0:count])

    def empty(self) -> None:
        """Forget all tokens read."""
        self.library.llama_memory_clear(self.library.llama_get_memory(self.context), True)

    def read(self, ids: list[int], start: int, all_logits: bool) -> None:
        """Read at most `BATCH` ids at positions from `start`; logits of all of them, or of the last."""
        batch = self.batch
        batch.n_tokens = len(ids)
        for number, token in enumerate(ids):
            batch.token[number], batch.pos[number], batch.n_seq_id[number] = token, start + number, 1
            batch.seq_id[number][0] = 0
            batch.logits[number] = all_logits or number == len(ids) - 1
        if status := self.library.llama_decode(self.context, batch):
            raise ValueError(
                f"llama_decode gave {status}: {'; '.join(self.errors[-1:]) or 'no reason given'}"
            )

    def logits(self, ids: list[int]) -> Iterator[Any]:
        """Yield logits of consecutive ids, float32 (some ids, vocabulary), valid until the next."""
        self.empty()
        for start in range(0, len(ids), BATCH):
            part = ids[start : start + BATCH]
            self.read(part, start, all_logits=True)
            yield self._array(self.library.llama_get_logits(self.context), len(part))

    def _array(self, pointer: Any, rows: int) -> Any:
        buffer = self.ffi.buffer(pointer, 4 * rows * self.size)
        return np.frombuffer(buffer, dtype=np.float32).reshape(rows, self.size)

    def prefill(self, ids: list[int]) -> int:
        """Read a prompt from an empty cache; return the most probable next id."""
        self.empty()
        for start in range(0, len(ids), BATCH):
            self.read(ids[start : start + BATCH], start, all_logits=False)
        return self.most_probable()

    def most_probable(self) -> int:
        """Return the most probable id after the last one read."""
        return int(self._array(self.library.llama_get_logits_ith(self.context, -1), 1).argmax())

    def decode(self, chosen: int, position: int, count: int) -> list[int]:
        """Read the id `chosen` and those that follow it, `count` in all; return the ids read."""
        read = []
        for number in range(count):
            self.read([chosen], position + number, all_logits=False)
            read.append(chosen)
            chosen = self.most_probable()
        return read


def nll(model: Model, ids: list[int]) -> float:
    """Return the mean negative log-likelihood of ids after the first, nats; sums are in float64."""
    total, start, targets = 0.0, 0, np.asarray(ids[1:])
    for logits in model.logits(ids):
        wanted = targets[start : start + len(logits)]
        rows = logits[: len(wanted)].astype(np.float64)
        peak = rows.max(axis=1)
        total += (np.log(np.exp(rows - peak[:, None]).sum(axis=1)) + peak).sum()
        total -= rows[np.arange(len(wanted)), wanted].sum()
        start += len(logits)
    return float(total) / len(targets)


def seconds(model: Model, ids: list[int], count: int) -> list[float]:
    """Return the seconds of reading a prompt, and of reading `count` ids one by one after it."""
    begin = time.perf_counter()
    chosen = model.prefill(ids)
    middle = time.perf_counter()
    model.decode(chosen, len(ids), count)
    return [middle - begin, time.perf_counter() - middle]


def answered(model: Model, request: dict[str, Any]) -> dict[str, Any]:
    """Return the answer to a request."""
    ids, count = request.get("ids", []), request.get("count", 0)
    if request["do"] == "logits":
        np.save(request["file"], np.concatenate([part.copy() for part in model.logits(ids)]))
        return {}
    work: dict[str, Callable[[], Any]] = {
        "nll": lambda: nll(model, ids),
        "tokens": lambda: model.tokens(request["text"]),
        "greedy": lambda: model.decode(model.prefill(ids), len(ids), count),
        "seconds": lambda: seconds(model, ids, count),
    }
    return {"value": work[request["do"]]()}


def main() -> None:
    """Serve the file of the command line; whatever the library prints goes to standard error."""
    folder, file, threads, context, exact = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(content: dict[str, Any]) -> None:
        print(json.dumps(content), file=answers, flush=True)

    try:
        model = Model(Path(folder), file, int(threads), int(context), exact == "True")
        answer({"version": RELEASE, "vocabulary": model.size, "chat_template": model.chat_template()})
        for line in sys.stdin:
            answer(answered(model, json.loads(line)))
    except Exception as error:  # noqa: BLE001 - the other process reports any error
        answer({"error": str(error) or type(error).__name__})


if __name__ == "__main__":
    main()
