"""Encoder of a response's events: the whole response, or the events of its stream."""

import json
import time
from collections.abc import Iterator
from typing import Any

import anyio.to_thread
from typing_extensions import override

from refine_server.server.api.openai.collector import Choice, ContentCollector
from refine_server.server.api.openai.format import chat_logprobs
from refine_server.server.api.openai.responses import TttReport
from refine_server.server.api.openai.responses_api.request import ResponsesBody
from refine_server.server.api.openai.responses_api.resource import (
    FileCitation,
    IncompleteDetails,
    OutputMessage,
    OutputText,
    ResponseError,
    ResponseResource,
    ResponseUsage,
    Status,
)
from refine_server.server.engine.events import RunEvent
from refine_server.server.files.file import File
from refine_server.server.http.errors import ApiError
from refine_server.server.http.respond import ResponseEncoder, StreamEvent
from refine_server.ttt.interface.events import ChoiceEnded, CompletionDelta, PromptRead

PLACE = {"output_index": 0, "content_index": 0}
"""Of the answer in a response, which has one item with one part."""


class ResponsesEncoder(ContentCollector, ResponseEncoder):
    """Encodes ``/v1/responses``.

    Args:
        id: the response's id, without its prefix.
        model: the model that the request named.
        body: the request.
        ttt: what the document is before anything is read of it; None where there is none.
        file: the file that has the document, if it is one.
    """

    def __init__(
        self,
        id: str,
        model: str,
        body: ResponsesBody,
        *,
        ttt: TttReport | None,
        file: File | None,
    ) -> None:
        super().__init__(1, ttt)
        self._message_id, self._file = f"msg_{id}", file
        self._logprobs = body.logprobs is not None
        self._sequence_number = 0
        self._has_begun = False
        self._has_item = False
        format_ = body.text and body.text.format
        shown = {"type": "text"} if not format_ else format_.model_dump(by_alias=True)
        self._head: dict[str, Any] = {
            "id": f"resp_{id}",
            "created_at": int(time.time()),
            "model": model,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "metadata": body.metadata or {},
            "temperature": 1.0 if body.temperature is None else body.temperature,
            "text": {"format": shown},
            "top_logprobs": body.logprobs or 0,
            "top_p": 1.0 if body.top_p is None else body.top_p,
        }

    # -- the whole ----------------------------------------------------------------------------

    @override
    async def response(self) -> str:
        # Thousands of log-probabilities take a while, in which the event loop serves others.
        return await anyio.to_thread.run_sync(lambda: json.dumps(self._response()))

    def _response(
        self, status: Status | None = None, error: ResponseError | None = None
    ) -> dict[str, Any]:
        """Return the response; ``status`` is that of one that has not ended well, or not yet."""
        is_cut = self._choice.finish_reason == "length"
        has_ended = status is None
        ended: Status = "incomplete" if is_cut else "completed"
        counted = self.usage
        usage = ResponseUsage(
            input_tokens=counted.prompt_tokens,
            output_tokens=counted.completion_tokens,
            total_tokens=counted.total_tokens,
        )
        resource = ResponseResource(
            **self._head,
            status=status or ended,
            completed_at=int(time.time()) if has_ended else None,
            error=error,
            incomplete_details=(
                IncompleteDetails(reason="max_output_tokens") if has_ended and is_cut else None
            ),
            output=[self._message()] if has_ended else [],
            usage=usage if has_ended else None,
            ttt=self._document_report,
        )
        return resource.model_dump(exclude={"ttt"} if self._ttt is None else None)

    @property
    def _choice(self) -> Choice:
        return self._choices[0]

    def _message(self) -> OutputMessage:
        is_cut = self._choice.finish_reason == "length"
        return OutputMessage(
            id=self._message_id,
            status="incomplete" if is_cut else "completed",
            content=[self._text()],
        )

    def _text(self) -> OutputText:
        scored = self._choice.tokens if self._logprobs else []
        return OutputText(
            text=self._choice.text,
            annotations=self._annotations(),
            logprobs=chat_logprobs(scored).content,
        )

    def _annotations(self) -> list[FileCitation]:
        report, file, text = self._document_report, self._file, self._choice.text
        if file is None or report is None:
            return []
        found = [(text.find(quote.text), len(quote.text)) for quote in report.quotes]
        return [
            FileCitation(
                file_id=file.id,
                filename=file.filename,
                index=len(text) if start < 0 else start + length,
            )
            for start, length in found
        ]

    # -- the stream ---------------------------------------------------------------------------

    @override
    def chunks(self, event: RunEvent) -> Iterator[StreamEvent]:
        yield from self._begin()
        match event:
            case PromptRead():
                yield from self._begin_item()
            case CompletionDelta():
                if event.text or (self._logprobs and self._choice.new_tokens):
                    yield self._delta(event.text)
            case ChoiceEnded() if self._logprobs and self._choice.new_tokens:
                yield self._delta("")

    @override
    def last_chunks(self) -> Iterator[StreamEvent]:
        message = self._message().model_dump()
        [text] = message["content"]
        place = {"item_id": self._message_id, **PLACE}
        for number, annotation in enumerate(text["annotations"]):
            added = {"annotation_index": number, "annotation": annotation}
            yield self._event("response.output_text.annotation.added", **place, **added)
        said = {"text": text["text"], "logprobs": text["logprobs"]}
        yield self._event("response.output_text.done", **place, **said)
        yield self._event("response.content_part.done", **place, part=text)
        yield self._event("response.output_item.done", output_index=0, item=message)
        response = self._response()
        yield self._event(f"response.{response['status']}", response=response)

    @override
    def error_chunks(self, error: ApiError) -> Iterator[StreamEvent]:
        yield from self._begin()
        detail = error.body.error
        failed = ResponseError(code=detail.code, message=detail.message)
        yield self._event("response.failed", response=self._response("failed", failed))

    def _begin(self) -> Iterator[StreamEvent]:
        if self._has_begun:
            return
        self._has_begun = True
        for name in ("response.created", "response.in_progress"):
            yield self._event(name, response=self._response("in_progress"))

    def _begin_item(self) -> Iterator[StreamEvent]:
        item = OutputMessage(id=self._message_id, status="in_progress", content=[])
        yield self._event("response.output_item.added", output_index=0, item=item.model_dump())
        part = OutputText(text="").model_dump()
        place = {"item_id": self._message_id, **PLACE}
        yield self._event("response.content_part.added", **place, part=part)

    def _delta(self, text: str) -> StreamEvent:
        tokens = self._choice.new_tokens if self._logprobs else ()
        scored = [token.model_dump() for token in chat_logprobs(tokens).content]
        place = {"item_id": self._message_id, **PLACE}
        return self._event("response.output_text.delta", **place, delta=text, logprobs=scored)

    def _event(self, name: str, **data: Any) -> StreamEvent:
        numbered = {"type": name, "sequence_number": self._sequence_number, **data}
        self._sequence_number += 1
        return StreamEvent(event=name, data=json.dumps(numbered))
