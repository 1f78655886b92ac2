"""The server as a process of its own: what it is made of, how it ends, and what it never writes down."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest

from serving.api import ServeConfig
from serving.keys import KeysConfig
from serving.query_log import QueryLogConfig
from serving.server import DrainConfig
from serving.store import Store

RUN = """
import logging, sys
from pathlib import Path
from serving.api import ServeConfig, serve
from serving.trace import TraceFormatter
handler = logging.StreamHandler(sys.stderr)
handler.setFormatter(TraceFormatter("%(name)s: %(message)s"))
logging.basicConfig(level=logging.DEBUG, handlers=[handler])
serve(Path(sys.argv[1]), ServeConfig.model_validate_json(sys.argv[2]))
"""


SHORT = """
import time
import serving.api
from serving.batching import Batcher
from serving.retriever import Retriever
serving.api._CLOSE_SECONDS = 0.5
"""
HUNG = {
    "search": SHORT + "Retriever.answer_many = lambda *_: time.sleep(60)\n",
    "loop": SHORT + "Batcher.answer = lambda *_: time.sleep(60)\n",
}


@contextmanager
def process(
    make: SimpleNamespace, store: Path, config: ServeConfig, log: Path, before: str = "", **environment: str
) -> Iterator[tuple[subprocess.Popen, int]]:
    """A server that logs everything it can into a file."""
    port = make.free_port()
    settings = config.model_copy(update={"port": port}).model_dump_json()
    with log.open("w") as out:
        command = [sys.executable, "-c", before + RUN, str(store), settings]
        server = subprocess.Popen(command, stdout=out, stderr=out, env={**os.environ, **environment})
    try:
        deadline = time.monotonic() + 180
        while True:
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            if (
                make.accepts(port)
                and httpx.get(f"http://127.0.0.1:{port}/readyz", timeout=20).status_code == 200
            ):
                break
            time.sleep(0.05)
        yield server, port
    finally:
        server.kill()
        server.wait()


@pytest.fixture
def store(tmp_path, make):
    root = tmp_path / "store"
    Store(root).set_champion(make.shop(root).path.name, "first")
    return root


def test_sigterm_says_not_ready_first_then_finishes_what_was_begun_and_exits_with_0(store, tmp_path, make):
    body = json.dumps({"text": "red shoes", "query_id": "the last one"}).encode()
    head = "POST /v1/search HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    with process(make, store, ServeConfig(), tmp_path / "log") as (server, port):
        url = f"http://127.0.0.1:{port}"
        loaded = Path(f"/proc/{server.pid}/maps").read_text()
        assert "uvloop/loop" in loaded
        assert "httptools/parser" in loaded
        with (
            socket.create_connection(("127.0.0.1", port), timeout=20) as begun,
            socket.create_connection(("127.0.0.1", port), timeout=20) as midway,
            socket.create_connection(("127.0.0.1", port), timeout=20) as new,
            httpx.Client(base_url=url) as idle,
        ):
            assert "connection" not in idle.get("/livez").headers
            for connection in (begun, midway):
                connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body[:10])
            time.sleep(0.1)
            server.send_signal(signal.SIGTERM)
            time.sleep(0.2)
            ready = httpx.get(f"{url}/readyz")
            assert ready.status_code == 503
            assert ready.json()["error"]["code"] == "draining"
            last = idle.post("/v1/search", json={"text": "red"})
            assert (last.status_code, last.headers["connection"]) == (200, "close")
            midway.sendall(body[10:])
            assert b"connection: close" in midway.recv(65_536)
            make.wait_until(lambda: not make.accepts(port))
            new.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            assert new.recv(12) == b"HTTP/1.1 200"
            assert server.poll() is None
            begun.sendall(body[10:])
            reply = b""
            while part := begun.recv(65_536):
                reply += part
        assert reply.startswith(b"HTTP/1.1 200")
        assert b"connection: close" in reply
        assert json.loads(reply.partition(b"\r\n\r\n")[2])["query_id"] == "the last one"
        assert server.wait(20) == 0
    assert "the last one" in "".join(file.read_text() for file in (store / "ubi").iterdir())
    said = (tmp_path / "log").read_text()
    assert said.count("draining: /readyz says 503, and new connections are taken for 1 s") == 1
    assert said.rstrip().endswith("ended")
    assert "Traceback" not in said


@pytest.mark.parametrize("where", ["search", "loop"])
def test_what_hangs_does_not_keep_the_process_from_its_end(store, tmp_path, make, where):
    drain = DrainConfig(ready_seconds=0, finish_seconds=1)
    with (
        process(make, store, ServeConfig(drain=drain), tmp_path / "log", HUNG[where]) as (server, port),
        socket.create_connection(("127.0.0.1", port), timeout=20) as asking,
    ):
        body = b'{"text": "red"}'
        head = "POST /v1/search HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        asking.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        time.sleep(0.3)
        server.send_signal(signal.SIGTERM)
        assert server.wait(20) == 1
    assert "what was begun did not end in 2 s; the process ends without it" in (tmp_path / "log").read_text()


SECRETS = {
    "key": "key-that-nobody-may-see-41d2",
    "guess": "guess-that-nobody-may-see-77aa",
    "text": "querytext-that-nobody-may-see-9c1e",
    "user": "user-that-nobody-may-see-0b3f",
    "doc": "doc-that-nobody-may-see-5e6d",
}


def ask_everything(url: str) -> str:
    """Make requests that succeed and that fail, with secrets wherever they can be put; return the metrics."""
    key = {"Authorization": f"Bearer {SECRETS['key']}"}
    text, user, doc = SECRETS["text"], SECRETS["user"], SECRETS["doc"]
    with httpx.Client(base_url=url, headers=key, timeout=20) as client:
        bodies = (
            {"text": text, "user_id": user},
            {"text": text, "mode": "bm25", "with_documents": True},
            {"text": text, "exclude": [doc]},
            {"text": text * 200},
            {"text": text, "colour": user},
            {"text": text, "k": 0},
            {"text": text, "mode": doc},
            {"history": [doc]},
            {"queries": [{"text": text}, {"text": ""}]},
        )
        replies = [client.post("/v1/search", json=body) for body in bodies]
        replies.append(client.post("/v1/search", content=f'{{"text": "{text}"'))
        replies.append(client.post("/v1/search", content=text * 100_000))
        replies.append(client.get(f"/v1/documents/{doc}/neighbors"))
        replies.append(client.get(f"/{doc}?q={text}"))
        replies.append(
            client.post("/v1/events", json={"events": [{"query_id": doc, "doc_id": doc, "client_id": user}]})
        )
        guesses = ({"Authorization": f"Bearer {SECRETS['guess']}"}, {"X-API-Key": SECRETS["guess"]})
        replies += [client.post("/v1/search", json={"text": text}, headers=guess) for guess in guesses]
        metrics = client.get("/metrics")
    assert {200, 401, 404, 413, 422} <= {reply.status_code for reply in replies}
    assert not {500, 502, 503} & {reply.status_code for reply in replies}
    return metrics.text


@pytest.mark.parametrize("logged", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_planted_secret_is_in_no_log(store, tmp_path, make, logged):
    config = ServeConfig(query_log=QueryLogConfig(enabled=logged), keys=KeysConfig())
    log = tmp_path / "log"
    with process(make, store, config, log, TWOTOWER_READ_KEY=SECRETS["key"]) as (server, port):
        metrics = ask_everything(f"http://127.0.0.1:{port}")
        server.send_signal(signal.SIGTERM)
        server.wait(20)
    written = {
        "the log": log.read_text(errors="replace"),
        "the metrics": metrics,
        **{str(file): file.read_bytes().decode("latin-1") for file in store.rglob("*") if file.is_file()},
    }
    assert "serving bundle" in written["the log"]
    for name, text in written.items():
        for kind, secret in SECRETS.items():
            asked_for = logged and "/ubi/" in name and kind in ("text", "user", "doc")
            assert asked_for or secret not in text, f"{kind} in {name}"
    queries = "".join(text for name, text in written.items() if "/ubi/" in name)
    assert (SECRETS["text"] in queries) is logged
