"""Documents, questions and names that try to be more than text."""

import re

from playwright.sync_api import FilePayload, Page, expect

from support.page_actions import choose, run, wait_for_answer, write

MARKUP = (
    "<script>window.attacked = 1</script><img src=x onerror='window.attacked = 2'>"
    "<a href='javascript:window.attacked=3'>link</a> {{7*7}} ${7*7} &lt;b&gt; </textarea></div>"
    "<svg onload=window.attacked=4><style>*{display:none}</style>"
)
HOSTILE = (
    f"The harbour code is amber. {MARKUP}\n"
    "A NUL\0 and an escape\x1b[31m and a bell\x07 are here.\n"
    "\u202eThis line is turned round by an override.\u202c\n"
    "הקוד של הנמל הוא ענבר. شفرة الميناء كهرمان.\n"
    "Astral 😀😀 characters, combining e\u0301, and a zero width\u200bspace.\n"
)


def assert_nothing_ran(page: Page) -> None:
    assert page.evaluate("window.attacked") is None
    assert page.locator("#page script, #page style, #page img[src=x], #page iframe").count() == 0


def test_a_hostile_document_and_question_are_text(page: Page) -> None:
    query = f"What is the harbour code? {MARKUP}"
    write(page, HOSTILE, query)
    choose(page, "fast")
    run(page)
    paper = page.get_by_role("region", name="The document's text")
    expect(paper).to_contain_text("<script>window.attacked = 1</script>")
    expect(paper).to_contain_text("A NUL\ufffd and an escape␛[31m and a bell␇ are here.")
    expect(paper).to_contain_text("␦This line is turned round by an override.␦")
    expect(paper).to_contain_text("Astral 😀😀 characters")
    expect(page.get_by_role("heading", level=1)).to_contain_text("<img src=x onerror=")
    wait_for_answer(page, query)
    assert_nothing_ran(page)


def test_a_line_of_a_megabyte_is_shown(page: Page) -> None:
    line = "The harbour code is amber. " + "lamps were lit one by one " * 40_000
    file: FilePayload = {"name": "<b>.txt", "mimeType": "text/plain", "buffer": line.encode()}
    with page.expect_response("**/v1/documents") as told:
        page.get_by_label("Document file").set_input_files(file)
    expect(page.get_by_text("<b>.txt · 1,040,027 characters")).to_be_visible()
    page.goto(f"{page.url}#/run/adapt-missing?file={told.value.json()['id']}")
    paper = page.get_by_role("region", name="The document's text")
    expect(paper).to_contain_text("The harbour code is amber.")
    assert_nothing_ran(page)


def test_a_file_that_is_no_text_is_refused_with_a_reason(page: Page) -> None:
    file: FilePayload = {"name": "a.png", "mimeType": "image/png", "buffer": b"\x89PNG\r\n\x1a\n\0"}
    page.get_by_label("Document file").set_input_files(file)
    expect(page.get_by_role("alert")).to_contain_text("file")
    assert_nothing_ran(page)


def test_markup_of_a_web_page_is_read_as_its_text(page: Page) -> None:
    html = f"<title>Notes</title><p>The harbour code is amber.</p>{MARKUP}<p>The end.</p>"
    file: FilePayload = {"name": "a.html", "mimeType": "text/html", "buffer": html.encode()}
    page.get_by_label("Document file").set_input_files(file)
    document = page.get_by_label("Document", exact=True).get_by_role("textbox")
    expect(document).to_have_value(re.compile(r"The harbour code is amber\.[\s\S]*The end\."))
    assert_nothing_ran(page)
