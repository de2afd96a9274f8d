"""Every view in light and dark and on a phone: no violation that axe finds, nothing cut off."""

import re
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from support.page_actions import choose, run, wait_for_answer, write

AXE = Path(__file__).parents[2] / "web" / "node_modules" / "axe-core" / "axe.min.js"
PHONE = 375

pytestmark = pytest.mark.skipif(not AXE.exists(), reason="needs `npm ci` in web/")


def assert_accessible(page: Page) -> None:
    page.evaluate(AXE.read_text())
    violations = page.evaluate("axe.run().then(({ violations }) => violations)")
    told = [(one["id"], [node["html"][:200] for node in one["nodes"][:3]]) for one in violations]
    assert told == []


def assert_fits(page: Page) -> None:
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, PHONE])
def test_every_view_is_accessible(browser: Browser, url: str, scheme: str, width: int) -> None:
    context = browser.new_context(
        color_scheme="dark" if scheme == "dark" else "light",
        viewport={"width": width, "height": 800},
        reduced_motion="reduce",
    )
    page = context.new_page()
    page.goto(url)
    write(page)
    page.get_by_text("Advanced: every setting").click()
    assert_accessible(page)
    assert_fits(page)
    choose(page, "fast")
    run(page)
    wait_for_answer(page)
    assert_accessible(page)
    assert_fits(page)
    for name, heading in (("Adaptations", "Adaptations"), ("Operations", "Memory")):
        page.get_by_role("link", name=name).click()
        expect(page.get_by_role("heading", name=heading, exact=True)).to_be_visible()
        assert_accessible(page)
        assert_fits(page)
    page.get_by_role("button", name="Key").click()
    assert_accessible(page)
    context.close()


def test_a_run_is_made_with_the_keyboard_alone(page: Page) -> None:
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    page.keyboard.insert_text("The harbour code is amber. The lamps were lit one by one. " * 3)
    for _ in range(6):
        page.keyboard.press("Tab")
    expect(page.get_by_label("Question", exact=True)).to_be_focused()
    page.keyboard.insert_text("What is the harbour code?")
    page.keyboard.press("Enter")
    page.wait_for_url("**/#/run/**")
    wait_for_answer(page)


def test_the_colours_are_switched(page: Page) -> None:
    def background() -> str:
        told = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
        assert isinstance(told, str)
        return told

    light = background()
    page.get_by_label("Colours").select_option("Dark")
    dark = background()
    assert dark != light
    page.reload()
    assert background() == dark
    assert re.fullmatch(r"rgb\(.*\)", dark)
