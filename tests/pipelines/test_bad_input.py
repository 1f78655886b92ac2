"""Whatever is wrong with an input, the command line says it in one line, and keeps the store whole."""

import gzip
import json
import re
import sys
import time
from itertools import pairwise

import pandas as pd
import pytest
from typer.testing import CliRunner

from features.artifact import Artifact
from pipelines.cli import app, main
from pipelines.output import exit_code
from pipelines.stages import Examples, Export, Ingest, Train
from pipelines.workspace import StageResult
from towers.record import NoRecorder

FOLDERS = ("lake", "examples", "checkpoints", "evaluations", "bundles")
WORDS = ["red", "blue", "green", "shoe", "lamp", "table", "chair", "sofa", "desk", "rug"]

CONFIG = """\
name: bad
store: {folder}/store
source:
  format: columnar
  path: {folder}/log.csv
  documents:
    path: {folder}/documents.jsonl
    features: [brand]
examples:
  query: text
towers:
  dimension: 8
  shared: true
  query: {{kind: features, text: {{width: 8, word_buckets: 100, ngram_buckets: 100}}}}
  document: {{kind: features, text: {{width: 8, word_buckets: 100, ngram_buckets: 100}}}}
train:
  stages:
    - {{name: only, batch_size: 8, steps: 2}}
  early_stopping: null
"""


def log_of(lists=60, shown=4):
    """Lists of `shown` of ten documents, an hour apart, of which the first is clicked."""
    rows = [
        {
            "impression_id": f"i{number}",
            "query_text": WORDS[number % len(WORDS)],
            "user_id": f"u{number % 7}",
            "timestamp": pd.Timestamp("2024-03-01", tz="UTC") + pd.Timedelta(hours=number),
            "doc_id": f"d{(number + place) % len(WORDS)}",
            "position": place + 1,
            "clicked": place == 0,
        }
        for number in range(lists)
        for place in range(shown)
    ]
    return pd.DataFrame(rows)


LOG = log_of()
DOCUMENTS = pd.DataFrame(
    {"doc_id": [f"d{n}" for n in range(len(WORDS))], "title": WORDS, "brand": ["x", "y"] * 5}
)


class Shop:
    """A folder with a log, a catalogue and a configuration, each of which a test may spoil."""

    def __init__(self, folder):
        self.folder = folder
        self.store = folder / "store"
        self.config = folder / "bad.yaml"
        self.config.write_text(CONFIG.format(folder=folder))
        self.write(LOG, DOCUMENTS)

    def write(self, log=None, documents=None):
        if log is not None:
            log.to_csv(self.folder / "log.csv", index=False)
        if documents is not None:
            documents.to_json(self.folder / "documents.jsonl", orient="records", lines=True)

    def run(self, *changes, until="ingest"):
        """Do the stages themselves, without Prefect and MLflow, and return the artifact of the last."""
        from pipelines.config import load_config

        config = load_config(self.config, changes)
        config.source.files()
        results = []
        for kind in (Ingest, Examples, Train)[: ("ingest", "examples", "train").index(until) + 1]:
            outcome = kind(config, *results[-1:]).run(NoRecorder())
            results.append(StageResult(kind.name, str(outcome.path), outcome.digest, False, 0.0, ""))
        return Artifact.read(outcome.path, verify=True), outcome.summary


@pytest.fixture
def shop(tmp_path):
    return Shop(tmp_path)


def left_in(store):
    """Everything that a reader could take for a result, finished or not."""
    return sorted(path.relative_to(store).parts[0] for name in FOLDERS for path in (store / name).glob("*"))


def spoil_columns(frame, **names):
    return frame.rename(columns={old: new for new, old in names.items()})


def truncated(path):
    whole = gzip.compress(path.read_bytes())
    target = path.with_name(path.name + ".gz")
    target.write_bytes(whole[: len(whole) // 2])
    return target


def _missing(shop):
    return [f"source.path={shop.folder}/nothing.csv"]


def _folder(shop):
    return [f"source.path={shop.folder}"]


def _truncated_log(shop):
    return [f"source.path={truncated(shop.folder / 'log.csv')}"]


def _truncated_catalogue(shop):
    return [f"source.documents.path={truncated(shop.folder / 'documents.jsonl')}"]


def _catalogue_of_a_header(shop):
    (shop.folder / "documents.csv").write_text("doc_id,title,brand\n")
    return [f"source.documents.path={shop.folder}/documents.csv"]


def _pretty_json(shop):
    (shop.folder / "log.json").write_text(json.dumps([{"doc_id": "d1"}], indent=1))
    return [f"source.path={shop.folder}/log.json"]


def _empty_file(shop):
    (shop.folder / "log.csv").write_text("")


INPUTS = {
    "missing file": (_missing, "ingest", 3, "nothing.csv does not exist or names no file; correct the path"),
    "a folder": (_folder, "ingest", 3, r"is a folder; name its files, such as .*\*\.parquet"),
    "wrong column name in the log": (
        lambda shop: shop.write(log=spoil_columns(LOG, document="doc_id")),
        "ingest",
        3,
        r"log\.csv has no column 'doc_id'; map source\.columns\.doc_id or \.shown to one of: impression_id",
    ),
    "wrong column name in the configuration": (
        lambda shop: ["source.columns.query_text=qurey"],
        "ingest",
        3,
        r"log\.csv has no column 'qurey' \(for query_text\); map query_text to one of: impression_id",
    ),
    "wrong column name in the catalogue": (
        lambda shop: shop.write(documents=spoil_columns(DOCUMENTS, sku="doc_id")),
        "ingest",
        3,
        r"documents\.jsonl has no column 'doc_id'; map doc_id to one of: brand, sku, title",
    ),
    "truncated gzip log": (_truncated_log, "ingest", 3, r"log\.csv\.gz is cut off .*; get the whole file"),
    "truncated gzip catalogue": (_truncated_catalogue, "ingest", 3, r"documents\.jsonl\.gz is cut off"),
    "one document of JSON over many lines": (
        _pretty_json,
        "ingest",
        3,
        r"log\.json: none of 5 lines is an object of JSON; write one object a line",
    ),
    "no timestamp can be read": (
        lambda shop: shop.write(log=LOG.assign(timestamp="yesterday")),
        "ingest",
        3,
        "none of 240 rows was accepted .240 unreadable_timestamp.; write times as ISO 8601",
    ),
    "every timestamp in the future": (
        lambda shop: shop.write(log=LOG.assign(timestamp="2924-01-01")),
        "ingest",
        3,
        "none of 240 rows was accepted .240 future_timestamp.; .* set ingest.now",
    ),
    "ids of another catalogue": (
        lambda shop: shop.write(documents=DOCUMENTS.assign(doc_id=DOCUMENTS["title"])),
        "ingest",
        3,
        "none of 240 rows was accepted .240 unknown_document.; its ids are not those of the catalogue",
    ),
    "empty log": (lambda shop: shop.write(log=LOG.iloc[:0]), "ingest", 3, "the log is empty: no impressions"),
    "log without a byte": (_empty_file, "ingest", 3, r"log\.csv is empty; a CSV file starts with a row of"),
    "empty catalogue": (_catalogue_of_a_header, "ingest", 3, "the catalogue is empty: no documents"),
    "one document": (
        lambda shop: shop.write(documents=DOCUMENTS.iloc[:1]),
        "examples",
        3,
        "the catalogue has one document; retrieval needs at least two",
    ),
    "one query": (
        lambda shop: shop.write(log=LOG.assign(query_text="shoe")),
        "examples",
        3,
        "the log has 1 distinct queries; in-batch negatives need at least two",
    ),
    "no click": (
        lambda shop: shop.write(log=LOG.assign(clicked=False)),
        "examples",
        3,
        "no click counts in the log's 60 lists",
    ),
    "a cut after the log": (
        lambda shop: ["examples.split={by: time, test_from: 2100-01-02, validation_from: 2100-01-01}"],
        "examples",
        2,
        "leaves validation and test without a click: .*; change examples.split",
    ),
    "a batch larger than the data": (
        lambda shop: ["train.stages.0.batch_size=5000"],
        "train",
        2,
        "batch_size is 5000 but there are only .* set batch_size to at most",
    ),
    "a column for the towers that is not there": (
        lambda shop: ["towers.document.categories=[{column: colour}]"],
        "train",
        2,
        "the towers read a column 'colour' that is not there; there are: brand",
    ),
    "a store that is a file": (
        lambda shop: [f"store={shop.config}"],
        "ingest",
        2,
        "bad.yaml cannot be a folder: .*; give another `store`",
    ),
}


@pytest.mark.parametrize("name", INPUTS)
def test_bad_input_is_one_line_a_documented_code_and_no_half_result(shop, name):
    spoil, stage, code, message = INPUTS[name]
    changes = spoil(shop) or []
    with pytest.raises(Exception, match=message) as caught:
        shop.run(*changes, until=stage)
    assert exit_code(caught.value) == code
    assert len(str(caught.value).splitlines()) == 1
    done = {"ingest": [], "examples": ["lake"], "train": ["examples", "lake"]}[stage]
    assert left_in(shop.store) == done


def refused(artifact):
    table = pd.read_parquet(artifact.path / "quarantine" / "part-0.parquet")
    return table.set_index("row")["reason"].to_dict()


def test_an_invalid_line_of_json_is_quarantined_and_counted(shop):
    lines = LOG.assign(timestamp=LOG["timestamp"].astype(str)).to_json(orient="records", lines=True)
    broken = [line if row != 100 else line[:40] for row, line in enumerate(lines.splitlines(), 1)]
    (shop.folder / "log.jsonl").write_text("\n".join(broken))
    lake, summary = shop.run(f"source.path={shop.folder}/log.jsonl")
    assert summary == "239 impressions, 1 in quarantine (1 invalid_json); 10 documents"
    assert refused(lake) == {100: "invalid_json"}


def test_timestamps_in_three_formats_are_one_moment_and_the_future_is_quarantined(shop):
    forms = [
        lambda moment: moment.isoformat(),
        lambda moment: str(int(moment.timestamp() * 1000)),
        lambda moment: moment.strftime("%Y-%m-%d %H:%M:%S"),
    ]
    times = [forms[row % 3](moment) for row, moment in enumerate(LOG["timestamp"])]
    plain, _ = shop.run()
    shop.write(log=LOG.assign(timestamp=[*times[:-1], "2924-01-01T00:00:00Z"]))
    lake, summary = shop.run()
    assert "1 in quarantine (1 future_timestamp)" in summary
    before, after = (
        pd.read_parquet(artifact.path / "impressions").drop(columns="date") for artifact in (plain, lake)
    )
    keys = ["impression_id", "doc_id"]
    before = before.sort_values(keys, ignore_index=True)
    after = after.sort_values(keys, ignore_index=True)
    left = before.merge(after[keys], on=keys)
    assert len(left) == 239
    assert left["timestamp"].equals(after["timestamp"])


def test_a_click_on_a_document_never_shown_is_quarantined(shop):
    lists = LOG.groupby("impression_id", sort=False).agg(
        query_text=("query_text", "first"), timestamp=("timestamp", "first"), shown=("doc_id", "|".join)
    )
    lists["clicked"] = [shown.split("|")[0] for shown in lists["shown"]]
    lists.loc["i5", "clicked"] += "|d0|nobody"
    shop.write(log=lists.reset_index())
    _, summary = shop.run()
    assert summary == "240 impressions, 2 in quarantine (2 click_not_shown); 10 documents"


def test_duplicate_impressions_are_counted_and_change_nothing(shop):
    shop.write(log=pd.concat([LOG, LOG.iloc[:40]]))
    lake, summary = shop.run()
    assert summary == "240 impressions, 40 duplicate; 10 documents"
    shop.write(log=LOG)
    once, _ = shop.run()
    first, second = (
        {name: file["sha256"] for name, file in artifact.manifest["files"].items()}
        for artifact in (lake, once)
    )
    assert first == second


def test_ids_that_are_numbers_are_text_from_end_to_end(shop):
    numbers = {name: 7 * row for row, name in enumerate(DOCUMENTS["doc_id"])}
    shop.write(LOG.assign(doc_id=LOG["doc_id"].map(numbers)), DOCUMENTS.assign(doc_id=range(0, 70, 7)))
    examples, _ = shop.run(until="examples")
    train = pd.read_parquet(examples.path / "train.parquet")
    assert set(train["positive_doc_id"]) <= {str(number) for number in numbers.values()}


def twotower(*arguments):
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return done.exit_code, done.stderr.strip()


CONFIGURATIONS = {
    "unknown key": (
        "dimension: 8",
        "dimensoin: 8",
        r':12: towers\.dimensoin: unknown key; did you mean "dim',
    ),
    "unknown key in a list": (
        "steps: 2",
        "steps: 2, lr: 1",
        r":18: train\.stages\.0\.lr: unknown key; allowed",
    ),
    "a tab": ("  dimension", "\tdimension", r":12: not valid YAML: .*; indent with spaces, not with tabs"),
    "a key twice": ("name: bad", "name: bad\nname: worse", r":2: key 'name' was already given on line 1"),
    "no catalogue": ("  documents:", "  document:", r"a log needs a catalogue; say where it is"),
    "an object of Python": (
        "name: bad",
        "name: !!python/name:os.system",
        r":1: not valid YAML: could not determine a constructor for the tag",
    ),
    "a word for a number": ("batch_size: 8", "batch_size: many", r"batch_size: input should be a valid int"),
    "a metric that is none": (
        "train:",
        "evaluate: {metrics: [nDGC@10]}\ntrain:",
        "'nDGC@10' is not a metric",
    ),
}


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_mistake_in_the_configuration_is_one_line_with_its_place(shop, name):
    old, new, message = CONFIGURATIONS[name]
    shop.config.write_text(shop.config.read_text().replace(old, new, 1))
    code, line = twotower("run", shop.config)
    assert code == 2
    assert re.search(message, line)
    assert line.startswith(f"twotower: {shop.config}")
    assert "\n" not in line
    assert not shop.store.exists()


def test_aliases_that_would_write_billions_of_values_are_refused_at_once(shop):
    names = "abcdefgh"
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    lines += [f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]" for before, name in pairwise(names)]
    shop.config.write_text("\n".join(lines))
    code, line = twotower("run", shop.config)
    assert code == 2
    assert "its aliases written out; a configuration is smaller: remove the aliases" in line


def test_nesting_without_end_is_refused(shop):
    shop.config.write_text("name: " + "[" * 5 * sys.getrecursionlimit())
    code, line = twotower("run", shop.config)
    assert (code, line) == (2, f"twotower: {shop.config}: nested too deeply for a configuration")


@pytest.mark.parametrize(
    ("text", "code", "message"),
    [
        (None, 3, "qrels.csv does not exist or names no file; correct the path"),
        (
            "query_text,doc_id,grade\nred,d0,1\n",
            3,
            "qrels.csv has no column 'relevance'; map relevance to one",
        ),
        ("query_text,doc_id,relevance\nred,d0,good\n", 3, "judgement 1 has the grade 'good', no number"),
        ("query_text,doc_id,relevance\n", 3, "qrels.csv is empty: no judgements"),
    ],
)
def test_judged_queries_that_cannot_be_read_are_told_before_anything_is_done(shop, text, code, message):
    path = shop.folder / "qrels.csv"
    if text is not None:
        path.write_text(text)
    got, line = twotower("run", shop.config, "--set", f"qrels.path={path}")
    assert got == code
    assert message in line
    assert "\n" not in line
    assert left_in(shop.store) == []


def test_simulating_onto_what_a_user_has_there_is_refused_and_deletes_nothing(tmp_path):
    folder = tmp_path / "home"
    folder.mkdir()
    (folder / "thesis.txt").write_text("years of work")
    file = tmp_path / "notes.txt"
    file.write_text("more")
    for target in (folder, file):
        code, line = twotower("simulate", target, "--sessions", "10")
        assert code == 2
        assert "which would be deleted; name a folder that does not exist" in line
    assert (folder / "thesis.txt").read_text() == "years of work"
    assert file.read_text() == "more"


def test_a_simulation_replaces_an_earlier_one_but_not_what_was_put_beside_it(tmp_path):
    shop = tmp_path / "shop"
    assert twotower("simulate", shop, "--sessions", "10")[0] == 0
    assert twotower("simulate", shop, "--sessions", "12")[0] == 0
    (shop / "notes.txt").write_text("mine")
    code, line = twotower("simulate", shop, "--sessions", "10")
    assert code == 2
    assert "notes.txt" in line
    assert (shop / "notes.txt").read_text() == "mine"


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A store with a champion over the ten documents."""
    from pipelines.config import load_config
    from serving.store import Store

    shop = Shop(tmp_path_factory.mktemp("served"))
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
def test_a_query_that_cannot_be_answered_is_one_line(served, text, options, message):
    assert twotower("search", served.store, text, *options) == (2, f"twotower: {message}")


def test_the_same_queries_are_refused_over_http(served):
    from fastapi.testclient import TestClient

    from serving.api import create_app

    with TestClient(create_app(served.store)) as client:
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
    assert len(json.loads(done.stdout)["towers"]) == len(DOCUMENTS)


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
def test_a_path_that_is_something_else_is_one_line(served, arguments, code, message):
    (served.folder / "latin.yaml").write_bytes("name: caf\xe9".encode("latin-1"))
    names = {"config": served.config, "folder": served.folder, "store": served.store}
    got, line = twotower(*(argument.format(**names) for argument in arguments))
    assert got == code
    assert message in line
    assert "\n" not in line


def test_judged_queries_about_other_documents_name_their_file(served):
    path = served.folder / "judged.csv"
    path.write_text("query_text,doc_id,relevance\nred,nobody,1\n")
    code, line = twotower("evaluate", served.config, "--qrels", path)
    assert code == 3
    assert re.search(r"judged-\w+\.parquet: none of 1 queries has a relevant document", line)


def test_a_port_in_use_is_one_line(served, capsys):
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(SystemExit) as ended:
        main(["serve", str(served.store), "--port", str(taken.getsockname()[1])])
    assert ended.value.code == 2
    assert re.fullmatch(r"twotower: cannot listen on .*; choose another port\n", capsys.readouterr().err)
