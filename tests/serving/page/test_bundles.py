"""The store's bundles on the page, and columns of other bundles."""

from collections.abc import Iterator

import pytest

from serving.build import IndexConfig
from serving.store import Store
from serving.update import Changes, UpdateConfig, update


@pytest.fixture(scope="module")
def several(tmp_path_factory, make) -> Iterator[tuple[str, str, str]]:
    """A server over two bundles: its address, the champion, and one whose index was chosen by measurement."""
    root = tmp_path_factory.mktemp("several")
    champion = make.shop(root).path.name
    other = make.shop(root, seed=9, index=IndexConfig(k=5, target_recall=0.9)).path.name
    Store(root).set_champion(champion, "first")
    with make.server(root) as client:
        make.wait_until(lambda: client.get("/readyz").status_code == 200)
        yield str(client.base_url), champion, other


def test_bundles_are_listed_compared_and_their_curve_is_drawn(open_page, several, bundle):
    address, champion, other = several
    with open_page(address) as page:
        page.wait_for_selector(".bundle")
        assert page.locator(".bundle > header code").all_inner_texts() == [other, champion]
        assert page.inner_text(f'[data-bundle="{champion}"] .tag') == "champion"
        assert page.locator(f'[data-bundle="{other}"] .curve').count() == 0  # until it is opened
        page.click(f'[data-bundle="{other}"] summary')
        page.wait_for_selector(f'[data-bundle="{other}"] .curve circle.chosen')
        assert page.locator(f'[data-bundle="{other}"] .curve circle.chosen').count() == 1
        recalls = page.locator(f'[data-bundle="{other}"] .numbers tbody tr').count()
        assert page.locator(f'[data-bundle="{other}"] .curve g').count() == recalls > 0
        page.click(f'[data-bundle="{other}"] button')
        page.fill("#query", "red shoes")
        page.keyboard.press("Enter")
        page.wait_for_selector(f'[data-column="{other}"] .hit')
        mine, theirs = (
            page.locator(f'[data-column="{name}"] code').all_inner_texts() for name in ("dense", other)
        )
        shared = len(set(mine) & set(theirs))
        assert mine != theirs
        with page.expect_response("**/v1/judgments") as kept:
            page.locator(f'[data-column="{other}"] .judge.up').first.click()
        assert kept.value.status == 200
        assert other in kept.value.request.post_data
        assert f"{shared} of 10 also by towers" in page.inner_text(f'[data-column="{other}"] .shared')


def test_a_bundle_that_takes_long_to_open_keeps_only_its_own_column_waiting(open_page, several):
    address, _, other = several

    def slow(route):
        if other in (route.request.post_data or ""):
            page.wait_for_timeout(1_500)
        route.continue_()

    with open_page(address) as page:
        page.route("**/v1/search", slow)
        page.goto(f"{address}/?q=red&c=dense&c={other}")
        page.wait_for_selector(f'[data-column="{other}"] .nothing:has-text("Opening this bundle")')
        assert page.locator('[data-column="dense"] .hit').count() == 10
        page.keyboard.press("ArrowDown")
        page.keyboard.press("ArrowDown")
        read = page.evaluate("document.activeElement.title")
        page.wait_for_selector(f'[data-column="{other}"] .hit')
        assert page.evaluate("document.activeElement.title") == read != ""
        assert "in both" in page.inner_text("#summary")


@pytest.fixture(scope="module")
def updated(tmp_path_factory, make) -> Iterator[tuple[str, str, str]]:
    """A server over a bundle and an update of it: its address and their ids."""
    store = Store(tmp_path_factory.mktemp("updated"))
    trained = make.shop(store.root)
    made = update(trained.path, store.bundles, Changes(deleted=["d02", "d03"]), UpdateConfig())
    store.set_champion(trained.path.name, "first")
    with make.server(store.root) as client:
        make.wait_until(lambda: client.get("/readyz").status_code == 200)
        yield str(client.base_url), trained.path.name, made.path.name


def with_metrics(page) -> None:
    """Give every bundle an evaluation of eight systems by seven metrics; bundles of tests have none."""
    rows = [
        {"system": f"system-{system}", "slice": "all", "metric": f"Success@{metric}", "value": 0.123456}
        | {"low": 0.1, "high": 0.2, "n": 10}
        for system in range(8)
        for metric in range(7)
    ]

    def answer(route):
        reply = route.fetch()
        body = reply.json()
        for bundle in body["bundles"]:
            bundle["evaluation"] = rows
        route.fulfill(response=reply, json=body)

    page.route("**/v1/bundles", answer)
    page.reload()
    page.wait_for_selector(".bundle .metrics")


def test_metrics_of_an_updated_bundle_are_said_to_be_of_the_trained_one(open_page, updated):
    address, trained, made = updated
    with open_page(address) as page:
        with_metrics(page)
        told = page.inner_text(f'[data-bundle="{made}"] .of-parent')
        assert told == f"These figures were measured on bundle {trained}, before 2 changes of documents."
        assert page.inner_text(f'[data-bundle="{made}"] .tag') == f"update of {trained[:8]}"
        assert page.locator(f'[data-bundle="{trained}"] .of-parent').count() == 0


def test_metrics_are_read_without_a_cut_or_end_in_a_shade(open_page, updated):
    address, trained, _ = updated
    with open_page(address) as page:
        with_metrics(page)
        part = page.locator(f'[data-bundle="{trained}"] .scroll')
        assert part.evaluate("part => getComputedStyle(part).backgroundImage").count("linear-gradient") == 4
        assert part.get_attribute("tabindex") == "0"  # scrolled by keyboard too
        cell = page.locator(f'[data-bundle="{trained}"] td').first
        assert cell.get_attribute("role") == "cell"
        # seven metrics are cards on a phone, and too many for a tablet
        for width, cut, named in ((375, False, '"Success@0"'), (768, True, "none"), (1280, False, "none")):
            page.set_viewport_size({"width": width, "height": 800})
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
            assert part.evaluate("part => part.scrollWidth > part.clientWidth") == cut
            assert cell.evaluate("cell => getComputedStyle(cell, '::before').content") == named
