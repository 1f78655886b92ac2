"""What somebody new types by mistake: each answer is one line, at once, and says what to type next."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from features.artifact import publish
from features.engine import EngineConfig, connect
from features.errors import SchemaError
from features.lake import check_account
from features.readers import ColumnarSource, read
from pipelines.cli import app
from pipelines.output import counted
from pipelines.stored import force_command
from pipelines.workspace import Workspace
from serving.store import Store

PROGRAM = """
import json, sys
from pipelines.cli import main
for arguments in json.loads(sys.argv[1]):
    try:
        main(arguments)
    except SystemExit as ended:
        print(ended.code)
print(*({"torch", "faiss", "mlflow", "prefect", "duckdb"} & sys.modules.keys()))
"""


def publish_bundle(store: Store, name: str) -> str:
    with publish(store.root / "new", "bundle", {"name": name}) as staging:
        (staging / "file").write_bytes(b"1")
    bundle_id = json.loads((store.root / "new" / "manifest.json").read_text())["digest"][:16]
    (store.root / "new").rename(store.bundles / bundle_id)
    return str(bundle_id)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """One bundle, never promoted."""
    store = Store(tmp_path / "store")
    store.bundles.mkdir(parents=True)
    publish_bundle(store, "a")
    return store


def said(*arguments: object) -> tuple[int, str]:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return done.exit_code, done.stderr.strip()


def test_mistakes_are_answered_before_a_heavy_library_is_loaded(store: Store):
    root, unknown = str(store.root), "0" * 16
    commands = [
        ["--help"],
        ["bundles", root],
        ["prune", root],
        ["update", root],
        ["update", root, "--delete", "x", "--bundle", unknown],
        ["verify", root, unknown],
        ["search", root, "shoes", "--bundle", unknown],
        ["rollback", root, "--to", unknown],
        ["run", f"{root}/my.yaml"],
        ["config", f"{root}/my.yaml"],
        ["doctor", f"{root}/my.yaml"],
    ]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(commands)], capture_output=True, text=True, timeout=60
    )
    codes = [line for line in done.stdout.splitlines() if line.isdigit()]
    assert codes == ["0", "0", "2", "2", *"4444", *"222"]
    assert done.stdout.splitlines()[-1] == ""
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 9
    assert all(f"`twotower bundles {root}` lists its bundles" in line for line in lines[2:6])
    assert all("my.yaml does not exist; give the path of a YAML" in line for line in lines[6:])


@pytest.mark.parametrize("command", ["verify", "rollback", "search", "vectors", "update"])
def test_a_bundle_that_is_not_there_is_named_with_what_lists_those_that_are(store: Store, command: str):
    arguments = {
        "verify": ["nosuch"],
        "rollback": ["--to", "nosuch"],
        "search": ["shoes", "--bundle", "nosuch"],
        "vectors": ["out.parquet", "--bundle", "nosuch"],
        "update": ["--delete", "x", "--bundle", "nosuch"],
    }[command]
    code, line = said(command, store.root, *arguments)
    assert code == 4
    assert line == (
        "twotower: 'nosuch' is not a bundle id (16 hexadecimal digits); "
        f"`twotower bundles {store.root}` lists its bundles"
    )


def test_a_store_without_a_champion_says_how_to_get_one(store: Store):
    (only,) = store.bundle_ids()
    code, line = said("search", store.root, "shoes")
    assert code == 4
    assert (
        f"{store.root} has no champion, nothing was promoted yet; name its only bundle (--bundle {only})"
        in line
    )
    assert "`twotower promote CONFIG --force`" in line
    newest = publish_bundle(store, "b")
    made = [{"stage": "export", "path": str(store.bundles / newest)}]
    run = {"stages": made, "config": "my shop.yaml", "overrides": ["seed=7"]}
    Workspace(store.root).write_record("runs", "0" * 32, run)
    for command in (["search", store.root, "shoes"], ["compare", store.root, store.root]):
        code, line = said(*command)
        assert code == 4
        assert f"name the newest of its 2 bundles (--bundle {newest})" in line
        assert "`twotower promote 'my shop.yaml' --set seed=7 --force`" in line
    assert force_command({}) == "twotower promote CONFIG --force"


def test_verifying_a_store_without_a_bundle_does_not_pass(tmp_path: Path):
    assert said("verify", tmp_path) == (
        4,
        f"twotower: {tmp_path} has no bundle to open; `twotower run CONFIG` makes one",
    )


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("log.csv", b"q;doc_id;when\na;b;c\n", r"doc_id or .*; or set its `delimiter` to \";\", if"),
        ("log.csv", b"q\tdoc_id\na\tb\n", r"; or set its `delimiter` to \"\\t\", if"),
        ("log.csv", b"q\na\n", r"to one of: q$"),
        ("log.csv", b"PK\x03\x04\x14,\x00\n", r"log.csv is no text: .*; export it as CSV$"),
    ],
)
def test_a_file_of_another_form_says_so(tmp_path: Path, name: str, content: bytes, message: str):
    (tmp_path / name).write_bytes(content)
    (tmp_path / "documents.csv").write_text("doc_id,title\na,Tea\n")
    source = ColumnarSource(
        format="columnar", path=tmp_path / name, documents={"path": tmp_path / "documents.csv"}
    )
    with pytest.raises(SchemaError, match=message) as caught:
        read(source, connect(EngineConfig(threads=1)))
    assert len(str(caught.value).splitlines()) == 1


def test_clicks_that_cannot_be_read_are_told_with_the_forms_that_can():
    counts = {"input": 3, "accepted": 0, "duplicates": 0, "quarantined": {"invalid_value": 3}}
    with pytest.raises(SchemaError, match="a click that is not 1 or 0, true or false, yes or no"):
        check_account(counts, "impressions")


def test_a_store_without_a_bundle_is_no_empty_table(tmp_path: Path):
    done = CliRunner().invoke(app, ["bundles", str(tmp_path)])
    assert done.exit_code == 0
    assert done.stdout == f"{tmp_path} has no bundle; `twotower run CONFIG` makes one\n"


def test_counts_have_nouns_in_the_number_that_fits(store: Store):
    assert [counted(1, "bundle"), counted(0, "bundle"), counted(2000, "query", "queries")] == [
        "1 bundle",
        "0 bundles",
        "2,000 queries",
    ]
    assert (
        CliRunner().invoke(app, ["bundles", str(store.root)]).stdout.startswith(f"{store.root}: 1 bundle\n")
    )
