"""What a store with a champion says to queries, paths and ports that it cannot serve."""

import json
import re
import time

import pytest
from typer.testing import CliRunner

from pipelines.cli import app, main
from pipelines.stages import Examples, Export, Ingest, Train
from pipelines.workspace import StageResult


@pytest.fixture(scope="module")
def served(tmp_path_factory, small_shop):
    """A store with a champion over the ten documents."""
    from pipelines.config import load_config
    from serving.store import Store

    shop = small_shop(tmp_path_factory.mktemp("served"))
    shop.run(until="train")
    config = load_config(shop.config)
    lake = _result(Ingest(config))
    data = _result(Examples(config, lake))
    checkpoint = _result(Train(config, data))
    stage = Export(config, data, checkpoint, StageResult("evaluate", "", "", False, 0.0, ""))
    stage._paths[2] = None
    bundle = stage.run(None)
    Store(shop.store).set_champion(bundle.path.name, "a test")
    return shop


def _result(stage):
    outcome = stage.find()
    return StageResult(stage.name, str(outcome.path), outcome.digest, True, 0.0, "")


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("", [], "the query has no visible character; type a word"),
        (" \u200b\t", [], "the query has no visible character; type a word"),
        ("shoe " * 200_000, [], "the query has 1000000 characters; at most 2000 are allowed"),
        ("shoe", ["-k", "0"], "k = 0; it must be from 1 to 1000"),
        ("shoe", ["-k", "100000000"], "k = 100000000; it must be from 1 to 1000"),
        ("shoe", ["--history", "d1,d2"], "this bundle answers a text, not a history; leave history out"),
    ],
)
def test_a_query_that_cannot_be_answered_is_one_line(served, text, options, message, twotower_says):
    assert twotower_says("search", served.store, text, *options) == (2, f"twotower: {message}")


def test_the_same_queries_are_refused_over_http(served):
    from fastapi.testclient import TestClient

    from serving.api import create_app

    with TestClient(create_app(served.store), base_url="http://localhost") as client:
        deadline = time.monotonic() + 60
        while client.get("/readyz").status_code != 200 and time.monotonic() < deadline:
            time.sleep(0.05)
        for body, status, code in [
            ({"text": ""}, 422, "empty_query"),
            ({"text": "shoe " * 190_000}, 422, "query_too_long"),
            ({"text": "shoe " * 200_000}, 413, "body_too_large"),
            ({"text": "shoe", "k": 0}, 422, "invalid_k"),
        ]:
            reply = client.post("/v1/search", json=body)
            assert (reply.status_code, reply.json()["error"]["code"]) == (status, code)
        assert client.post("/v1/search", json={"text": "shoe"}).status_code == 200


def test_k_larger_than_the_corpus_returns_the_corpus(served):
    done = CliRunner().invoke(app, ["search", str(served.store), "shoe", "-k", "500", "--json"])
    assert done.exit_code == 0, done.stderr
    assert len(json.loads(done.stdout)["towers"]) == len(served.documents)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["search", "{config}", "shoe"], 4, "is no folder; give the `store` of a configuration that was run"),
        (["search", "{folder}", "shoe"], 4, "has no champion; `twotower run CONFIG` makes and promotes"),
        (["search", "{store}", "shoe", "--bundle", "0" * 16], 4, "has no bundle 0000000000000000"),
        (["search", "{store}", "shoe", "--bundle", "../../etc"], 4, "is not a bundle id"),
        (["serve", "{config}"], 4, "is not a folder; give the `store`"),
        (["run", "{store}"], 2, "is a folder; give the path of a YAML configuration"),
        (["run", "{folder}/nothing.yaml"], 2, "does not exist; give the path of a YAML configuration"),
        (["run", "{folder}/latin.yaml"], 2, "is not UTF-8 text; give the path of a YAML configuration"),
        (["run", "{config}", "--set", "train"], 2, "expected key=value, such as --set seed=1"),
        (["evaluate", "{config}", "--qrels", "{folder}/nothing.json"], 3, "does not exist or names no file"),
        (["compare", "{folder}", "{folder}"], 4, "is not a finished artifact"),
    ],
)
def test_a_path_that_is_something_else_is_one_line(served, arguments, code, message, twotower_says):
    (served.folder / "latin.yaml").write_bytes("name: caf\xe9".encode("latin-1"))
    names = {"config": served.config, "folder": served.folder, "store": served.store}
    got, line = twotower_says(*(argument.format(**names) for argument in arguments))
    assert got == code
    assert message in line
    assert "\n" not in line


def test_judged_queries_about_other_documents_name_their_file(served, twotower_says):
    path = served.folder / "judged.csv"
    path.write_text("query_text,doc_id,relevance\nred,nobody,1\n")
    code, line = twotower_says("evaluate", served.config, "--qrels", path)
    assert code == 3
    assert re.search(r"judged-\w+\.parquet: none of 1 queries has a relevant document", line)


def test_a_port_in_use_is_one_line(served, capsys):
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(SystemExit) as ended:
        main(["serve", str(served.store), "--port", str(taken.getsockname()[1])])
    assert ended.value.code == 2
    assert re.fullmatch(r"twotower: cannot listen on .*; choose another port\n", capsys.readouterr().err)
