import os
import re
from pathlib import Path

import pytest
import yaml

from features.readers.ubi import UbiSource
from serving.api import ServeConfig
from serving.keys import KeysConfig, new_key
from serving.store import Store

ADMIN, LINE = new_key("admin", "operator")


@pytest.fixture
def operated(tmp_path, make):
    """A store with two champions in its history, and a client with the key to it."""
    store = Store(tmp_path / "store")
    for seed in (0, 9):
        store.set_champion(make.shop(store.root, seed=seed).path.name, "a test")
    (tmp_path / "keys").write_text(LINE)
    config = ServeConfig(poll_seconds=0.05, keys=KeysConfig(file=tmp_path / "keys"))
    with make.server(store.root, config) as client:
        client.headers["X-API-Key"] = ADMIN
        make.wait_until(lambda: client.get("/readyz").status_code == 200)
        yield store, client


def test_a_rollback_by_http_brings_the_earlier_champion_back_at_once(operated, make):
    store, client = operated
    first, second = [entry.bundle_id for entry in store.history()]
    assert client.get("/readyz").json()["bundle_id"] == second
    reply = client.post("/v1/admin/rollback", json={"reason": "worse since noon"})
    assert reply.json() == {"bundle_id": first, "rolled_back_from": second, "passed_over": {}}
    make.wait_until(lambda: client.get("/readyz").json()["bundle_id"] == first, 5)
    assert store.history()[-1].reason == "worse since noon"

    nowhere = client.post("/v1/admin/rollback", json={})
    assert nowhere.status_code == 409
    assert nowhere.json()["error"]["code"] == "no_rollback"


def test_a_rollback_to_what_is_no_whole_champion_is_refused_and_changes_nothing(operated):
    store, client = operated
    before = store.pointer.read_bytes()
    for bundle_id, status in (("0" * 16, 409), ("../../etc", 422), ("", 422), ("A" * 16, 422)):
        response = client.post("/v1/admin/rollback", json={"bundle_id": bundle_id})
        assert response.status_code == status
    first = store.history()[0].bundle_id
    os.truncate(store.bundle_path(first) / "ids.json", 3)
    damaged = client.post("/v1/admin/rollback", json={"bundle_id": first})
    assert damaged.status_code == 409
    assert "ids.json" in damaged.json()["error"]["message"]
    assert store.pointer.read_bytes() == before


def test_the_operators_page_has_settings_that_are_accepted_and_names_every_metric(operated):
    text = (Path(__file__).parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")
    served, source = [
        yaml.safe_load(block) for block in re.findall(r"^```yaml\n(.*?)^```", text, re.M | re.S)
    ]
    assert ServeConfig.model_validate(served["serve"]).query_log.users is False
    assert UbiSource.model_validate(source["source"]).format == "ubi"
    families = re.findall(r"^# TYPE (twotower_\w+) (\w+)", operated[1].get("/metrics").text, re.M)
    assert len(families) > 10
    assert [name for name, _ in families if not name.endswith("_created") and name not in text] == []
