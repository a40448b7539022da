"""A small server that answers W&B's client and takes all it sends: `wandb sync` without a network."""

import gzip
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

OPERATION = re.compile(r"(?:query|mutation)\s+(\w+)")
RUN = {
    "id": "run", "name": "run", "displayName": "run", "config": "{}", "historyLineCount": 0,
    "project": {"id": "project", "name": "sinq", "entity": {"id": "entity", "name": "me"}},
}  # fmt: skip


@dataclass
class Taken:
    """Everything that the client sent."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    """Name → content, of a run's files and of artifacts'."""
    streamed: list[str] = field(default_factory=list)
    """Texts of the stream of history and summary."""
    runs: list[dict[str, Any]] = field(default_factory=list)
    """Facts of the runs, such as `displayName`, `tags`, `config`."""
    committed: list[str] = field(default_factory=list)
    """Names of artifacts that are complete."""


def answer(operation: str, said: dict[str, Any], taken: Taken) -> dict[str, Any]:
    """Return the answer to an operation of GraphQL, as W&B's server gives it."""

    def file(name: str) -> dict[str, Any]:
        url = f"{taken.url}/upload/{name}"
        return {
            "id": name, "name": name, "storagePath": name, "uploadUrl": url, "uploadHeaders": [],
            "uploadMultipartUrls": None, "artifact": {"id": "artifact"},
        }  # fmt: skip

    match operation:
        case "UpsertBucket":
            taken.runs.append(said)
            return {"upsertBucket": {"bucket": RUN, "inserted": True}}
        case "CreateArtifact":
            name = said["input"]["artifactCollectionName"]
            made = {"id": name, "state": "PENDING", "artifactSequence": {"latestArtifact": None}}
            return {"createArtifact": {"artifact": made}}
        case "CreateArtifactManifest":
            manifest = {"id": "manifest", "file": file(f"{said['artifactID']}/manifest")}
            return {"createArtifactManifest": {"artifactManifest": manifest}}
        case "CreateArtifactFiles":
            nodes = [
                {"node": file(f"{each['artifactID']}/{each['name']}")}
                for each in said["input"]["artifactFiles"]
            ]
            return {"createArtifactFiles": {"files": {"edges": nodes}}}
        case "CommitArtifact":
            taken.committed.append(said["artifactID"])
            return {"commitArtifact": {"artifact": {"id": said["artifactID"], "digest": "digest"}}}
        case "CreateRunFiles":
            return {
                "createRunFiles": {
                    "runID": "run",
                    "uploadHeaders": [],
                    "files": [file(name) for name in said["files"]],
                }
            }
        case "RunResumeStatus":
            return {"model": None}
    return {"serverInfo": {"features": []}}


class Handler(BaseHTTPRequestHandler):
    """Answers to one connection."""

    protocol_version = "HTTP/1.1"
    taken: ClassVar[Taken]

    def log_message(self, format: str, *words: Any) -> None:
        pass

    def _body(self) -> bytes:
        content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return gzip.decompress(content) if self.headers.get("Content-Encoding") == "gzip" else content

    def _reply(self, found: dict[str, Any]) -> None:
        content = json.dumps(found).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def do_PUT(self) -> None:
        self.taken.files[self.path.removeprefix("/upload/")] = self._body()
        self._reply({})

    def do_POST(self) -> None:
        content = self._body()
        if self.path != "/graphql":
            if self.path.endswith("file_stream"):
                self.taken.streamed.append(content.decode())
            self._reply({})
            return
        asked = json.loads(content)
        operation = OPERATION.search(asked["query"])
        assert operation
        self._reply({"data": answer(operation[1], asked.get("variables") or {}, self.taken)})


class Server(ThreadingHTTPServer):
    """The server; a client that goes away is no error."""

    daemon_threads = True

    def handle_error(self, *request: Any) -> None:
        pass


@contextmanager
def serving() -> Iterator[Taken]:
    """Run the server; yield what it takes."""
    taken = Taken()
    server = Server(("127.0.0.1", 0), type("Bound", (Handler,), {"taken": taken}))
    taken.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield taken
    server.shutdown()
    server.server_close()
