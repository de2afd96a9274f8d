"""The lists of adaptations and of what the server does."""

from playwright.sync_api import Page, expect

from support.page_actions import LONG, choose, run, set_settings, wait_for_answer, write


def test_an_adaptation_is_renamed_pinned_opened_and_deleted(page: Page) -> None:
    write(page, query="Who is the lighthouse keeper?")
    choose(page, "fast")
    adaptation = run(page)
    wait_for_answer(page, "Who is the lighthouse keeper?")
    page.get_by_role("link", name="Adaptations").click()
    row = page.get_by_role("row").filter(has=page.locator(f"a[href='#/run/{adaptation}']"))
    expect(row.get_by_role("link")).to_have_text("Who is the lighthouse keeper?")
    row.get_by_role("button", name="Rename").click()
    page.get_by_role("textbox", name="Name").fill("<i>Port Ellery</i>")
    page.get_by_role("button", name="Save").click()
    row = page.get_by_role("row").filter(has_text="<i>Port Ellery</i>")
    row.get_by_role("button", name="Pin").click()
    expect(row).to_contain_text("never")
    page.reload()
    expect(row.get_by_role("button", name="Pin")).to_have_attribute("aria-pressed", "true")
    row.get_by_role("link").click()
    expect(page.get_by_role("status").filter(has_text="Ready after 2 steps.")).to_be_visible()
    page.get_by_role("link", name="Adaptations").click()
    row.get_by_role("button", name="Delete").click()
    expect(row).to_have_count(0)


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
