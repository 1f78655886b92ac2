import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed

import httpx
import pytest

import serving.embedding
import serving.shelf
from serving.admission import Admission, AdmissionConfig
from serving.api import ServeConfig
from serving.batching import DEADLINE
from serving.shelf import Shelf, UnknownBundleError
from serving.store import Store
from serving.waiting import MOST_WAITING, Loads

QUERY = {"text": "red shoes", "k": 3}


@pytest.fixture
def loads(monkeypatch) -> Iterator[tuple[list[str], threading.Event]]:
    """Which bundles were loaded to compare with, and what lets loads go on."""
    begun, go_on, load = [], threading.Event(), serving.shelf.load

    def slow(path, *options):
        begun.append(path.name)
        assert go_on.wait(20)
        return load(path, *options)

    monkeypatch.setattr(serving.shelf, "load", slow)
    yield begun, go_on
    go_on.set()


def code(reply: httpx.Response) -> str:
    return reply.json()["error"]["code"]


def metric(client: httpx.Client, name: str) -> float:
    lines = client.get("/metrics").text.splitlines()
    return next(float(line.split()[-1]) for line in lines if line.startswith(name))


def test_who_waits_for_a_bundle_takes_no_place_and_one_too_many_is_told_to_come_again(several, make, loads):
    begun, go_on = loads
    _, *others = several.bundle_ids()
    config = ServeConfig(poll_seconds=0.05, admission=AdmissionConfig(max_requests=2, overload_requests=1))
    with make.server(several.root, config) as client, ThreadPoolExecutor(MOST_WAITING + 1) as callers:
        make.wait_until(lambda: client.get("/readyz").status_code == 200)

        def ask(**bundle: str) -> httpx.Response:
            """Ask as who comes again while two others are being answered."""
            for _ in range(200):
                reply = client.post("/v1/search", json=QUERY | bundle)
                if reply.status_code != 503 or code(reply) != "overloaded":
                    return reply
                time.sleep(0.02)
            return reply

        asked = [callers.submit(ask, bundle_id=others[n % 2]) for n in range(MOST_WAITING + 1)]
        refused = next(as_completed(asked)).result()
        assert (refused.status_code, code(refused)) == (503, "loads_full")
        assert int(refused.headers["retry-after"]) >= 1
        assert ask().status_code == 200
        go_on.set()
        statuses = [future.result().status_code for future in asked]
        assert sorted(statuses) == [*[200] * MOST_WAITING, 503]
        assert sorted(begun) == sorted(others)
        assert metric(client, "twotower_requests_in_flight") == 0
        assert ask(bundle_id=others[0]).json()["bundle_id"] == others[0]


def test_the_wait_for_a_bundle_ends_at_the_deadline_and_its_load_goes_on(several, make, loads):
    begun, go_on = loads
    other = several.bundle_ids()[1]
    with make.server(several.root) as client:
        make.wait_until(lambda: client.get("/readyz").status_code == 200)

        def ask(milliseconds: int) -> httpx.Response:
            headers = {"X-Timeout-Ms": str(milliseconds)}
            return client.post("/v1/search", json=QUERY | {"bundle_id": other}, headers=headers)

        for _ in range(2):
            late = ask(100)
            assert (late.status_code, code(late)) == (503, "deadline")
            assert late.elapsed.total_seconds() < 5
            assert int(late.headers["retry-after"]) >= 1
        go_on.set()
        assert ask(10_000).json()["bundle_id"] == other
        assert begun == [other]


def test_a_crowd_on_more_bundles_than_are_kept_loads_each_once_and_gets_its_own(several, loads):
    begun, go_on = loads
    go_on.set()
    ids = several.bundle_ids() * 8

    async def crowd() -> list[str]:
        waiting = Loads(Shelf(several, kept=1), Admission(AdmissionConfig()))
        found = await asyncio.gather(*(waiting.get(bundle_id) for bundle_id in ids))
        return [retriever.bundle.bundle_id for retriever in found]

    assert asyncio.run(crowd()) == ids
    assert sorted(begun) == sorted(several.bundle_ids())


def test_a_load_that_has_not_begun_is_left_out_when_nobody_waits_any_more(several, loads):
    begun, go_on = loads
    first, given_up, wanted = several.bundle_ids()[:3]

    async def ask() -> None:
        waiting = Loads(Shelf(several), Admission(AdmissionConfig()))
        running = asyncio.create_task(waiting.get(first))
        await asyncio.to_thread(lambda: [time.sleep(0.01) for _ in range(500) if not begun])
        DEADLINE.set(time.monotonic() + 0.05)
        late = await asyncio.gather(waiting.get(given_up), return_exceptions=True)
        assert late[0].code == "deadline"
        DEADLINE.set(None)
        patient = asyncio.create_task(waiting.get(wanted))
        DEADLINE.set(time.monotonic() + 0.05)
        hasty = await asyncio.gather(waiting.get(wanted), return_exceptions=True)
        assert hasty[0].code == "deadline"  # one of two
        DEADLINE.set(None)
        go_on.set()
        assert (await patient).bundle.bundle_id == wanted
        await running
        assert begun == [first, wanted]
        assert (await waiting.get(given_up)).bundle.bundle_id == given_up

    asyncio.run(ask())


def test_a_refusal_reaches_all_who_wait_also_where_nobody_does_any_more(loads, tmp_path, caplog):
    loads[1].set()
    store = Store(tmp_path)
    (store.bundles / ("f" * 16)).mkdir(parents=True)
    (store.bundles / ("f" * 16) / "manifest.json").write_text("{}")

    async def ask() -> list[object]:
        waiting = Loads(Shelf(store), Admission(AdmissionConfig()))
        with pytest.raises(UnknownBundleError):
            await waiting.get("0" * 16)
        DEADLINE.set(0.0)
        given_up = await asyncio.gather(waiting.get("f" * 16), return_exceptions=True)
        DEADLINE.set(None)
        rest = await asyncio.gather(*(waiting.get("f" * 16) for _ in range(3)), return_exceptions=True)
        return [*given_up, *rest]

    first, *rest = asyncio.run(ask())
    assert first.code == "deadline"
    assert {refusal.code for refusal in rest} == {"bundle_refused"}
    assert "never retrieved" not in caplog.text


@pytest.mark.parametrize("path", ["/v1/embed", "/v1/documents/d01/neighbors"])
def test_what_encodes_takes_no_thread_from_pages_and_documents_and_keeps_its_deadline(
    shop, make, monkeypatch, path
):
    begun, go_on = threading.Event(), threading.Event()

    def slow(work: Callable) -> Callable:
        def later(*given):
            begun.set()
            assert go_on.wait(20)
            return work(*given)

        return later

    monkeypatch.setattr("serving.embedding.encode_documents", slow(serving.embedding.encode_documents))
    monkeypatch.setattr("serving.retriever.encode_documents", slow(serving.embedding.encode_documents))

    def ask(client: httpx.Client, milliseconds: int = 10_000) -> httpx.Response:
        body = {"documents": [{"title": "red shoes"}]} if path == "/v1/embed" else None
        headers = {"X-Timeout-Ms": str(milliseconds)}
        return client.request("POST" if body else "GET", path, json=body, headers=headers)

    with make.server(shop, ServeConfig(concurrency=1)) as client, ThreadPoolExecutor(1) as callers:
        make.wait_until(lambda: client.get("/readyz").status_code == 200)
        first = callers.submit(ask, client)
        assert begun.wait(20)
        assert client.get("/", timeout=5).status_code == 200
        shown = client.post("/v1/search", json=QUERY | {"with_documents": True}, timeout=5)
        assert shown.status_code == 200
        late = ask(client, 100)
        assert (late.status_code, code(late)) == (503, "deadline")
        go_on.set()
        assert first.result().status_code == 200
        assert ask(client, 5_000).status_code == 200
