"""What a client may do to its connection: send slowly, not read, offer another protocol, ask in a crowd."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import httpx
import pytest
import uvicorn
import uvloop
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from serving.admission import Admission, AdmissionConfig
from serving.api import ServeConfig
from serving.connection import CappedProtocol
from serving.gate import CapsConfig
from serving.metrics import Metrics
from serving.retriever import Retriever

BODY = json.dumps({"text": "red shoes", "k": 3}).encode()


def head(*lines: str, method: str = "POST", length: int | None = len(BODY)) -> bytes:
    """The head of a search."""
    sent = [f"{method} /v1/search HTTP/1.1", "Host: 127.0.0.1", "Content-Type: application/json", *lines]
    sent += [] if length is None else [f"Content-Length: {length}"]
    return "\r\n".join([*sent, "", ""]).encode()


@contextmanager
def connected(client: httpx.Client) -> Iterator[socket.socket]:
    with socket.create_connection((client.base_url.host, client.base_url.port), timeout=10) as connection:
        yield connection


def reply_of(connection: socket.socket) -> tuple[int, bytes, bytes]:
    """Status, head and body of a reply whose length is declared."""
    received = b""
    while b"\r\n\r\n" not in received:
        part = connection.recv(65_536)
        assert part, received
        received += part
    start, body = received.split(b"\r\n\r\n", 1)
    length = int(start.lower().split(b"content-length:")[1].split(b"\r\n")[0])
    while len(body) < length:
        part = connection.recv(65_536)
        assert part, received
        body += part
    return int(start[9:12]), start.lower(), body


def closed_after(connection: socket.socket, meanwhile: Callable[[], object] = lambda: None) -> float:
    """Seconds until the server ends the connection, of which nothing more is read."""
    started = time.monotonic()
    connection.settimeout(0.05)
    while time.monotonic() - started < 10:
        try:
            meanwhile()
            if not connection.recv(65_536):
                break
        except TimeoutError:
            continue
        except OSError:
            break
    return time.monotonic() - started


@pytest.fixture(scope="module")
def hasty(shop, make) -> Iterator[httpx.Client]:
    """A server that waits for clients no longer than 0.6 s."""
    caps = CapsConfig(head_seconds=0.6, body_seconds=0.6, reply_seconds=0.6, max_body_bytes=10_000)
    with make.server(shop, ServeConfig(poll_seconds=0.05, caps=caps)) as client:
        make.wait_until(lambda: client.get("/readyz").status_code == 200)
        yield client


@pytest.mark.parametrize("before", [b"", head() + BODY], ids=["first", "after another"])
def test_a_head_that_does_not_end_is_given_up_however_it_trickles(hasty, before):
    with connected(hasty) as connection:
        if before:
            connection.sendall(before)
            assert reply_of(connection)[0] == 200
        connection.sendall(b"GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\nX: ")
        started = time.monotonic()
        connection.settimeout(0.05)
        received = b""
        while b"408 " not in received and time.monotonic() - started < 10:
            try:
                connection.sendall(b"x")
                received += connection.recv(65_536)
            except TimeoutError:
                continue
        assert 0.5 < time.monotonic() - started < 5
        assert received.startswith(b"HTTP/1.1 408 ")
        assert connection.recv(1) == b""


def test_a_half_head_behind_a_reply_that_is_due_does_not_cost_the_reply(hasty):
    with connected(hasty) as connection:
        connection.sendall(head(length=100) + BODY)  # its body does not end, so that its reply is due
        assert reply_of(connection)[0] == 408
    with connected(hasty) as connection:
        connection.sendall(head() + BODY + b"GET /livez HT")
        assert reply_of(connection)[0] == 200


def test_the_body_of_a_refused_request_is_not_awaited_without_end(hasty):
    with connected(hasty) as connection:
        connection.sendall(head(length=9_999).replace(b"/v1/search", b"/v1/" + b"a" * 17_000))
        assert reply_of(connection)[0] == 431
        assert closed_after(connection, lambda: connection.send(b"x")) < 6


def test_a_connection_stays_open_after_a_refusal_whose_body_came_later(hasty):
    with connected(hasty) as connection:
        connection.sendall(head().replace(b"/v1/search", b"/v1/" + b"a" * 17_000))
        assert reply_of(connection)[0] == 431
        connection.sendall(BODY)
        time.sleep(0.8)
        connection.sendall(head() + BODY)
        assert reply_of(connection)[0] == 200


@pytest.mark.parametrize("kind", ["h2c", "websocket", "TLS/1.0"])
@pytest.mark.parametrize("pause", [0.0, 0.05])
def test_an_offered_protocol_is_declined_by_answering_the_whole_request(hasty, kind, pause):
    offer = ("Connection: Upgrade, HTTP2-Settings", f"Upgrade: {kind}", "HTTP2-Settings: AAEAAEAA")
    with connected(hasty) as connection:
        for _ in range(2):  # the connection is of use afterwards, as before
            connection.sendall(head(*offer))
            time.sleep(pause)
            connection.sendall(BODY)
            status, _, body = reply_of(connection)
            assert (status, len(json.loads(body)["hits"])) == (200, 3)


def test_an_offered_protocol_is_declined_for_chunked_bodies_and_in_a_row(hasty):
    offer = ("Connection: Upgrade", "Upgrade: h2c")
    chunked = head(*offer, "Transfer-Encoding: chunked", length=None)
    chunked += b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)
    bare = b"GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"
    with connected(hasty) as connection:
        connection.sendall(chunked)
        assert reply_of(connection)[0] == 200
        connection.sendall(bare * 20)
        received = b""
        while received.count(b"HTTP/1.1 200") < 20:
            part = connection.recv(65_536)
            assert part, received
            received += part


@pytest.mark.parametrize("before", [b"", b"GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"])
def test_nothing_is_tunnelled(hasty, before):
    with connected(hasty) as connection:
        connection.sendall(before)
        if before:
            assert reply_of(connection)[0] == 200
        connection.sendall(b"CONNECT example.com:443 HTTP/1.1\r\nHost: example.com:443\r\n\r\n")
        assert connection.recv(12) in (b"HTTP/1.1 400", b"HTTP/1.1 405", b"HTTP/1.1 404")
    assert hasty.get("/livez").status_code == 200


def unread(client: httpx.Client, request: bytes, times: int) -> socket.socket:
    """A connection that asks and reads nothing."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
    connection.settimeout(10)
    connection.connect((client.base_url.host, client.base_url.port))
    connection.setblocking(False)
    for _ in range(times):
        try:
            connection.send(request)
        except BlockingIOError:
            break
    return connection


def is_reset(connection: socket.socket) -> bool:
    try:
        return connection.send(b"\r\n") == 0
    except BlockingIOError:
        return False
    except OSError:
        return True


LONG = json.dumps({"queries": [{"text": "red", "k": 20, "with_documents": True}] * 100}).encode()
DESCRIPTION = b"GET /openapi.json HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"


@pytest.mark.parametrize(
    ("request_", "times"),
    [(DESCRIPTION, 200), (head("Connection: close", length=len(LONG)) + LONG, 1)],
    ids=["many", "one that is the last"],
)
def test_a_reply_that_nobody_reads_is_held_for_a_while_only(hasty, make, request_, times):
    with unread(hasty, request_, times) as connection:
        time.sleep(0.2)
        assert not is_reset(connection)
        make.wait_until(lambda: is_reset(connection))


def test_who_reads_slowly_has_the_whole_reply_and_may_ask_again(hasty):
    with connected(hasty) as connection:
        connection.sendall(head(length=len(LONG)) + LONG)
        time.sleep(0.2)
        assert reply_of(connection)[0] == 200
        time.sleep(0.8)
        connection.sendall(head() + BODY)
        assert reply_of(connection)[0] == 200


async def short(scope: Scope, receive: Receive, send: Send) -> None:
    """Reply with less than what a connection takes before its writers have to wait."""
    body = b"x" * 30_000
    length = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": 200, "headers": [length]})
    await send({"type": "http.response.body", "body": body})


async def is_given_up(kept: bytes) -> bool:
    """Whether a client that asks and reads nothing loses its connection."""
    ours, theirs = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4_096)
    ours.setblocking(False)
    config = uvicorn.Config(short, log_level="error", timeout_keep_alive=1)
    config.load()
    state, caps = ServerState(), CapsConfig(reply_seconds=0.3)
    protocol = CappedProtocol(
        Admission(AdmissionConfig()), Metrics(), caps, config=config, server_state=state, app_state={}
    )
    await asyncio.get_running_loop().connect_accepted_socket(lambda: protocol, ours)
    with theirs:
        theirs.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: %b\r\n\r\n" % kept)
        for _ in range(40):
            await asyncio.sleep(0.1)
            if not state.connections:
                return True
    return False


@pytest.mark.parametrize("kept", [b"close", b"keep-alive"])
def test_a_short_reply_that_nobody_reads_holds_no_connection_either(kept):
    assert uvloop.run(is_given_up(kept))


@pytest.fixture
def full(shop, make, monkeypatch) -> Iterator[httpx.Client]:
    """A server that answers one request at once, and is about to."""
    begun, go_on, answer_many = threading.Event(), threading.Event(), Retriever.answer_many

    def slow(retriever, searches):
        begun.set()
        assert go_on.wait(20)
        return answer_many(retriever, searches)

    caps = CapsConfig(body_seconds=1.5, max_body_bytes=10_000)
    with make.server(shop, ServeConfig(caps=caps, admission=AdmissionConfig(max_requests=1))) as client:
        make.wait_until(lambda: client.get("/readyz").status_code == 200)
        monkeypatch.setattr(Retriever, "answer_many", slow)
        with connected(client) as first:
            first.sendall(head() + BODY)
            assert begun.wait(20)
            yield client
            go_on.set()
            assert reply_of(first)[0] == 200


def test_a_request_too_many_is_refused_and_its_connection_is_of_use_again(full):
    with connected(full) as connection:
        for _ in range(2):
            connection.sendall(head() + BODY)
            status, start, body = reply_of(connection)
            assert (status, json.loads(body)["error"]["code"]) == (503, "overloaded")
            assert b"connection: close" not in start


def test_a_refused_head_request_gets_no_body(full):
    with connected(full) as connection:
        connection.sendall(head(method="HEAD", length=None))
        time.sleep(0.1)
        connection.sendall(b"GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        received = b""
        while b"true" not in received:
            received += connection.recv(65_536)
        first, second = received.split(b"\r\n\r\n")[:2]
        assert first.startswith(b"HTTP/1.1 503 ")
        assert second.startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("chunked", [False, True])
def test_the_body_of_a_request_too_many_is_taken_for_a_while_and_up_to_a_size(full, chunked):
    size = ("Transfer-Encoding: chunked",) if chunked else ("Content-Length: 5000000000",)
    chunk = b"186a0\r\n" + b"x" * 100_000 + b"\r\n" if chunked else b"x" * 100_000
    for more, seconds in ((b"", 6), (chunk, 1.2)):
        with connected(full) as connection:
            connection.sendall(head(*size, length=None) + (b"1\r\n{\r\n" if chunked else b"{"))
            status, start, _ = reply_of(connection)
            assert status == 503
            assert (b"connection: close" in start) is not chunked
            assert closed_after(connection, lambda more=more: more and connection.send(more)) < seconds
