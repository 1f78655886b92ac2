"""The page in a real browser: Debian's Chromium, driven by Playwright."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from serving.build import IndexConfig
from serving.judgments import Judgments
from serving.retriever import Retriever
from serving.search import Search
from serving.store import Store

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


def titles(page, mode: str) -> list[str]:
    return page.locator(f'[data-column="{mode}"] .title').all_inner_texts()


def test_a_typed_query_shows_the_towers_beside_bm25(page, bundle):
    page.keyboard.type("red scarf")
    page.keyboard.press("Enter")
    page.wait_for_selector('[data-column="bm25"] .hit')
    page.wait_for_load_state("networkidle")  # what was found for the first letters is gone by then
    retriever = Retriever(bundle)
    dense = retriever.search("red scarf", k=10)
    words = retriever.answer(Search(text="red scarf", mode="bm25")).hits
    assert titles(page, "bm25") == [retriever.title(hit.doc_id) for hit in words]
    assert page.locator('[data-column="dense"] code').all_inner_texts() == [hit.doc_id for hit in dense]
    scores = page.locator('[data-column="dense"] .score').all_inner_texts()
    assert scores == [f"{hit.score:.4f}" for hit in dense]
    shared = {hit.doc_id for hit in dense} & {hit.doc_id for hit in words}
    assert f"{len(shared)} of 10 in both" in page.inner_text("#summary")
    assert "ms" in page.inner_text('[data-column="dense"] .cost')
    assert f"{len(shared)} of 10 also by towers" in page.inner_text('[data-column="bm25"] .shared')
    assert page.locator('[data-column="bm25"] mark').first.inner_text().lower() in ("red", "scarf")


def test_badges_say_how_the_rank_differs(page, bundle):
    page.fill("#query", "red shoes")
    page.keyboard.press("Enter")
    page.wait_for_selector('[data-column="dense"] .hit')
    retriever = Retriever(bundle)
    ranks = {hit.doc_id: hit.rank for hit in retriever.answer(Search(text="red shoes", mode="bm25")).hits}
    badges = page.locator('[data-column="dense"] .badge').all_inner_texts()
    for hit, badge in zip(retriever.search("red shoes", k=10), badges, strict=True):
        rank = ranks.get(hit.doc_id)
        if rank is None:
            assert badge == "not in BM25"
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
    page.wait_for_selector('[data-column="bm25"] .hit')
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
    page.wait_for_selector('[data-column="bm25"] .nothing')
    assert "No document shares a word" in page.inner_text('[data-column="bm25"]')
    assert len(titles(page, "dense")) == 10
    page.fill("#query", "x" * 2_001)
    page.keyboard.press("Enter")
    page.wait_for_selector("#alert:visible")
    assert "at most 2000" in page.inner_text("#alert")
    assert not page.is_visible("#results")


def test_a_document_opens_in_full_with_why_and_with_what_is_near(page, bundle):
    page.fill("#query", "茶壶")
    page.keyboard.press("Enter")
    page.wait_for_selector('[data-column="bm25"] .hit')
    page.locator('[data-column="bm25"] .title').first.click()
    page.wait_for_selector("#near .hit")
    near = Retriever(bundle).neighbors("d21", 10).hits
    assert page.locator("#near code").all_inner_texts() == [hit.doc_id for hit in near]
    why = page.inner_text("#detail-body")
    assert "中国茶壶" in why
    assert "Why rank 1 by BM25" in why
    assert "rank 1, score" in why
    page.keyboard.press("Escape")
    assert not page.is_visible("#detail")


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


def test_the_keyboard_moves_among_ranks_and_columns(page):
    page.fill("#query", "red lamp")
    page.keyboard.press("Enter")
    page.wait_for_selector('[data-column="bm25"] .hit')
    focused = """(() => {
        const card = document.activeElement;
        return `${card.closest(".column")?.dataset.column} ${card.querySelector(".rank")?.textContent}`;
    })()"""
    for key, place in (
        ("ArrowDown", "dense 1"),
        ("ArrowDown", "dense 2"),
        ("ArrowRight", "bm25 2"),
        ("ArrowUp", "bm25 1"),
        ("ArrowLeft", "dense 1"),
    ):
        page.keyboard.press(key)
        assert page.evaluate(focused) == place
    page.keyboard.press("Enter")
    page.wait_for_selector("#near .hit")
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.closest('#near') !== null")
    page.keyboard.press("Escape")
    page.keyboard.press("ArrowUp")
    assert page.evaluate("document.activeElement.id") == "query"


def test_a_hybrid_column_is_added_kept_and_removed(page, bundle):
    page.fill("#query", "red shoes")
    page.keyboard.press("Enter")
    page.wait_for_selector('[data-column="dense"] .hit')
    page.select_option("#add", "hybrid")
    page.wait_for_selector('[data-column="hybrid"] .hit')
    answer = Retriever(bundle).answer(Search(text="red shoes", mode="hybrid"))
    assert page.locator('[data-column="hybrid"] code').all_inner_texts() == [
        hit.doc_id for hit in answer.hits
    ]
    assert "c=dense&c=bm25&c=hybrid" in page.url
    page.reload()
    page.wait_for_selector('[data-column="hybrid"] .hit')
    page.click('[data-column="bm25"] .remove')
    page.wait_for_selector('[data-column="bm25"]', state="detached")
    assert page.locator(".column").count() == 2


def test_a_query_to_try_is_one_click(page):
    example = page.locator("#examples button").first.inner_text()
    page.click("#examples button >> nth=0")
    page.wait_for_selector('[data-column="dense"] .hit')
    assert page.input_value("#query") == example


def test_bundles_are_listed_compared_and_their_curve_is_drawn(browser, several, bundle):
    address, champion, other = several
    with opened(browser, address) as page:
        page.wait_for_selector(".bundle")
        assert page.locator(".bundle > header code").all_inner_texts() == [other, champion]
        assert page.inner_text(f'[data-bundle="{champion}"] .tag') == "champion"
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


def test_a_bundle_that_takes_long_to_open_keeps_only_its_own_column_waiting(browser, several):
    address, _, other = several

    def slow(route):
        if other in (route.request.post_data or ""):
            page.wait_for_timeout(1_500)
        route.continue_()

    with opened(browser, address) as page:
        page.route("**/v1/search", slow)
        page.goto(f"{address}/?q=red&c=dense&c={other}")
        page.wait_for_selector(f'[data-column="{other}"] .nothing:has-text("Opening this bundle")')
        assert page.locator('[data-column="dense"] .hit').count() == 10
        page.wait_for_selector(f'[data-column="{other}"] .hit')
        assert "in both" in page.inner_text("#summary")


def test_a_picture_comes_from_this_server_or_over_https_only(page):
    def with_image(address: str) -> int:
        def answer(route):
            reply = route.fetch()
            body = reply.json()
            body["hits"][0]["image"] = address
            route.fulfill(response=reply, json=body)

        page.route("**/v1/search", answer)
        page.fill("#query", f"lamp {abs(hash(address))}")
        page.keyboard.press("Enter")
        page.wait_for_selector('[data-column="dense"] .hit')
        page.wait_for_timeout(100)
        page.unroute("**/v1/search")
        return page.locator('[data-column="dense"] .hit img').count()

    assert with_image("page/icon.svg") == 1
    for address in ("http://192.0.2.1/a.png", "javascript:alert(1)", "data:image/png;base64,AAAA", "//["):
        assert with_image(address) == 0


def test_a_server_with_keys_asks_for_one(browser, shop, make, monkeypatch):
    monkeypatch.setenv("TWOTOWER_READ_KEY", "read-key-of-the-test-0123456789abcdef")
    with make.server(shop) as client:
        make.wait_until(lambda: client.get("/readyz").status_code == 200)
        page = browser.new_page()
        page.goto(str(client.base_url))
        page.wait_for_selector("#key-form:visible")
        page.fill("#key", "read-key-of-the-test-0123456789abcdef")
        page.keyboard.press("Enter")
        page.wait_for_selector("#query:enabled")
        page.fill("#query", "lamp")
        page.wait_for_selector('[data-column="dense"] .hit')
        page.close()


def test_a_history_is_made_of_titles(browser, cinema_address, history_bundle):
    with opened(browser, cinema_address) as page:
        page.type("#query", "red running")
        page.wait_for_selector("#suggestions li mark")
        page.keyboard.press("ArrowDown")
        page.keyboard.press("ArrowUp")
        page.keyboard.press("Enter")
        page.wait_for_selector('[data-column="dense"] .hit')
        assert page.locator("#chips li").all_inner_texts() == ["red running shoes\n✕"]
        expected = Retriever(history_bundle).search(history=["d00"], k=10)
        assert page.locator('[data-column="dense"] code').all_inner_texts() == [
            hit.doc_id for hit in expected
        ]
        page.keyboard.press("Backspace")
        page.wait_for_selector("#empty:visible")
        assert page.locator("#chips li").count() == 0


def test_a_phone_shows_one_column_at_a_time_without_sideways_scrolling(browser, client):
    with opened(browser, f"{client.base_url}/?q=red+shoes", viewport={"width": 375, "height": 812}) as page:
        page.wait_for_selector('[data-column="dense"] .hit')
        assert not page.is_visible('[data-column="bm25"] .hit')
        page.click('[data-tab="bm25"]')
        assert page.is_visible('[data-column="bm25"] .hit >> nth=0')
        assert not page.is_visible('[data-column="dense"] .hit >> nth=0')
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
