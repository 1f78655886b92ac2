import logging
import re

import pytest
from prometheus_client.parser import text_string_to_metric_families

from serving.metrics import Metrics, merged
from serving.retriever import Retriever


def values(client) -> dict[str, float]:
    """Every sample by its name and labels."""
    return samples(client.get("/metrics").text)


def samples(text: str) -> dict[str, float]:
    return {
        sample.name + "".join(f",{key}={value}" for key, value in sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@pytest.fixture(scope="module")
def counted(shop, make):
    with make.server(shop) as client:
        make.wait_until(lambda: client.get("/readyz").status_code == 200)
        yield client


def test_requests_batches_refusals_and_the_bundle_are_counted(counted, bundle):
    before = values(counted)
    for text in ("red shoes", "blue scarf", ""):
        counted.post("/v1/search", json={"text": text})
    counted.get("/v1/documents/nope/neighbors")
    counted.get("/v1/nothing/at/all")
    after = values(counted)

    def grew(name: str) -> float:
        return after[name] - before.get(name, 0)

    assert grew("twotower_request_seconds_count,route=/v1/search,status=200") == 2
    assert grew("twotower_request_seconds_count,route=/v1/search,status=422") == 1
    assert grew("twotower_request_seconds_count,route=/v1/documents/{doc_id:path}/neighbors,status=404") == 1
    assert grew("twotower_request_seconds_count,route=none,status=404") == 1
    assert grew("twotower_batch_size_sum") == 3
    assert grew("twotower_encode_seconds_count") == grew("twotower_search_seconds_count") == 2
    assert grew("twotower_refusals_total,reason=empty_query") == 1
    assert grew("twotower_refusals_total,reason=unknown_document") == 1
    assert after["twotower_queue_depth"] == after["twotower_requests_in_flight"] == 0
    assert after[f"twotower_bundle_info,bundle_id={bundle.bundle_id}"] == 1
    assert after["twotower_bundle_documents"] == 23
    assert 0 < after["twotower_bundle_age_seconds"] < 3_600
    assert after["twotower_swaps_total"] == after["twotower_ready"] == 1
    assert after["twotower_champion_refused"] == 0
    assert after["process_resident_memory_bytes"] > 1e6


def test_what_callers_choose_makes_no_new_series(counted):
    before = values(counted).keys()
    for n in range(20):
        counted.get(f"/v1/documents/strange-{n}/neighbors")
        counted.get(f"/strange/{n}")
        counted.get(f"/page/strange-{n}")
    new = {re.sub(r",le=.*", "", name) for name in values(counted).keys() - before}
    assert not any("strange" in name for name in new)


def test_a_defect_is_a_plain_500_that_is_counted_and_logged(counted, monkeypatch, caplog):
    def fail(*_: object) -> None:
        raise ZeroDivisionError("the secret inside")

    monkeypatch.setattr(Retriever, "answer_many", fail)
    with caplog.at_level(logging.ERROR):
        response = counted.post("/v1/search", json={"text": "what was asked"})
    assert response.status_code == 500
    assert response.json()["error"]["code"] == "internal"
    assert "secret" not in response.text
    assert response.headers["x-content-type-options"] == "nosniff"
    assert values(counted)["twotower_errors_total,route=/v1/search"] == 1
    assert "/v1/search failed" in caplog.text
    assert "what was asked" not in caplog.text


def test_several_processes_make_one_exposition_with_each_family_once():
    expositions = {}
    for place in (2, 1):
        metrics = Metrics()
        for _ in range(place):
            metrics.refused('odd "reason" \\ {x}')
        metrics.request_done("/v1/search", 200, 0.004 * place)
        expositions[place] = metrics.exposition()
    expositions[3] = b'twotower_refusals_total{reason="'
    expositions[4] = expositions[1].replace(b"twotower_refusals", b"twotower_only_here")
    text = merged(expositions).decode()
    found = samples(text)

    def each(name: str) -> list[float | None]:
        return [found.get(name.format(place)) for place in (1, 2, 3)]

    assert each('twotower_refusals_total,process={},reason=odd "reason" \\ {{x}}') == [1, 2, None]
    assert each("twotower_request_seconds_count,process={},route=/v1/search,status=200") == [1, 1, None]
    below = "twotower_request_seconds_bucket,le=0.005,process={},route=/v1/search,status=200"
    assert each(below) == [1, 0, None]
    assert found['twotower_only_here_total,process=4,reason=odd "reason" \\ {x}'] == 1
    assert found["twotower_processes"] == 3
    families = re.findall(r"^# TYPE (\S+)", text, re.M)
    assert len(families) == len(set(families)) > 10
    assert "process=" not in expositions[1].decode()
