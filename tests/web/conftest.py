"""A real browser, Debian's Chromium, and servers with the tiny model that it visits."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from playwright.sync_api import (
    Browser,
    BrowserContext,
    ConsoleMessage,
    Page,
    expect,
    sync_playwright,
)

from refine_server.server.app import create_app
from refine_server.server.settings import Settings
from support.live_server import serving

CHROMIUM = shutil.which("chromium")
FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
PATIENCE_MS = 30_000
"""How long anything may take: the machine may be busy. What does not come fails much earlier."""


# The browser ends with each file: while it is there, this thread has a running event loop, in which
# the tests of other files cannot run theirs.
@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        assert "CI" not in os.environ, "CI installs chromium"
        pytest.skip("needs chromium")
    expect.set_options(timeout=PATIENCE_MS)
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield launched
        launched.close()


@pytest.fixture(scope="session")
def start_server() -> Iterator[Callable[..., str]]:
    """Return a function that starts a server with the tiny model and returns its URL."""
    with ExitStack() as stack:

        def start(**options: object) -> str:
            defaults = {"model": "tiny", "store": "none", "shutdown_seconds": 0.5}
            app = create_app(Settings(**{**defaults, **options}))  # type: ignore[arg-type]
            return stack.enter_context(serving(app))

        yield start


@pytest.fixture(scope="session")
def url(start_server: Callable[..., str]) -> str:
    return start_server(max_document_tokens=2**17)  # for a document of a megabyte


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    made = browser.new_context(viewport={"width": 1280, "height": 900})
    made.set_default_timeout(PATIENCE_MS)
    made.grant_permissions(["clipboard-read", "clipboard-write"])
    yield made
    made.close()


@pytest.fixture
def complaints(context: BrowserContext) -> Iterator[list[str]]:
    """Errors of the console, which are also violations of the policy, and of scripts; none is
    expected at a test's end."""
    told: list[str] = []

    def on_console(message: ConsoleMessage) -> None:
        # A refused request is reported as an error, and many tests are about one.
        if message.type == "error" and "Failed to load resource" not in message.text:
            told.append(message.text)

    context.on("console", on_console)
    context.on("weberror", lambda error: told.append(str(error.error)))
    yield told
    assert not told


@pytest.fixture
def page(context: BrowserContext, complaints: list[str], url: str) -> Page:
    opened = context.new_page()
    opened.goto(url)
    return opened
