"""Runs the requests of one batch, a few at a time."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager

from refine_server.server.batches.batch import Batch
from refine_server.server.batches.lines import (
    Answer,
    Request,
    answered,
    custom_id_of,
    parse,
    refused,
    split,
)
from refine_server.server.http.errors import ApiError

Send = Callable[[Batch, dict[str, object]], Awaitable[Answer]]
"""Sends the body of a request to the endpoint of its batch."""

WAITED_FOR = (
    "loading",
    "queue_full",
    "quota_requests_per_minute",
    "quota_document_tokens_per_hour",
)
"""Codes of refusals after which a request is sent again, until its batch expires."""
REFUSALS_OF_ONE = ("out_of_memory", "memory_in_use")
"""Codes of refusals with status 503 that are about one request; others end all service."""


class Interrupted(Exception):
    """The server does not serve any more; requests that are left were not answered."""


class Runner:
    """Runs the requests of one batch and keeps what became of them.

    Args:
        batch: counts its requests.
        data: the input.
        send: sends a request.
        require_place: raises ApiError if outputs of so many bytes cannot be kept.
        slots: bounds the requests of all batches at the same time.
        concurrency: the most requests of this one.
        max_line_bytes: the longest line.
    """

    def __init__(
        self,
        batch: Batch,
        data: bytes,
        *,
        send: Send,
        require_place: Callable[[int], None],
        slots: AbstractAsyncContextManager[object],
        concurrency: int,
        max_line_bytes: int,
    ) -> None:
        self._batch, self._lines = batch, split(data)
        self._send, self._require_place = send, require_place
        self._slots, self._concurrency = slots, concurrency
        self._max_line_bytes = max_line_bytes
        self._custom_ids: set[str] = set()
        self._ended: dict[int, tuple[bool, bytes]] = {}
        """By the number of their line: whether requests were answered, and their output."""
        self._nbytes = 0
        self._data = data

    async def run(self) -> None:
        """Run all requests.

        Raises:
            Interrupted: the server stops before.
        """
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self._concurrency):
                    group.create_task(self._work())
        except* Interrupted:
            raise Interrupted from None

    def outputs(self, left: ApiError | None = None) -> tuple[bytes, bytes]:
        """Return the output and the errors, in the order of the input.

        Args:
            left: why requests that did not end are not answered; None: leave them out.
        """
        if left is not None:
            for number, line in split(self._data):
                if number not in self._ended:
                    self._end(number, refused(custom_id_of(line), left, number), is_answered=False)
        ordered = [self._ended[number] for number in sorted(self._ended)]
        output = b"".join(line for is_answered, line in ordered if is_answered)
        return output, b"".join(line for is_answered, line in ordered if not is_answered)

    async def _work(self) -> None:
        for number, line in self._lines:
            await asyncio.sleep(0)  # a file of faulty lines does not hold up the event loop
            try:
                request = self._parse(line)
            except ApiError as error:
                custom_id = self._name(line, error)
                self._end(number, refused(custom_id, error, number), is_answered=False)
                continue
            answer = await self._answer(request.body)
            is_answered = answer.status < 400
            self._end(number, answered(request.custom_id, answer, number), is_answered=is_answered)

    def _parse(self, line: bytes) -> Request:
        self._require_place(self._nbytes)
        request = parse(line, self._batch.endpoint, self._max_line_bytes)
        if request.custom_id in self._custom_ids:
            message = "custom_id: another line has it, too"
            raise ApiError(422, message, "invalid_value", param="custom_id")
        self._custom_ids.add(request.custom_id)
        return request

    def _name(self, line: bytes, error: ApiError) -> str | None:
        """Return the custom_id of a line that is refused, None where it is another line's."""
        if error.body.error.code == "body_too_large":  # parsing it would hold up the event loop
            return None
        custom_id = custom_id_of(line)
        return None if custom_id in self._custom_ids else custom_id

    async def _answer(self, body: dict[str, object]) -> Answer:
        while True:
            async with self._slots:
                answer = await self._send(self._batch, body)
            if answer.code in WAITED_FOR and answer.retry_after is not None:
                await asyncio.sleep(answer.retry_after)
            elif answer.status == 503 and answer.code not in REFUSALS_OF_ONE:
                raise Interrupted
            else:
                return answer

    def _end(self, number: int, line: bytes, *, is_answered: bool) -> None:
        self._ended[number] = (is_answered, line)
        self._nbytes += len(line)
        if is_answered:
            self._batch.completed += 1
        else:
            self._batch.failed += 1
