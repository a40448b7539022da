"""Requests to a process of another project's code, and its answers: a line of JSON each way."""

import json
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from typing import IO, Any


@dataclass(frozen=True)
class Conversation:
    """The pipes of a process that answers every request, and says first that it is ready."""

    name: str
    """Name of the process, for messages."""
    process: "subprocess.Popen[str]"
    errors: IO[bytes]
    """A file that its standard error goes to."""
    failure: type[Exception]
    """Class of what `ask` and `answer` raise where the process ended, or answers with an error."""

    def ask(self, **request: Any) -> dict[str, Any]:
        """Send a request; return the answer."""
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):  # of a process that ended; `answer` says so
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
        return self.answer()

    def answer(self) -> dict[str, Any]:
        """Return the next answer."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise self.failure(f"{self.name} ended with {self.process.wait()}: {self._last_words()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise self.failure(answer["error"])
        return answer

    def _last_words(self) -> str:
        self.errors.seek(0)
        return (self.errors.read().decode(errors="replace").strip().splitlines() or ["no message"])[-1]
