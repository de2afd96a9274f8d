"""A block of work is cancelled when its client disconnects."""

import asyncio
from contextlib import suppress

import anyio
import pytest
from starlette.types import Message

from refine_server.server.http.connections import ClientDisconnected, cancel_on_disconnect

pytestmark = pytest.mark.anyio


class Client:
    """The receiving side of a request after its body: nothing, and then the disconnect."""

    def __init__(self, *, leaves_after: float | None = None) -> None:
        self.leaves_after = leaves_after
        self.is_watched = False

    async def receive(self) -> Message:
        self.is_watched = True
        try:
            if self.leaves_after is None:
                await anyio.sleep_forever()
            await anyio.sleep(self.leaves_after or 0.0)
            return {"type": "http.disconnect"}
        finally:
            self.is_watched = False


async def test_the_block_is_cancelled_when_the_client_leaves() -> None:
    ended = []

    async def work() -> None:
        async with cancel_on_disconnect(Client(leaves_after=0.01).receive):
            try:
                await anyio.sleep_forever()
            finally:
                ended.append("cancelled")

    with pytest.raises(ClientDisconnected):
        await work()
    assert ended == ["cancelled"]


async def test_the_block_ends_by_itself_while_the_client_waits() -> None:
    client = Client()
    async with cancel_on_disconnect(client.receive):
        result = await asyncio.sleep(0.01, "done")
        assert client.is_watched
    await asyncio.sleep(0)
    assert result == "done"
    assert not client.is_watched


async def test_errors_pass_as_they_are() -> None:
    with pytest.raises(KeyError):
        async with cancel_on_disconnect(Client().receive):
            raise KeyError


async def test_a_cancelled_caller_is_not_taken_for_a_client_that_left() -> None:
    async def work() -> None:
        async with cancel_on_disconnect(Client().receive):
            await anyio.sleep_forever()

    task = asyncio.create_task(work())
    await asyncio.sleep(0.01)
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    assert task.cancelled()


async def test_other_messages_are_not_a_disconnect() -> None:
    messages: list[Message] = [{"type": "http.request", "body": b"", "more_body": False}]

    async def receive() -> Message:
        if messages:
            return messages.pop()
        await anyio.sleep_forever()
        raise AssertionError

    async with cancel_on_disconnect(receive):
        await asyncio.sleep(0.01)
    assert not messages
