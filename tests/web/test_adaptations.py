"""The lists of adaptations and of what the server does."""

from playwright.sync_api import Page, expect

from support.page_actions import LONG, run, set_settings, write


def test_work_is_seen_in_operations(page: Page) -> None:
    write(page)
    set_settings(page, {**LONG, "seed": 2})
    adaptation = run(page)
    page.get_by_role("link", name="Operations").click()
    row = page.get_by_role("row").filter(has_text=adaptation)
    expect(row.get_by_role("progressbar")).to_be_visible()
    expect(page.get_by_role("img", name="Running: now 1")).to_be_visible()
    row.get_by_role("link").click()
    page.get_by_role("button", name="Cancel").click()
    expect(page.get_by_role("status").filter(has_text="Cancelled.")).to_be_visible()
