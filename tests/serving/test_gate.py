import json
import socket
import threading
import time

import httpx
import pytest

from serving.admission import Admission, AdmissionConfig
from serving.api import ServeConfig
from serving.gate import CapsConfig
from serving.keys import KeysConfig, new_key
from serving.rates import Rates, RatesConfig

BODY = {"text": "red shoes", "k": 3}


def code(response: httpx.Response) -> str:
    return response.json()["error"]["code"]


def raw(client: httpx.Client, text: bytes, more: bytes = b"", pause: float = 0.0) -> bytes:
    """Send bytes as they are, the second part later, and return the reply up to the end of its head."""
    with socket.create_connection((client.base_url.host, client.base_url.port), timeout=10) as connection:
        connection.sendall(text)
        if pause:
            time.sleep(pause)
            connection.sendall(more)
        reply = b""
        while b"\r\n\r\n" not in reply and (part := connection.recv(65_536)):
            reply += part
    return reply


def test_a_client_is_told_to_wait_when_its_rate_is_used_up_and_can_then_go_on(shop, make):
    config = ServeConfig(poll_seconds=0.05, rates=RatesConfig(per_address="3/second"))
    with make.server(shop, config) as client:
        make.wait_until(lambda: client.get("/readyz").status_code == 200)
        replies = [client.post("/v1/search", json=BODY) for _ in range(4)]
        assert [reply.status_code for reply in replies] == [200, 200, 200, 429]
        assert code(replies[-1]) == "rate_limited"
        assert client.get("/livez").status_code == 200
        time.sleep(int(replies[-1].headers["retry-after"]))
        assert client.post("/v1/search", json=BODY).status_code == 200


def test_each_key_has_a_rate_of_its_own_and_wrong_keys_use_up_that_of_the_address(tmp_path, shop, make):
    (a, line_a), (b, line_b) = new_key("read", "a"), new_key("read", "b")
    (tmp_path / "keys").write_text(f"{line_a}\n{line_b}\n")
    config = ServeConfig(
        keys=KeysConfig(file=tmp_path / "keys"),
        rates=RatesConfig(per_key="2/minute", per_address="3/minute"),
    )

    def ask(key: str) -> int:
        return client.get("/v1/bundle", headers={"X-API-Key": key}).status_code

    with make.server(shop, config) as client:
        make.wait_until(lambda: client.get("/readyz").status_code == 200)
        assert [ask(a), ask(a), ask(a), ask(b)] == [200, 200, 429, 200]
        assert [ask("guess" * 5) for _ in range(4)] == [401, 401, 401, 429]
        assert ask(b) == 200


@pytest.mark.parametrize(("trusted", "second"), [(("127.0.0.1",), 200), ((), 429)])
def test_the_address_is_what_a_trusted_proxy_says_and_no_caller_says_it(shop, make, trusted, second):
    config = ServeConfig(rates=RatesConfig(per_address="1/hour"), trusted_proxies=trusted)
    with make.server(shop, config) as client:
        make.wait_until(lambda: client.get("/readyz").status_code == 200)
        asked = [
            client.get("/v1/bundle", headers={"X-Forwarded-For": address}).status_code
            for address in ("10.0.0.1", "10.0.0.2", "10.0.0.2")
        ]
        assert asked == [200, second, 429]


def test_rates_are_moving_windows_and_an_ipv6_network_is_one_client():
    rates = Rates(RatesConfig(per_address="2/hour"))
    assert [rates.wait(None, "10.0.0.1"), rates.wait(None, "10.0.0.1")] == [0, 0]
    assert 3_590 <= rates.wait(None, "10.0.0.1") <= 3_600
    assert rates.wait(None, "10.0.0.2") == 0
    assert [rates.wait(None, f"2001:db8::{n}") for n in range(2)] == [0, 0]
    assert rates.wait(None, "2001:db8::77") > 0
    assert rates.wait(None, "2001:db8:0:1::1") == 0
    assert rates.wait("a key", "10.0.0.1") == 0
    assert Rates(RatesConfig()).wait(None, "10.0.0.1") == 0
    with pytest.raises(ValueError, match="rate limit string"):
        RatesConfig(per_key="often")


@pytest.mark.parametrize("step", [-3_600.0, 3_600.0])
def test_a_clock_that_is_set_anew_makes_nobody_wait_longer_than_the_rate_says(monkeypatch, step):
    rates, clock = Rates(RatesConfig(per_address="5/second")), time.time
    assert [rates.wait(None, "10.0.0.1") for _ in range(7)] == [0] * 5 + [1, 1]
    for ahead in (step, 0.0):
        monkeypatch.setattr("time.time", lambda ahead=ahead: clock() + ahead)
        assert rates.wait(None, "10.0.0.1") == 0
        assert [rates.wait(None, "10.0.0.1") for _ in range(5)][-1] == 1  # counted as before


def test_the_memory_for_clients_is_bounded(monkeypatch):
    monkeypatch.setattr("serving.rates._MOST_CLIENTS", 20)
    rates = Rates(RatesConfig(per_address="2/hour"))
    waits = [rates.wait(None, f"10.0.0.{n}") for n in range(200)]
    assert len(rates._storage.events) <= 21
    assert waits[:22] == [0] * 22  # the rest share one rate
    assert all(waits[22:])
    assert rates.wait(None, "10.0.0.3") == 0


def admitted(admission: Admission, count: int) -> int:
    """How many of so many requests are let in; they stay."""
    return sum(admission.enter() for _ in range(count))


def test_while_much_is_refused_fewer_are_let_in_and_twice_as_many_after_each_calm_window(monkeypatch):
    now = 100.0
    monkeypatch.setattr("serving.admission.time.monotonic", lambda: now)
    admission = Admission(AdmissionConfig(max_requests=40, overload_requests=10))
    assert admitted(admission, 49) == 40  # nine refusals of 49 may be a burst
    assert admission.limit == 40
    assert admitted(admission, 2) == 0  # eleven of 51 are more than a fifth
    assert admission.limit == 10
    now += 0.6
    assert admission.limit == 10  # too much was refused in the window before
    now += 0.6
    assert admission.limit == 20
    now += 0.6
    assert admission.limit == 40


def test_few_refusals_are_a_burst_and_an_hour_without_requests_is_calm(monkeypatch):
    now = 100.0
    monkeypatch.setattr("serving.admission.time.monotonic", lambda: now)
    admission = Admission(AdmissionConfig(max_requests=4, overload_requests=2))
    assert admitted(admission, 4 + 9) == 4
    assert admission.limit == 4
    assert admitted(admission, 1) == 0
    assert admission.limit == 2
    now += 3_600
    assert admission.limit == 4


@pytest.fixture(scope="module")
def narrow(shop, make):
    """A server with small caps."""
    config = ServeConfig(
        poll_seconds=0.05,
        caps=CapsConfig(max_body_bytes=1_000, max_head_bytes=2_000, body_seconds=0.3),
        admission=AdmissionConfig(max_requests=2, timeout_ms=5_000),
    )
    with make.server(shop, config) as client:
        make.wait_until(lambda: client.get("/readyz").status_code == 200)
        yield client


def body_of(size: int) -> bytes:
    text = json.dumps(BODY)
    return (text + " " * (size - len(text))).encode()


@pytest.mark.parametrize(("size", "status"), [(1_000, 200), (1_001, 413)])
@pytest.mark.parametrize("declared", [True, False])
def test_a_body_may_have_just_as_many_bytes_as_are_allowed(narrow, size, status, declared):
    content = body_of(size) if declared else iter([body_of(size)[:900], body_of(size)[900:]])
    headers = {"content-type": "application/json"}
    response = narrow.post("/v1/search", content=content, headers=headers)
    assert response.status_code == status
    assert status == 200 or code(response) == "body_too_large"


def test_a_head_may_have_just_as_many_bytes_as_are_allowed(narrow):
    def ask(size: int) -> bytes:
        fixed = b"/livez" + b"host" + b"x" + b"pad"
        return raw(
            narrow, b"GET /livez HTTP/1.1\r\nHost: x\r\nPad: " + b"p" * (size - len(fixed)) + b"\r\n\r\n"
        )

    assert ask(2_000).startswith(b"HTTP/1.1 200")
    assert ask(2_001).startswith(b"HTTP/1.1 431")
    assert narrow.get("/livez?" + "q" * 3_000).status_code == 431


def test_a_head_without_end_is_cut_off(narrow):
    reply = raw(narrow, b"GET /livez HTTP/1.1\r\nPad: " + b"p" * 3_000_000)
    assert reply == b"" or reply.startswith(b"HTTP/1.1 431")


def test_a_body_that_does_not_arrive_is_given_up(narrow):
    head = b"POST /v1/search HTTP/1.1\r\nHost: localhost\r\nContent-Length: 20\r\n\r\n"
    started = time.monotonic()
    assert raw(narrow, head + b"{").startswith(b"HTTP/1.1 408")
    assert time.monotonic() - started < 3


@pytest.mark.parametrize(
    ("asked", "status"),
    [
        ("1", None),
        ("5000", 200),
        ("5001", 422),
        ("0", 422),
        ("-1", 422),
        ("1.5", 422),
        ("9" * 30, 422),
        ("²", 422),
    ],
)
def test_a_caller_sets_a_deadline_up_to_the_configured_one(narrow, asked, status):
    response = narrow.post("/v1/search", json=BODY, headers={"X-Timeout-Ms": asked.encode()})
    assert response.status_code == status or (status is None and response.status_code in (200, 503))
    assert status != 422 or code(response) == "invalid_timeout"


def test_one_request_more_than_admitted_is_refused_at_once_and_told_when_to_come_back(narrow):
    started, statuses, waits = threading.Barrier(8), [], []

    def ask() -> None:
        with httpx.Client(base_url=narrow.base_url, timeout=20) as client:
            started.wait()
            for _ in range(30):
                response = client.post("/v1/search", json=BODY | {"k": 20})
                statuses.append(response.status_code)
                if response.status_code == 503:
                    assert code(response) == "overloaded"
                    waits.append(response.headers["retry-after"])

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(statuses) == {200, 503}
    assert set(waits) == {"1"}
    assert narrow.post("/v1/search", json=BODY).status_code == 200
    assert "twotower_requests_in_flight 0.0" in narrow.get("/metrics").text
