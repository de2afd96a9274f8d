"""The text of HTML, with the line breaks between its blocks."""

import re

from selectolax.lexbor import LexborHTMLParser, LexborNode

from refine_server.server.files.conversion.found import Found, Limits
from refine_server.server.files.conversion.kinds import text_of

SKIPPED = {"script", "style", "noscript", "template", "svg", "head", "iframe", "object", "canvas"}
"""Elements whose content is not read as text."""
PARAGRAPHS = {
    *("p", "h1", "h2", "h3", "h4", "h5", "h6", "ul", "ol", "dl", "table", "blockquote", "pre"),
    *("section", "article", "header", "footer", "main", "nav", "aside", "figure", "form", "hr"),
}
"""Elements with an empty line around them."""
LINES = {"div", "li", "tr", "br", "dt", "dd", "caption", "figcaption", "option", "summary"}
"""Elements on lines of their own."""
CELLS = {"td", "th"}
SPACE = re.compile(r"[ \t\r\n\f]+")


def read(data: bytes, limits: Limits) -> Found:
    """Return the text of an HTML file and its title.

    Raises:
        ConversionError: it is no text, or in an unknown encoding.
    """
    return read_html(text_of(data, "html"))


def read_html(text: str) -> Found:
    """Return the text of an HTML document and its title."""
    tree = LexborHTMLParser(text)
    titles = tree.css("title")
    title = SPACE.sub(" ", titles[0].text()).strip() if titles else ""
    writer = _Writer()
    if tree.body is not None:
        _write(tree.body, writer)
    return Found(text=writer.text, title=title or None)


class _Writer:
    """Joins pieces of text; breaks count between two of them only, the widest one."""

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._break = ""
        self._ends_in_space = True

    def add(self, text: str, *, as_is: bool) -> None:
        if not as_is:
            text = SPACE.sub(" ", text)
            if self._break or self._ends_in_space:
                text = text.removeprefix(" ")
        if not text:
            return
        if self._parts:
            if self._break and self._parts[-1].endswith(" "):
                self._parts[-1] = self._parts[-1][:-1]
            self._parts.append(self._break)
        self._parts.append(text)
        self._break, self._ends_in_space = "", text[-1].isspace()

    def separate(self, by: str) -> None:
        if len(by) > len(self._break) or self._break == "\t":
            self._break = by

    @property
    def text(self) -> str:
        return "".join(self._parts).strip()


def _write(root: LexborNode, writer: _Writer) -> None:
    """Write the text below a node; without recursion, as elements may be nested at any depth."""
    verbatim = 0
    node: LexborNode | None = root
    while node is not None:
        tag = node.tag or ""
        if tag == "-text":
            writer.add(node.text_content or "", as_is=verbatim > 0)
        verbatim += tag == "pre"
        _separate(tag, writer)
        child = None if tag in SKIPPED or tag.startswith("-") else node.child
        if child is not None:
            node = child
            continue
        while node is not None:
            tag = node.tag or ""
            verbatim -= tag == "pre"
            _separate(tag, writer)
            if node.mem_id == root.mem_id:
                return
            if node.next is not None:
                node = node.next
                break
            node = node.parent


def _separate(tag: str, writer: _Writer) -> None:
    if tag in PARAGRAPHS:
        writer.separate("\n\n")
    elif tag in LINES:
        writer.separate("\n")
    elif tag in CELLS:
        writer.separate("\t")
