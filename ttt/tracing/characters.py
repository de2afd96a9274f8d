"""Which characters of the client's document each token stands for that is read of it."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter

from refine_server.ttt.decoding.prompts.prompt import DocumentPrompt, PromptTemplate
from refine_server.ttt.evidence.alignment import align
from refine_server.ttt.evidence.passages import Place
from refine_server.ttt.evidence.reading import Reading
from refine_server.ttt.interface.requests import Limits
from refine_server.ttt.interface.traces import TextSpan


@dataclass(frozen=True, kw_only=True, slots=True)
class Characters:
    """The characters of the N tokens of a prompt's document, in the client's document."""

    starts: tuple[int, ...]
    """The first character of each token."""
    ends: tuple[int, ...]
    """One beyond the last character of each token."""

    def span(self, start: int, end: int) -> TextSpan:
        """Return the characters of tokens ``start`` … ``end`` - 1, of which there is at least one.

        Tokens beyond the document's are left out.
        """
        last = min(end, len(self.ends)) - 1
        return TextSpan(start=self.starts[min(max(start, 0), last)], end=self.ends[last])


def locate_characters(
    document: str,
    reading: Reading | None,
    prompt: DocumentPrompt,
    template: PromptTemplate,
    limits: Limits,
) -> Characters:
    """Find the characters of each token that is read of a document.

    Args:
        document: as the client sent it.
        reading: of which parts of the document the text consists that is read; None: all of it.
        prompt: the same text, encoded.
        template: its tokenizer encodes the text again, to know where each token stands.
        limits: the longest texts that are accepted.
    """
    text = document if reading is None else reading.text
    places = [Place(0, len(text), 0)] if reading is None else reading.places
    ids, offsets = template.locate_tokens(text, limits.sent_tokens)
    to_own = align(prompt.document, ids)
    starts, ends = [], []
    for token in range(len(prompt.document)):
        first, last = to_own(token), to_own(token + 1)
        start = offsets[min(first, len(offsets) - 1)][0]
        end = offsets[last - 1][1] if last > first else start
        starts.append(_in_document(start, places))
        ends.append(max(_in_document(end - 1, places) + 1 if end > start else starts[-1], 0))
    return Characters(starts=tuple(starts), ends=tuple(ends))


def _in_document(character: int, places: Sequence[Place]) -> int:
    """Return where a character of a text that was joined of parts stands in their document."""
    part = max(bisect_right(places, character, key=attrgetter("first")) - 1, 0)
    first, last, source = places[part]
    return source + min(max(character, first), last) - first
