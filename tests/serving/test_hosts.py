import httpx
import pytest

from serving.api import ServeConfig
from serving.hosts import Hosts
from serving.keys import KeysConfig, new_key

KNOWN = [
    "localhost",
    "localhost:8080",
    "LOCALHOST.",
    "127.0.0.1:9",
    "127.8.9.1",
    "[::1]",
    "[::1]:80",
    "Shop.Example",
    "shop.example:",
    "[fd00::7]:8080",
]
STRANGE = [
    "",
    "evil.example",
    "evil.example:8080",
    "localhost.evil.example",
    "127.0.0.1.evil.example",
    "evil.example#localhost",
    "localhost@evil.example",
    "192.168.0.1",
    "0.0.0.0",
    "[::]",
    "[fd00::8]",
    "::1:80:x",
    "localhost:80:80",
    "ſhop.example",
    "2130706433",
]


@pytest.mark.parametrize(("host", "known"), [*((h, True) for h in KNOWN), *((h, False) for h in STRANGE)])
def test_loopback_and_what_is_configured_are_known_by_name_and_address(host, known):
    assert Hosts(("shop.example", "fd00::7")).has(host.encode()) is known


@pytest.fixture(scope="module")
def open_server(shop, make):
    """A server without keys that a proxy calls shop.example."""
    with make.server(shop, ServeConfig(poll_seconds=0.05, hosts=("shop.example",))) as client:
        make.wait_until(lambda: client.get("/readyz").status_code == 200)
        yield client


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/v1/search"), ("GET", "/v1/bundle"), ("GET", "/metrics"), ("POST", "/v1/judgments")],
)
def test_without_keys_a_page_under_a_strange_name_reads_nothing(open_server, method, path):
    reply = open_server.request(method, path, json={"text": "red"}, headers={"Host": "evil.example:8080"})
    assert (reply.status_code, reply.json()["error"]["code"]) == (421, "unknown_host")
    assert "serve.hosts" in reply.json()["error"]["message"]


def test_without_keys_known_names_and_checks_of_health_come_through(open_server):
    for host in ("shop.example", "localhost:1"):
        headers = {"Host": host}
        assert open_server.post("/v1/search", json={"text": "red"}, headers=headers).status_code == 200
    assert open_server.get("/livez", headers={"Host": "10.0.0.7:8080"}).status_code == 200


def test_with_keys_any_name_is_as_good(tmp_path, shop, make):
    key, line = new_key("read", "a")
    (tmp_path / "keys").write_text(line)
    with make.server(shop, ServeConfig(keys=KeysConfig(file=tmp_path / "keys"))) as client:
        make.wait_until(lambda: client.get("/readyz").status_code == 200)
        headers = {"Host": "search.example", "X-API-Key": key}
        assert client.post("/v1/search", json={"text": "red"}, headers=headers).status_code == 200


def test_no_reply_sends_the_client_to_the_host_that_it_named(open_server: httpx.Client):
    for path in ("/docs/", "/v1/bundle/"):
        reply = open_server.get(path, headers={"Host": "shop.example"}, follow_redirects=False)
        assert reply.status_code == 404
        assert "location" not in reply.headers
