"""Thumbs, and who may give them."""

from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from serving.judgments import Judgments

READ, ADMIN = "read-key-of-the-test-0123456789abcdef", "admin-key-of-the-test-0123456789abcde"


@pytest.fixture(scope="module")
def locked(tmp_path_factory, make, shop) -> Iterator[SimpleNamespace]:
    """A server that asks for keys: its address and its store."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TWOTOWER_READ_KEY", READ)
        patch.setenv("TWOTOWER_ADMIN_KEY", ADMIN)
        with make.server(shop) as client:
            make.wait_until(lambda: client.get("/readyz").status_code == 200)
            yield SimpleNamespace(address=str(client.base_url), store=shop)


def unlock(page, key: str) -> None:
    page.fill("#key", key)
    page.keyboard.press("Enter")
    page.wait_for_selector("#query:enabled")


def test_thumbs_are_kept_as_judgments_and_shown_again(page, client, shop):
    page.fill("#query", "Blue  scarf")
    page.keyboard.press("Enter")
    page.wait_for_selector('[data-column="dense"] .hit')
    page.keyboard.press("ArrowDown")  # to the first result
    page.keyboard.press("ArrowDown")
    page.keyboard.press("+")
    page.keyboard.press("ArrowUp")
    with page.expect_response("**/v1/judgments"):
        page.keyboard.press("0")
    first, second = page.locator('[data-column="dense"] code').all_inner_texts()[:2]
    assert {one.doc_id: one.grade for one in Judgments(shop).of_query("blue scarf")} == {second: 2, first: 0}
    page.reload()
    for doc_id, thumb in ((first, "down"), (second, "up")):
        pressed = f'[data-column="dense"] [data-doc="{doc_id}"] .judge.{thumb}[aria-pressed="true"]'
        page.wait_for_selector(pressed)
    with page.expect_response("**/v1/judgments"):
        page.click(f'[data-column="dense"] [data-doc="{first}"] .judge.up')
    assert {one.doc_id: one.grade for one in Judgments(shop).of_query("blue scarf")} == {second: 2, first: 2}


def test_a_judgment_that_is_not_kept_is_taken_back_and_said(page):
    page.route(
        "**/v1/judgments",
        lambda route: route.fulfill(status=403, json={"error": {"code": "forbidden", "message": "no"}}),
    )
    page.fill("#query", "green lamp")
    page.keyboard.press("Enter")
    page.wait_for_selector('[data-column="dense"] .hit')
    page.locator('[data-column="dense"] .judge.up').first.click()
    page.wait_for_selector("#alert:has-text('was not kept: no')")
    assert page.locator('.judge[aria-pressed="true"]').count() == 0


def test_a_server_with_keys_asks_for_one_and_says_when_it_is_wrong(open_page, locked):
    with open_page(locked.address, ready="#key-form:visible") as page:
        assert page.evaluate("document.activeElement.id") == "key"
        assert page.inner_text("#key-error") == ""
        page.keyboard.type("not-a-key-that-this-server-knows")
        page.keyboard.press("Enter")
        page.wait_for_selector("#key-error:has-text('That key is not accepted')")
        assert page.get_attribute("#key", "aria-invalid") == "true"
        assert page.evaluate("document.activeElement.id") == "key"
        unlock(page, READ)
        assert not page.is_visible("#key-form")
        assert page.evaluate("document.activeElement.id") == "query"
        page.fill("#query", "lamp")
        page.wait_for_selector('[data-column="dense"] .hit')


def test_a_key_that_is_taken_back_is_asked_for_again(open_page, locked):
    with open_page(locked.address, ready="#key-form:visible") as page:
        unlock(page, ADMIN)
        page.evaluate("sessionStorage.setItem('key', 'a-key-that-was-taken-back-meanwhile')")
        page.fill("#query", "lamp")
        page.wait_for_selector("#key-error:has-text('That key is not accepted')")
        unlock(page, ADMIN)
        page.wait_for_selector('[data-column="dense"] .hit')


def test_whoever_may_only_read_sees_judgments_and_no_thumbs(open_page, locked):
    with open_page(locked.address, ready="#key-form:visible") as page:
        unlock(page, READ)
        page.fill("#query", "white lamp")
        page.wait_for_selector('[data-column="dense"] .hit')
        first = page.locator('[data-column="dense"] code').first.inner_text()
        assert page.locator(".judge:visible").count() == 0
        assert "judging needs an admin key" in page.inner_text("#read-only")
        assert not page.is_visible(".hint .judging >> nth=0")
        page.locator('[data-column="dense"] .title').first.focus()
        page.keyboard.press("+")
        page.wait_for_selector("#alert:has-text('judging needs an admin key')")
        Judgments(locked.store).judge("white lamp", first, 3)
        page.reload()
        page.wait_for_selector(f'[data-column="dense"] [data-doc="{first}"] .judge.up[aria-pressed="true"]')
        assert page.locator('[data-column="dense"] .judge:visible').count() == 1
        assert page.locator(".judge:visible").first.is_disabled()


def test_whoever_may_judge_has_thumbs(open_page, locked):
    with open_page(locked.address, ready="#key-form:visible") as page:
        unlock(page, ADMIN)
        page.fill("#query", "green lamp")
        page.wait_for_selector('[data-column="dense"] .hit')
        page.wait_for_load_state("networkidle")
        assert page.locator('[data-column="dense"] .judge:visible').count() == 20
        assert not page.is_visible("#read-only")
