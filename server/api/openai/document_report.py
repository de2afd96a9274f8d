"""What a response says of the document that its choices follow, as the events tell it."""

from typing import Any

from refine_server.server.api.openai.responses import ChoiceQuote, PromptCitation, TttReport
from refine_server.server.engine.events import RunEvent
from refine_server.ttt.interface.events import ChoiceEnded, DocumentRead, PromptRead


class DocumentReport:
    """The ``ttt`` object of a response so far.

    Args:
        known: what is known of it before anything is read.
    """

    def __init__(self, known: TttReport) -> None:
        self.whole = known
        """All that is known."""

    def add(self, event: RunEvent) -> None:
        """Take the next event."""
        report = self.whole
        match event:
            case DocumentRead():
                tokens = report.document_tokens + event.document_tokens
                overflow = report.overflow or event.overflow
                update = {"document_tokens": tokens, "overflow": overflow}
                self.whole = report.model_copy(update=update)
            case PromptRead():
                own = [
                    PromptCitation(**dict(c), prompt_index=event.prompt) for c in event.citations
                ]
                self.whole = report.model_copy(update={"citations": [*report.citations, *own]})
            case ChoiceEnded():
                said = [ChoiceQuote(**dict(q), choice_index=event.choice) for q in event.quotes]
                self.whole = report.model_copy(update={"quotes": [*report.quotes, *said]})

    def chunk(self, ended: int | None, n: int) -> dict[str, Any]:
        """Return what a chunk of a stream says of the document.

        Args:
            ended: the choice that ends with the chunk, if one does: its evidence and its quotes are
                added.
            n: choices of a prompt.
        """
        report = self.whole
        if ended is None:
            return report.model_dump(exclude={"citations", "quotes"})
        own = {
            "citations": [c for c in report.citations if c.prompt_index == ended // n],
            "quotes": [q for q in report.quotes if q.choice_index == ended],
        }
        return report.model_copy(update=own).model_dump()
