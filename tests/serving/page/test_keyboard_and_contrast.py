"""The page by keyboard alone, to screen readers, in both themes, and on phones."""

from pathlib import Path

import pytest

AUDITS = Path(__file__).parent
CONTRAST = (AUDITS / "contrast.js").read_text(encoding="utf-8")
FAULTS = (AUDITS / "faults.js").read_text(encoding="utf-8")
FOCUSED = """() => {
  const one = document.activeElement;
  const around = [one, one.closest(".hit"), one.closest(".box")].filter(Boolean);
  const seen = around.map((part) => getComputedStyle(part))
    .some((style) => style.outlineStyle !== "none" || style.boxShadow.includes("4px"));
  return `${one.id || one.className || one.textContent}${seen ? "" : ": no ring"}`;
}"""


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


def test_the_keyboard_moves_among_ranks_and_columns(page):
    page.fill("#query", "red lamp")
    page.keyboard.press("Enter")
    page.wait_for_selector('[data-column="bm25"] .hit')
    focused = """(() => {
        const card = document.activeElement.closest(".hit");
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
    assert page.evaluate("document.activeElement.id") == "detail-title"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.closest('#near') !== null")
    page.keyboard.press("Enter")  # on to what is near that one
    page.wait_for_selector("#near .hit")
    assert page.evaluate("document.activeElement.closest('#detail') !== null")
    page.keyboard.press("Escape")
    assert page.evaluate(focused) == "dense 1"
    page.keyboard.press("ArrowUp")
    assert page.evaluate("document.activeElement.id") == "query"


def test_a_phone_shows_one_column_at_a_time_without_sideways_scrolling(open_page, client):
    with open_page(f"{client.base_url}/?q=red+shoes", viewport={"width": 375, "height": 812}) as page:
        page.wait_for_selector('[data-column="dense"] .hit')
        assert not page.is_visible('[data-column="bm25"] .hit')
        page.click('[data-tab="bm25"]')
        assert page.is_visible('[data-column="bm25"] .hit >> nth=0')
        assert not page.is_visible('[data-column="dense"] .hit >> nth=0')
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_light_and_dark_follow_the_system_and_the_button(open_page, client):
    with open_page(str(client.base_url), color_scheme="dark") as page:
        paper = "getComputedStyle(document.body).backgroundColor"
        dark = page.evaluate(paper)
        page.click("#theme")
        light = page.evaluate(paper)
        assert (dark, light) == ("rgb(19, 20, 23)", "rgb(247, 247, 245)")
        page.reload()
        assert page.evaluate(paper) == light


def test_the_documentation_lists_the_routes(open_page, client):
    with open_page(f"{client.base_url}/docs", ready="article") as page:
        assert "POST/v1/search" in page.locator("article h2").all_inner_texts()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_and_controls_stand_out_from_what_is_behind_them(open_page, client, scheme):
    with open_page(f"{client.base_url}/?q=red+shoes", color_scheme=scheme) as page:
        page.wait_for_selector(".bundle")
        page.locator(".bundle details").first.evaluate("part => { part.open = true; }")
        found = page.evaluate(CONTRAST)
        assert found["count"] > 100
        assert found["texts"][0] >= 4.5, found
        assert found["controls"][0] >= 3, found


def test_a_screen_reader_finds_names_and_no_dead_ends(open_page, client, cinema_address):
    with open_page(f"{client.base_url}/?q=red+shoes") as page:
        page.wait_for_selector(".bundle")
        assert page.evaluate(FAULTS) == []
        page.locator('[data-column="dense"] .title').first.click()
        page.wait_for_selector("#near .hit")
        assert page.evaluate(FAULTS) == []
    with open_page(cinema_address) as page:
        page.type("#query", "red running")
        page.wait_for_selector("#suggestions li mark")
        assert page.evaluate(FAULTS) == []
        assert page.get_attribute("#query", "aria-expanded") == "true"
        active = page.get_attribute("#query", "aria-activedescendant")
        assert page.get_attribute(f"#{active}", "aria-selected") == "true"
        page.keyboard.press("Escape")
        assert page.get_attribute("#query", "aria-expanded") == "false"


def test_tab_leads_through_the_page_in_order_and_always_shows_where_it_is(open_page, client):
    with open_page(f"{client.base_url}/?q=red+shoes") as page:
        page.wait_for_selector(".bundle")
        page.focus(".brand")
        stops = []
        for _ in range(11):
            stops.append(page.evaluate(FOCUSED))
            page.keyboard.press("Tab")
        assert stops == [
            "brand", "to-bundles", "API", "theme", "query", "k", "add", "which", "title", "which", "title",
        ]  # fmt: skip


def test_whoever_chooses_columns_by_keyboard_stays_there(open_page, client):
    with open_page(f"{client.base_url}/?q=red+shoes") as page:
        page.wait_for_selector('[data-column="dense"] .hit')
        page.wait_for_selector("#adder:visible")
        where = "document.activeElement.closest('.column')?.dataset.column ?? document.activeElement.id"
        page.focus("#add")
        page.select_option("#add", "hybrid")
        page.wait_for_selector('[data-column="hybrid"] .hit')
        assert page.evaluate(where) == "hybrid"
        page.focus('[data-column="bm25"] .remove')
        page.keyboard.press("Enter")
        page.wait_for_selector('[data-column="bm25"]', state="detached")
        assert page.evaluate(where) == "hybrid"
        page.wait_for_selector('[data-column="hybrid"] .hit')
        page.keyboard.press("Tab")
        page.keyboard.press("ArrowDown")
        page.keyboard.press("Shift+Tab")
        page.keyboard.press("Tab")
        rank = "document.activeElement.closest('.hit').querySelector('.rank').textContent"
        assert page.evaluate(rank) == "2"
