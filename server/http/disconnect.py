"""Whether somebody still waits for a response."""

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from fastapi import Request

T = TypeVar("T")

CLIENT_CLOSED_REQUEST = 499
"""Nobody receives this status; it stands in the log and the metrics (as in nginx)."""


async def unless_gone(request: Request, work: Awaitable[T]) -> T | None:
    """The result of some work; None, and the work cancelled, when the client goes away before."""
    working = asyncio.ensure_future(work)
    watching = asyncio.create_task(_gone(request))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        working.cancel()
        watching.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
