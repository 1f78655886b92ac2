"""The page in a real browser: Debian's Chromium, driven by Playwright."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from serving.retriever import Retriever
from serving.search import Search

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (dev group)")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
if CHROMIUM is None:
    pytest.skip("no Chromium here: apt-get install chromium", allow_module_level=True)

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
]


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


@contextmanager
def opened(browser, address: str, **settings) -> Iterator[object]:
    """A page that is ready to be typed into; anything that fails in it fails the test."""
    context = browser.new_context(**settings)
    page = context.new_page()
    failures: list[str] = []
    page.on("pageerror", lambda error: failures.append(str(error)))
    page.on(
        "request", lambda request: failures.append(request.url) if "127.0.0.1" not in request.url else None
    )
    page.goto(address)
    page.wait_for_selector("#query:enabled")
    yield page
    context.close()
    assert failures == []


@pytest.fixture
def page(browser, client) -> Iterator[object]:
    with opened(browser, str(client.base_url)) as found:
        yield found


@pytest.fixture(scope="module")
def cinema_address(cinema, make) -> Iterator[str]:
    with make.server(cinema) as client:
        make.wait_until(lambda: client.get("/readyz").status_code == 200)
        yield str(client.base_url)


def titles(page, mode: str) -> list[str]:
    return page.locator(f'[data-mode="{mode}"] .title').all_inner_texts()


def test_a_typed_query_shows_the_towers_beside_bm25(page, bundle):
    page.keyboard.type("red scarf")
    page.keyboard.press("Enter")
    page.wait_for_selector('[data-mode="bm25"] .hit')
    retriever = Retriever(bundle)
    dense = retriever.search("red scarf", k=10)
    words = retriever.answer(Search(text="red scarf", mode="bm25")).hits
    assert titles(page, "bm25") == [retriever.title(hit.doc_id) for hit in words]
    assert page.locator('[data-mode="dense"] code').all_inner_texts() == [hit.doc_id for hit in dense]
    scores = page.locator('[data-mode="dense"] .score').all_inner_texts()
    assert scores == [f"{hit.score:.4f}" for hit in dense]
    shared = {hit.doc_id for hit in dense} & {hit.doc_id for hit in words}
    assert f"{len(shared)} of 10 in both" in page.inner_text("#summary")
    assert "ms" in page.inner_text('[data-mode="dense"] h2')
    assert page.locator('[data-mode="bm25"] mark').first.inner_text().lower() in ("red", "scarf")


def test_badges_say_how_the_rank_differs(page, bundle):
    page.fill("#query", "red shoes")
    page.keyboard.press("Enter")
    page.wait_for_selector('[data-mode="dense"] .hit')
    retriever = Retriever(bundle)
    ranks = {hit.doc_id: hit.rank for hit in retriever.answer(Search(text="red shoes", mode="bm25")).hits}
    badges = page.locator('[data-mode="dense"] .badge').all_inner_texts()
    for hit, badge in zip(retriever.search("red shoes", k=10), badges, strict=True):
        rank = ranks.get(hit.doc_id)
        if rank is None:
            assert badge == "only here"
        elif rank == hit.rank:
            assert badge == f"= BM25 {rank}"
        else:
            arrow = "▲" if rank > hit.rank else "▼"
            assert badge == f"{arrow} {abs(rank - hit.rank)} · BM25 {rank}"


def test_results_come_while_typing_and_the_address_keeps_the_query(page):
    page.type("#query", "tea kettle")
    page.wait_for_selector(".hit")
    assert "q=tea+kettle" in page.url
    page.reload()
    page.wait_for_selector(".hit")
    assert page.input_value("#query") == "tea kettle"


def test_markup_in_a_title_is_shown_and_not_run(page):
    page.fill("#query", "kettle cup")
    page.keyboard.press("Enter")
    page.wait_for_selector('[data-mode="bm25"] .hit')
    assert any("<img src=x onerror=" in title for title in titles(page, "bm25"))
    assert page.locator(".hit img, .hit b").count() == 0
    page.fill("#query", "<script>document.title='stolen'</script> kettle")
    page.keyboard.press("Enter")
    page.wait_for_timeout(300)
    assert page.title() == "twotower"


def test_the_keyboard_alone_is_enough(page):
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "query"
    page.keyboard.type("lamp")
    page.keyboard.press("Enter")
    page.wait_for_selector(".hit")
    page.keyboard.press("Escape")
    assert page.input_value("#query") == ""
    assert page.is_visible("#empty")
    assert not page.is_visible("#results")


def test_no_common_word_and_a_refused_query_are_said(page):
    page.fill("#query", "zzzz")
    page.keyboard.press("Enter")
    page.wait_for_selector('[data-mode="bm25"] .nothing')
    assert "No document shares a word" in page.inner_text('[data-mode="bm25"]')
    assert len(titles(page, "dense")) == 10
    page.fill("#query", "x" * 2_001)
    page.keyboard.press("Enter")
    page.wait_for_selector("#alert:visible")
    assert "at most 2000" in page.inner_text("#alert")
    assert not page.is_visible("#results")


def test_similar_documents_open_in_a_dialog(page, bundle):
    page.fill("#query", "茶壶")
    page.keyboard.press("Enter")
    page.wait_for_selector('[data-mode="bm25"] .hit')
    page.locator('[data-mode="bm25"] .link').first.click()
    page.wait_for_selector("#similar-hits .hit")
    near = Retriever(bundle).neighbors("d21", 10).hits
    assert page.locator("#similar-hits code").all_inner_texts() == [hit.doc_id for hit in near]
    page.keyboard.press("Escape")
    assert not page.is_visible("#similar")


def test_a_history_is_made_of_titles(browser, cinema_address, history_bundle):
    with opened(browser, cinema_address) as page:
        page.type("#query", "red running")
        page.wait_for_selector("#suggestions li mark")
        page.keyboard.press("ArrowDown")
        page.keyboard.press("ArrowUp")
        page.keyboard.press("Enter")
        page.wait_for_selector('[data-mode="dense"] .hit')
        assert page.locator("#chips li").all_inner_texts() == ["red running shoes\n✕"]
        expected = Retriever(history_bundle).search(history=["d00"], k=10)
        assert page.locator('[data-mode="dense"] code').all_inner_texts() == [hit.doc_id for hit in expected]
        page.keyboard.press("Backspace")
        page.wait_for_selector("#empty:visible")
        assert page.locator("#chips li").count() == 0


def test_a_phone_shows_one_column_at_a_time_without_sideways_scrolling(browser, client):
    with opened(browser, f"{client.base_url}/?q=red+shoes", viewport={"width": 390, "height": 844}) as page:
        page.wait_for_selector('[data-mode="dense"] .hit')
        assert not page.is_visible('[data-mode="bm25"] .hit')
        page.click('[data-tab="bm25"]')
        assert page.is_visible('[data-mode="bm25"] .hit >> nth=0')
        assert not page.is_visible('[data-mode="dense"] .hit >> nth=0')
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_light_and_dark_follow_the_system_and_the_button(browser, client):
    with opened(browser, str(client.base_url), color_scheme="dark") as page:
        paper = "getComputedStyle(document.body).backgroundColor"
        dark = page.evaluate(paper)
        page.click("#theme")
        light = page.evaluate(paper)
        assert (dark, light) == ("rgb(19, 20, 23)", "rgb(247, 247, 245)")
        page.reload()
        assert page.evaluate(paper) == light


def test_a_server_without_a_champion_says_so(browser, tmp_path, make):
    with make.server(tmp_path) as client:
        make.wait_until(lambda: "no champion yet" in client.get("/readyz").text)
        page = browser.new_page()
        page.goto(str(client.base_url))
        page.wait_for_selector("#empty-text:has-text('no champion yet')")
        assert page.inner_text("#status") == "no bundle is served yet"
        page.close()


def test_the_documentation_lists_the_routes(browser, client):
    page = browser.new_page()
    page.goto(f"{client.base_url}/docs")
    page.wait_for_selector("article")
    assert "POST/v1/search" in page.locator("article h2").all_inner_texts()
    page.close()
