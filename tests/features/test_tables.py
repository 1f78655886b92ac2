import pytest

from features.readers.raw import RESERVED
from features.tables import DOCUMENTS, IMPRESSIONS, QUARANTINE, Refusal


@pytest.mark.parametrize("schema", [IMPRESSIONS, DOCUMENTS])
def test_only_utc_microseconds_are_times(schema: object) -> None:
    times = [field for field in schema if "timestamp" in str(field.type)]  # type: ignore[attr-defined]
    assert times
    assert {str(field.type) for field in times} == {"timestamp[us, tz=UTC]"}


def test_keys_and_outcomes_are_never_null() -> None:
    required = {"impression_id", "query_id", "timestamp", "doc_id", "clicked"}
    assert {field.name for field in IMPRESSIONS if not field.nullable} == required
    assert {field.name for field in DOCUMENTS if not field.nullable} == {"doc_id", "title", "text"}
    assert {field.name for field in QUARANTINE if not field.nullable} == {"table", "source", "reason"}


def test_a_refusal_is_its_code() -> None:
    assert str(Refusal.UNKNOWN_DOCUMENT) == "unknown_document"


def test_columns_of_the_documents_table_are_no_names_for_features() -> None:
    assert set(DOCUMENTS.names) <= RESERVED
