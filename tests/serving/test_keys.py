import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from features.errors import ConfigError
from serving.api import ServeConfig, create_app
from serving.keys import Keys, KeysConfig, need, new_key, require_loopback_or_keys

READ, READ_LINE = new_key("read", "shop")
ADMIN, ADMIN_LINE = new_key("admin", "operator")


@pytest.fixture(scope="module")
def keyed(shop: Path, make, tmp_path_factory) -> Iterator[httpx.Client]:
    """A server that knows one key to read and one to administer."""
    file = tmp_path_factory.mktemp("keys") / "keys"
    file.write_text(f"# who may ask\n\n{READ_LINE}\n{ADMIN_LINE}\n")
    with make.server(shop, ServeConfig(poll_seconds=0.05, keys=KeysConfig(file=file))) as client:
        make.wait_until(lambda: client.get("/readyz").status_code == 200)
        yield client


def below(routes: list[Any]) -> Iterator[Any]:
    """Every route, those of included routers too."""
    for route in routes:
        if hasattr(route, "original_router"):
            yield from below(route.original_router.routes)
        elif hasattr(route, "path"):
            yield route


def routes() -> list[tuple[str, str]]:
    """Every method and path of the application, with something in place of parameters."""
    found = {("GET", "/page/app.js")}
    for route in below(create_app(Path("nowhere")).routes):
        path = re.sub(r"\{[^}]*\}", "d01", route.path)
        found |= {(method, path) for method in getattr(route, "methods", None) or () if method != "HEAD"}
    return sorted(found)


OPEN = {"/", "/docs", "/livez", "/readyz", "/openapi.json", "/page/app.js"}
SHOWN = {"no key": None, "wrong": "x" * 43, "read": READ, "admin": ADMIN}


@pytest.mark.parametrize("shown", SHOWN)
@pytest.mark.parametrize(("method", "path"), routes())
def test_every_route_takes_the_keys_it_needs_and_no_other(keyed, method, path, shown):
    headers = {} if SHOWN[shown] is None else {"Authorization": f"Bearer {SHOWN[shown]}"}
    response = keyed.request(method, path, headers=headers)
    administers = path.startswith("/v1/admin") or (path.startswith("/v1/judgments") and method != "GET")
    if path in OPEN:
        assert response.status_code == 200
    elif shown in ("no key", "wrong"):
        assert response.status_code == 401
        assert response.headers["www-authenticate"] == "Bearer"
        assert response.json()["error"]["code"] == "unauthorized"
        assert ("not known here" in response.json()["error"]["message"]) == (shown == "wrong")
    elif shown == "read" and administers:
        assert response.status_code == 403
        assert response.json()["error"]["code"] == "forbidden"
    else:
        assert response.status_code not in (401, 403)


def test_the_routes_are_those_that_were_thought_of():
    paths = {path for _, path in routes()}
    assert paths >= {"/v1/search", "/v1/documents/d01/neighbors", "/v1/bundle", "/metrics"}
    assert paths & OPEN == OPEN
    assert all(need(method, path) == "nothing" for method, path in routes() if path in OPEN)
    assert need("GET", "/a/route/of/tomorrow") == "read"


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": f"bearer {READ}"},
        {"X-API-Key": READ},
        {"Authorization": "Basic dTpw", "X-API-Key": ADMIN},
    ],
)
def test_a_key_comes_by_either_header(keyed, headers):
    assert keyed.post("/v1/search", json={"text": "red"}, headers=headers).status_code == 200


@pytest.mark.parametrize(
    "shown",
    [READ[:-1], READ + "a", READ.swapcase(), hashlib.sha256(READ.encode()).hexdigest(), "é", "x" * 9_000],
    ids=["shorter", "longer", "other case", "its hash", "no ASCII", "huge"],
)
def test_what_is_only_like_a_key_is_refused(keyed, shown):
    headers = {"Authorization": f"Bearer {shown}".encode()}
    assert keyed.post("/v1/search", json={"text": "red"}, headers=headers).status_code == 401


@pytest.mark.parametrize("path", ["/v1/admin/rollback", "/v1/admin", "/v1/administrator"])
def test_administration_needs_a_key_even_where_nothing_else_does(client, path):
    response = client.post(path)
    assert response.status_code == 403
    assert response.json()["error"]["code"] == "no_admin_key"


def test_keys_come_from_the_environment_too():
    keys = Keys.read(
        KeysConfig(), {"TWOTOWER_READ_KEY": READ, "TWOTOWER_ADMIN_KEY": ADMIN, "OTHER": "x" * 30}
    )
    assert len(keys) == 2
    assert keys.find([(b"authorization", f"Bearer {READ}".encode())]).role == "read"
    assert keys.find([(b"authorization", f"Bearer {ADMIN}".encode())]).role == "admin"
    assert keys.find([(b"authorization", b"Bearer " + b"x" * 30)]) is None
    assert len(Keys.read(KeysConfig(), {})) == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("read shop secret-in-clear-0123456789", ":1: no key"),
        (f"{READ_LINE}\nwrite shop sha256:{'0' * 64}", ":2: no key"),
        ("# nothing\n", "has no key"),
    ],
)
def test_a_file_of_keys_that_cannot_be_read_is_one_line_without_its_secrets(tmp_path, text, message):
    file = tmp_path / "keys"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message) as refused:
        Keys.read(KeysConfig(file=file), {})
    assert "secret" not in str(refused.value)
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        Keys.read(KeysConfig(file=tmp_path / "none"), {})


def test_a_short_key_is_refused_without_being_shown():
    with pytest.raises(ConfigError, match="TWOTOWER_READ_KEY has 15 characters") as refused:
        Keys.read(KeysConfig(), {"TWOTOWER_READ_KEY": "hunter2hunter22"})
    assert "hunter" not in str(refused.value)
    assert len(Keys.read(KeysConfig(), {"TWOTOWER_READ_KEY": "hunter2hunter222"})) == 1


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org", ""])
def test_a_public_address_needs_a_key_and_loopback_does_not(host):
    with pytest.raises(ConfigError, match="not loopback"):
        require_loopback_or_keys(host, Keys())
    require_loopback_or_keys(host, Keys.read(KeysConfig(), {"TWOTOWER_READ_KEY": READ}))
    for loopback in ("127.0.0.1", "127.8.8.8", "::1", "localhost"):
        require_loopback_or_keys(loopback, Keys())


def test_new_keys_differ_and_their_lines_hold_no_key():
    secret, line = new_key("read", "a")
    assert secret != new_key("read", "a")[0]
    assert len(secret) >= 43
    assert secret not in line
    with pytest.raises(ConfigError, match="cannot name a key"):
        new_key("read", "a\nadmin b")
