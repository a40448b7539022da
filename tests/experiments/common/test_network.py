"""Servers that do not answer: none is waited for longer than the limit, and each is asked once."""

import os
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from huggingface_hub import constants

from experiments.common import network
from experiments.common.network import prepare_hub, unreachable
from experiments.data.corpora import WikiText2
from experiments.data.text import _read_hub
from experiments.models.source import commit, hub_config
from tests.silence import silence


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(network, "SECONDS", 1.0)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    caches = (unreachable, prepare_hub, _read_hub, hub_config)
    for each in caches:
        each.cache_clear()
    yield
    for each in caches:
        each.cache_clear()


@pytest.fixture
def silent_server() -> Iterator[str]:
    with silence() as url:
        yield url


@pytest.fixture(params=[200, 404, 405, 500])
def answering_server(request: pytest.FixtureRequest) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(request.param)
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_server_that_answers_anything_is_reached(answering_server: str) -> None:
    assert unreachable(answering_server) is None


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "http://no.such.host.invalid", "nothing", ""])
def test_a_server_that_is_not_there_is_named(url: str) -> None:
    reason = unreachable(url)
    assert reason is not None
    assert url in reason
    assert len(reason.splitlines()) == 1


def test_a_silent_server_is_waited_for_once_and_briefly(silent_server: str) -> None:
    start = time.monotonic()
    assert "gave no answer in 1 s" in (unreachable(silent_server) or "") or "timed out" in (
        unreachable(silent_server) or ""
    )
    waited = time.monotonic() - start
    assert waited < 10
    for _ in range(100):
        unreachable(silent_server)
    assert time.monotonic() - start < waited + 1


@pytest.mark.parametrize("kind", ["text", "model"])
def test_without_a_network_a_text_or_a_model_of_the_hub_is_refused_in_seconds(
    kind: str, silent_server: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", silent_server)
    monkeypatch.delenv("SINQ_DATA", raising=False)
    caplog.set_level("INFO", "experiments")
    start = time.monotonic()
    with pytest.raises(ValueError, match=r"text=wikitext2|model nobody/nothing") as raised:
        WikiText2().evaluation() if kind == "text" else commit("nobody/nothing", None)
    assert time.monotonic() - start < 60  # of importing datasets, mostly; it was minutes
    assert len(str(raised.value).splitlines()) == 1
    assert caplog.text.count("the hub cannot be reached") == 1
    assert constants.HF_HUB_OFFLINE
    assert os.environ["HF_HUB_OFFLINE"] == "1"
