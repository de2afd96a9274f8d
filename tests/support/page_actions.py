"""What a person does with the page, in a browser."""

import json

from playwright.sync_api import Page, expect

DOCUMENT = (
    "The lamps were lit one by one. The harbour code is amber. In the afternoon, the old man "
    "walked slowly near the water. A light wind came from the sea. The lighthouse keeper is Clara "
    "Fenn. Some years ago, our neighbour wrote in a notebook at home. The bakery owner is Tobias "
    "Hartley.\n\nThe children carried heavy boxes, and the cook ate some bread."
)
QUERY = "What is the harbour code?"

LONG = {"objective": "refine", "optimizer": {"steps": 256}, "guard": "none"}
"""Settings of a run that lasts until it is cancelled."""


def write(page: Page, document: str = DOCUMENT, query: str = QUERY) -> None:
    page.get_by_label("Document", exact=True).get_by_role("textbox").fill(document)
    page.get_by_label("Question", exact=True).fill(query)


def choose(page: Page, preset: str) -> None:
    page.get_by_role("radio", name=preset).check()


def set_settings(page: Page, adapt: object) -> None:
    page.get_by_text("Advanced: every setting").click()
    page.get_by_label("adapt object").fill(adapt if isinstance(adapt, str) else json.dumps(adapt))


def run(page: Page) -> str:
    """Run what is written, and return the id of the adaptation."""
    page.get_by_role("button", name="Run", exact=True).click()
    page.wait_for_url("**/#/run/**")
    return page.url.split("#/run/")[1].split("?")[0]


def wait_for_answer(page: Page, query: str = QUERY) -> None:
    expect(page.get_by_role("article", name=query)).to_contain_text("tokens in")
