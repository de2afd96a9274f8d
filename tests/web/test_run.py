"""A run in the browser: from a document to answers, and what can be taken away from it."""

import json
import re
from pathlib import Path

from playwright.sync_api import BrowserContext, Page, Request, expect

from support.page_actions import LONG, QUERY, choose, run, set_settings, wait_for_answer, write


def test_an_example_is_run_watched_and_asked_again(page: Page) -> None:
    page.get_by_role("button", name="A tiny world").click()
    expect(page.get_by_label("Question", exact=True)).to_have_value(QUERY)
    expect(page.get_by_text(re.compile(r"^About .* to read, .* to adapt"))).to_be_visible()
    choose(page, "fast")
    run(page)
    expect(page.get_by_role("status").filter(has_text="Ready after 2 steps.")).to_be_visible()
    phases = page.get_by_role("list", name="Phases")
    for name in ("Queue", "Read", "Adapt"):
        expect(phases).to_contain_text(name)
    for name in ("Loss", "Next-token loss", "Reward", "KL", "Gradient norm"):
        plot = page.get_by_role("img", name=re.compile(f"^{name} by step: "))
        expect(plot.locator("path.line")).to_have_attribute("d", re.compile("^M.*L"))
    wait_for_answer(page)
    answers = page.get_by_role("article", name=QUERY)
    expect(answers.get_by_role("heading", name="Base model")).to_be_visible()
    expect(answers).to_contain_text("amber")
    other = "What is the castle animal?"
    page.get_by_label("Ask the same adaptation").fill(other)
    page.get_by_role("button", name="Ask", exact=True).click()
    wait_for_answer(page, other)
    expect(page.get_by_role("article")).to_have_count(2)


def test_the_document_shows_what_the_run_was_aimed_at(page: Page) -> None:
    write(page)
    choose(page, "fast")
    run(page)
    wait_for_answer(page)
    paper = page.get_by_role("region", name="The document's text")
    expect(paper.locator(".evidence").filter(has_text="harbour")).to_be_visible()
    expect(paper.locator(".evidence.quote")).to_have_text(" amber")
    assert paper.locator("[data-level]").count() > 50
    page.get_by_role("button", name="Change").click()
    expect(page.get_by_role("button", name="Change")).to_have_attribute("aria-pressed", "true")
    page.get_by_role("article").get_by_role("button", name="amber").first.click()
    expect(paper.locator(".quote.flash")).to_be_visible()
    mark = paper.get_by_role("button", name="Rollouts at position 1")
    mark.click()
    chosen = page.get_by_role("list", name="Positions").locator("[data-chosen]")
    expect(chosen).to_contain_text("advantage")
    page.get_by_label("Step", exact=True).fill("1")
    expect(page.get_by_text("step 1 of 2")).to_be_visible()
    expect(page.get_by_role("img", name="Change by layer")).to_be_visible()


def test_a_run_is_taken_away_as_data_pictures_and_commands(page: Page, tmp_path: Path) -> None:
    write(page)
    choose(page, "fast")
    adaptation = run(page)
    wait_for_answer(page)

    def download(button: str) -> bytes:
        with page.expect_download() as told:
            page.get_by_role("button", name=button).click()
        told.value.save_as(tmp_path / told.value.suggested_filename)
        return (tmp_path / told.value.suggested_filename).read_bytes()

    data = json.loads(download("Download JSON"))
    assert data["adaptation"]["id"] == adaptation
    assert [step["step"] for step in data["steps"]] == [1, 2]
    assert data["answers"][0]["response"]["answer"]
    svg = download("Save SVG").decode()
    assert svg.count("<path") >= 5
    assert "class=" not in svg
    assert download("Save PNG").startswith(b"\x89PNG")

    def copied(button: str) -> str:
        page.get_by_role("button", name=button).click()
        expect(page.get_by_role("status").filter(has_text="copied")).to_be_visible()
        text = page.evaluate("navigator.clipboard.readText()")
        assert isinstance(text, str)
        return text

    assert copied("Copy link") == page.url
    assert copied("Copy as curl").count("curl ") == 3
    compile(copied("Copy as Python"), "program", "exec")


def test_a_run_is_cancelled(page: Page) -> None:
    write(page)
    set_settings(page, LONG)
    run(page)
    expect(page.get_by_text(re.compile(r"Step \d+ of 256"))).to_be_visible()
    page.get_by_role("button", name="Cancel").click()
    expect(page.get_by_role("status").filter(has_text="Cancelled.")).to_be_visible()
    expect(page.get_by_role("button", name="Cancel")).to_have_count(0)


def test_a_run_goes_on_while_the_page_is_reloaded_and_in_a_second_tab(
    page: Page, context: BrowserContext
) -> None:
    write(page)
    set_settings(page, {**LONG, "seed": 1})
    run(page)
    second_step = page.get_by_text(re.compile(r"Step ([2-9]|\d\d+) of 256"))
    expect(second_step).to_be_visible()
    page.reload()
    expect(second_step).to_be_visible()
    expect(page.get_by_role("region", name="The document's text")).to_contain_text("Clara Fenn")
    other = context.new_page()
    other.goto(page.url)
    expect(other.get_by_text(re.compile(r"Step \d+ of 256"))).to_be_visible()
    other.get_by_role("button", name="Cancel").click()
    for tab in (page, other):
        expect(tab.get_by_role("status").filter(has_text="Cancelled.")).to_be_visible()


def test_an_error_is_shown_with_the_field_at_fault(page: Page) -> None:
    write(page)
    set_settings(page, {"optimizer": {"steps": -1}})
    expect(page.get_by_role("alert")).to_contain_text("adapt.optimizer.steps")
    page.get_by_role("button", name="Run", exact=True).click()
    expect(page.get_by_role("alert").first).to_contain_text("adapt.optimizer.steps")
    page.get_by_label("adapt object").fill("{")
    expect(page.get_by_role("alert").filter(has_text="JSON")).to_be_visible()
    expect(page.get_by_role("button", name="Run", exact=True)).to_be_disabled()
    page.goto(page.url.split("#")[0] + "#/run/adapt-missing")
    expect(page.get_by_role("alert")).to_contain_text("adapt-missing")


def test_nothing_is_loaded_from_elsewhere(context: BrowserContext, page: Page, url: str) -> None:
    asked: list[str] = []

    def note(request: Request) -> None:
        asked.append(request.url)

    context.on("request", note)
    page.reload()
    page.get_by_role("button", name="A contract").click()
    page.get_by_role("link", name="Operations").click()
    expect(page.get_by_role("heading", name="Memory")).to_be_visible()
    assert len(asked) > 5
    assert [one for one in asked if not one.startswith(url)] == []
