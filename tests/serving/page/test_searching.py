"""What the page does with a query."""

import pytest

from serving.retriever import Retriever
from serving.search import Search


def titles(page, mode: str) -> list[str]:
    return page.locator(f'[data-column="{mode}"] .title').all_inner_texts()


def saying(changes: dict):
    """What lets a route answer as it does, but for some fields, which may change meanwhile."""

    def answer(route):
        reply = route.fetch()
        route.fulfill(response=reply, json={**reply.json(), **changes})

    return answer


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
    page.wait_for_url("**/?q=tea+kettle")
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
    page.wait_for_url("**c=dense&c=bm25&c=hybrid")
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


def test_a_picture_comes_from_this_server_or_over_https_only(page):
    def with_image(address: str) -> int:
        def answer(route):
            reply = route.fetch()
            body = reply.json()
            body["results"][0]["hits"][0]["image"] = address
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


def test_a_history_is_made_of_titles(open_page, cinema_address, history_bundle):
    with open_page(cinema_address) as page:
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


def test_a_server_without_a_champion_says_so(browser, tmp_path, make):
    with make.server(tmp_path) as client:
        make.wait_until(lambda: "no champion yet" in client.get("/readyz").text)
        page = browser.new_page()
        page.goto(str(client.base_url))
        page.wait_for_selector("#empty-text:has-text('no champion yet')")
        assert page.inner_text("#status") == "no bundle is served yet"
        page.close()


def test_columns_of_the_served_bundle_are_one_request_and_what_can_wait_waits(page):
    asked: list[str] = []
    page.on("request", lambda request: asked.append(f"{request.method} {request.url.split('/', 3)[3]}"))
    held = []
    page.route("**/v1/search", lambda route: held.append(route))
    page.fill("#query", "red scarf")
    with page.expect_request("**/v1/search"):
        page.keyboard.press("Enter")
    page.keyboard.press("Enter")  # the same is under way already
    page.wait_for_timeout(50)
    held[0].continue_()
    page.wait_for_url("**/?q=red+scarf")
    page.wait_for_load_state("networkidle")
    page.wait_for_timeout(200)  # longer than the pause of typing
    asked = [one for one in asked if "icon" not in one]  # the browser's own
    assert asked == ["POST v1/search", "GET v1/judgments?query=red%20scarf"]


def test_a_search_does_not_wait_for_the_list_of_bundles(open_page, client):
    with open_page(str(client.base_url)) as page:
        held = []
        page.route("**/v1/bundles", lambda route: held.append(route))
        page.goto(f"{client.base_url}/?q=red")
        page.wait_for_selector('[data-column="bm25"] .hit')
        assert page.locator(".bundle").count() == 0
        page.wait_for_timeout(50)
        held[0].continue_()
        page.wait_for_selector(".bundle")
        assert page.locator(".hit").count() > 10


def test_every_module_is_fetched_at_once(open_page, client):
    with open_page(str(client.base_url)) as page:
        ahead = set(page.locator("link[rel=modulepreload]").evaluate_all("all => all.map((one) => one.href)"))
        loaded = page.evaluate("performance.getEntriesByType('resource').map((one) => one.name)")
        fetched = {address for address in loaded if address.endswith(".js")}
        assert fetched == ahead | {f"{client.base_url}/page/app.js"}


def test_one_of_a_thing_is_not_called_many(open_page, client):
    with open_page(str(client.base_url)) as page:
        page.route("**/v1/bundle", saying({"documents": 1}))
        page.reload()
        page.wait_for_selector("#empty-text:has-text('1 document is searched')")
        assert page.inner_text("#status").endswith(" · 1 document")


@pytest.mark.parametrize("width", [1280, 390])
def test_queries_to_try_of_long_titles_stay_on_the_page(open_page, cinema_address, width):
    some = [{"doc_id": f"d{n}", "title": f"a very long title of a document, the {n}th"} for n in range(8)]
    with open_page(cinema_address, viewport={"width": width, "height": 800}) as page:
        page.route("**/v1/bundle", saying({"examples": [{"history": some}] * 3}))
        page.reload()
        page.wait_for_selector("#examples button:has-text('very long')")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        for box in (button.bounding_box() for button in page.locator("#examples button").all()):
            assert box["x"] >= 0
            assert box["x"] + box["width"] <= width


def test_a_champion_that_cannot_be_loaded_is_said_whatever_is_searched_and_while_a_page_stays_open(
    open_page, client
):
    refused = {"bundle_id": "f" * 16, "code": "refused", "message": "bundle ffff is refused: it is damaged"}
    said = "The champion could not be loaded: bundle ffff is refused: it is damaged"
    answer = {"refused": None}

    with open_page(str(client.base_url)) as page:
        page.clock.install()
        page.route("**/v1/bundle", saying(answer))
        page.goto(f"{client.base_url}/?q=red+shoes")
        page.wait_for_selector(".hit")
        assert page.locator("#alert").is_hidden()
        answer["refused"] = refused
        page.clock.run_for(21_000)
        page.wait_for_selector(f"#alert:has-text('{said}')")
        page.fill("#query", "blue scarf")
        page.keyboard.press("Enter")
        page.wait_for_selector(".hit:has-text('blue')")
        assert page.inner_text("#alert") == said
        page.goto(f"{client.base_url}/?q=red+shoes")
        page.wait_for_selector(".hit")
        assert page.inner_text("#alert") == said
        answer["refused"] = None
        page.clock.run_for(21_000)
        page.wait_for_selector("#alert", state="hidden")


def test_the_word_of_a_refused_champion_ends_with_the_next_one_and_hides_no_other(open_page, client):
    answer = {"refused": {"bundle_id": "f" * 16, "code": "refused", "message": "it is damaged"}}

    with open_page(str(client.base_url)) as page:
        page.clock.install()
        page.route("**/v1/bundle", saying(answer))
        page.goto(f"{client.base_url}/")
        page.wait_for_selector("#alert:has-text('it is damaged')")
        assert page.get_attribute("#status", "data-state") == "warn"
        page.fill("#query", "x" * 20_000)
        page.keyboard.press("Enter")
        page.wait_for_selector("#alert:has-text('characters')")
        said = page.inner_text("#alert")
        answer.update(refused=None, bundle_id="e" * 16)
        page.clock.run_for(21_000)
        page.wait_for_selector("#status[data-state=ready]:has-text('eeeeeeee')")
        assert page.inner_text("#alert") == said  # of the query, which is still wrong
        page.fill("#query", "red shoes")
        page.keyboard.press("Enter")
        page.wait_for_selector(".hit")
        assert page.locator("#alert").is_hidden()


def test_a_column_that_became_the_champion_is_no_mistake_of_the_address(open_page, client, bundle):
    with open_page(f"{client.base_url}/?q=red+shoes&c=dense&c={bundle.bundle_id}") as page:
        page.wait_for_selector(".hit")
        assert page.locator("#alert").is_hidden()


def test_columns_of_the_address_stay_where_the_list_of_bundles_is_refused(open_page, client):
    def refused(route):
        route.fulfill(status=429, json={"error": {"code": "rate_limited", "message": "too many requests"}})

    with open_page(str(client.base_url)) as page:
        page.route("**/v1/bundles", refused)
        page.goto(f"{client.base_url}/?q=red+shoes&c=dense&c={'0' * 16}")
        page.wait_for_selector(".nothing")  # the server itself says that there is no such bundle
        assert page.locator("#alert").is_hidden()
        assert "0" * 16 in page.url


def test_an_address_with_a_bundle_that_is_not_there_says_so(open_page, client):
    with open_page(f"{client.base_url}/?q=red+shoes&c=dense&c={'0' * 16}") as page:
        page.wait_for_selector(".hit")
        page.wait_for_selector(f"#alert:has-text('asks for {'0' * 16}, which cannot be compared here')")


def test_an_answer_that_was_refused_is_not_counted_among_those_that_agree(open_page, client):
    def without_words(route):
        body = route.request.post_data_json
        reply = route.fetch()
        answers = reply.json()
        if "queries" in body:
            place = next(n for n, query in enumerate(body["queries"]) if query.get("mode") == "bm25")
            answers["results"][place] = {"error": {"code": "refused", "message": "not today"}}
        route.fulfill(response=reply, json=answers)

    with open_page(str(client.base_url)) as page:
        page.route("**/v1/search", without_words)
        page.fill("#query", "red shoes")
        page.keyboard.press("Enter")
        page.wait_for_selector(".nothing:has-text('not today')")
        assert "in both" not in page.inner_text("#summary")
