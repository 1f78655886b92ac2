"""A real browser for the page: Debian's Chromium, driven by Playwright."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest

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

OpenPage = Callable[..., AbstractContextManager[Any]]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (dev group)")
    found = (shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome"))
    path = next(filter(None, found), None)
    if path is None:
        pytest.skip("no Chromium here: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=path, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture
def open_page(browser) -> OpenPage:
    """Opens an address in a page that is ready to be typed into; anything that fails in it fails the test."""

    @contextmanager
    def opened(address: str, ready: str = "#query:enabled", **settings: Any) -> Iterator[Any]:
        context = browser.new_context(**settings)
        page = context.new_page()
        failures: list[str] = []
        page.on("pageerror", lambda error: failures.append(str(error)))
        page.on(
            "request",
            lambda request: failures.append(request.url) if "127.0.0.1" not in request.url else None,
        )
        page.goto(address)
        page.wait_for_selector(ready)
        yield page
        context.close()
        assert failures == []

    return opened


@pytest.fixture
def page(open_page, client) -> Iterator[Any]:
    with open_page(str(client.base_url)) as found:
        yield found


@pytest.fixture(scope="module")
def cinema_address(cinema, make) -> Iterator[str]:
    with make.server(cinema) as client:
        make.wait_until(lambda: client.get("/readyz").status_code == 200)
        yield str(client.base_url)
