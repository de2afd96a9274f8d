"""A server with API keys: the page asks for one and keeps it in its tab alone."""

from collections.abc import Callable

from playwright.sync_api import BrowserContext, Page, expect

from support.page_actions import choose, run, wait_for_answer, write

KEY = "0123456789abcdef0123456789abcdef"


def enter(page: Page, key: str) -> None:
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Key", exact=True).fill(key)
    dialog.get_by_role("button", name="Use this key").click()


def test_the_key_is_asked_for_and_kept_in_the_tab_alone(
    context: BrowserContext, complaints: list[str], start_server: Callable[..., str]
) -> None:
    url = start_server(api_keys=f"alice:{KEY}")
    page = context.new_page()
    page.goto(url)
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("The server asks for a key.")
    enter(page, "wrong" * 8)
    expect(dialog).to_contain_text("The server does not know this key.")
    enter(page, KEY)
    expect(dialog).to_be_hidden()
    write(page)
    choose(page, "fast")
    run(page)
    wait_for_answer(page)
    assert KEY not in page.url
    assert KEY not in page.evaluate("JSON.stringify(localStorage) + document.cookie")
    page.reload()
    wait_for_answer(page)
    other = context.new_page()
    other.goto(url)
    expect(other.get_by_role("dialog")).to_contain_text("The server asks for a key.")
