"""Whatever is wrong with an input, the stages say it in one line, and keep the store whole."""

import gzip
import json

import pandas as pd
import pytest

from pipelines.output import exit_code


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
        lambda shop: shop.write(log=spoil_columns(shop.log, document="doc_id")),
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
        lambda shop: shop.write(documents=spoil_columns(shop.documents, sku="doc_id")),
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
        lambda shop: shop.write(log=shop.log.assign(timestamp="yesterday")),
        "ingest",
        3,
        "none of 240 rows was accepted .240 unreadable_timestamp.; write times as ISO 8601",
    ),
    "every timestamp in the future": (
        lambda shop: shop.write(log=shop.log.assign(timestamp="2924-01-01")),
        "ingest",
        3,
        "none of 240 rows was accepted .240 future_timestamp.; .* set ingest.now",
    ),
    "ids of another catalogue": (
        lambda shop: shop.write(documents=shop.documents.assign(doc_id=shop.documents["title"])),
        "ingest",
        3,
        "none of 240 rows was accepted .240 unknown_document.; its ids are not those of the catalogue",
    ),
    "empty log": (
        lambda shop: shop.write(log=shop.log.iloc[:0]),
        "ingest",
        3,
        "the log is empty: no impressions",
    ),
    "log without a byte": (_empty_file, "ingest", 3, r"log\.csv is empty; a CSV file starts with a row of"),
    "empty catalogue": (_catalogue_of_a_header, "ingest", 3, "the catalogue is empty: no documents"),
    "one document": (
        lambda shop: shop.write(documents=shop.documents.iloc[:1]),
        "examples",
        3,
        "the catalogue has one document; retrieval needs at least two",
    ),
    "one query": (
        lambda shop: shop.write(log=shop.log.assign(query_text="shoe")),
        "examples",
        3,
        "the log has 1 distinct queries; in-batch negatives need at least two",
    ),
    "no click": (
        lambda shop: shop.write(log=shop.log.assign(clicked=False)),
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
    assert shop.left() == done


def refused(artifact):
    table = pd.read_parquet(artifact.path / "quarantine" / "part-0.parquet")
    return table.set_index("row")["reason"].to_dict()


def test_an_invalid_line_of_json_is_quarantined_and_counted(shop):
    lines = shop.log.assign(timestamp=shop.log["timestamp"].astype(str)).to_json(orient="records", lines=True)
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
    times = [forms[row % 3](moment) for row, moment in enumerate(shop.log["timestamp"])]
    plain, _ = shop.run()
    shop.write(log=shop.log.assign(timestamp=[*times[:-1], "2924-01-01T00:00:00Z"]))
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
    lists = shop.log.groupby("impression_id", sort=False).agg(
        query_text=("query_text", "first"), timestamp=("timestamp", "first"), shown=("doc_id", "|".join)
    )
    lists["clicked"] = [shown.split("|")[0] for shown in lists["shown"]]
    lists.loc["i5", "clicked"] += "|d0|nobody"
    shop.write(log=lists.reset_index())
    _, summary = shop.run()
    assert summary == "240 impressions, 2 in quarantine (2 click_not_shown); 10 documents"


def test_duplicate_impressions_are_counted_and_change_nothing(shop):
    shop.write(log=pd.concat([shop.log, shop.log.iloc[:40]]))
    lake, summary = shop.run()
    assert summary == "240 impressions, 40 duplicate; 10 documents"
    shop.write(log=shop.log)
    once, _ = shop.run()
    first, second = (
        {name: file["sha256"] for name, file in artifact.manifest["files"].items()}
        for artifact in (lake, once)
    )
    assert first == second


def test_ids_that_are_numbers_are_text_from_end_to_end(shop):
    numbers = {name: 7 * row for row, name in enumerate(shop.documents["doc_id"])}
    shop.write(
        shop.log.assign(doc_id=shop.log["doc_id"].map(numbers)), shop.documents.assign(doc_id=range(0, 70, 7))
    )
    examples, _ = shop.run(until="examples")
    train = pd.read_parquet(examples.path / "train.parquet")
    assert set(train["positive_doc_id"]) <= {str(number) for number in numbers.values()}
