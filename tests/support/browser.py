"""Chromium without a window, for tests of web pages: the fixture `open_page`, which every test has through conftest.py.

A page may ask its own server for things, and no one else: any other request is refused, and fails the test.
"""

import shutil
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

import pytest


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
# What it would do on its own, beside what the page asks for.
_ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def browser() -> Iterator:
    if CHROMIUM is None:
        pytest.skip("there is no Chromium on the PATH: `make browser` installs Debian's (needs root)")
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (extra: dev)")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=_ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser) -> Iterator[Callable]:
    """`open_page(url, **context options)` opens a page in a context of its own, `open_page(url, context=page.context)`
    another one in that of a page. Errors in a page's scripts, and requests to other hosts than the url's, fail the test
    at its end."""
    contexts, problems = [], []

    def open(url: str, context=None, **options):
        if context is None:
            context = browser.new_context(**options)
            context.set_default_timeout(10_000)
            contexts.append(context)
            allowed = urlsplit(url)[:2]

            def check(route):
                if urlsplit(route.request.url)[:2] == allowed:
                    route.continue_()
                else:
                    problems.append(f"asked for {route.request.url}")
                    route.abort()

            context.route("**/*", check)
        page = context.new_page()
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda message: "Content Security Policy" in message.text and problems.append(message.text))
        page.on("dialog", lambda dialog: problems.append(f"a dialog: {dialog.message}") or dialog.dismiss())
        page.goto(url)
        return page

    yield open
    for context in contexts:
        context.close()
    assert not problems, problems
