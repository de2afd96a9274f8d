"""Reads the text of files: plain text here, and what needs a parser in a process of its own."""

import asyncio
import json
import os
import signal
import sys
from dataclasses import asdict

from refine_server.server.files.conversion.found import (
    ConversionError,
    ConvertedText,
    Limits,
    Page,
    convert,
)
from refine_server.server.files.conversion.kinds import plain_kind_of
from refine_server.server.files.conversion.text import read as read_plain_text
from refine_server.server.http import errors
from refine_server.server.settings import Settings

WORKER = "refine_server.server.files.conversion.worker"
ENVIRONMENT = ("PATH", "PYTHONPATH", "PYTHONSAFEPATH", "PYTHONHOME", "LANG", "LD_LIBRARY_PATH")
"""What a process gets of the server's environment, which has keys."""
AT_ONCE = 2
"""Files that are read at the same time."""
MAX_WAITING = 16
"""Files that wait for that; further ones are refused."""
START_SECONDS = 10.0
"""Time for the process to begin and to load a parser, beside its limit."""


class Converter:
    """Reads the text of uploaded files.

    Args:
        settings: the limits.
    """

    def __init__(self, settings: Settings) -> None:
        self.limits = Limits(
            pages=settings.max_document_pages,
            characters=settings.max_file_bytes,
            seconds=settings.conversion_seconds,
            memory_bytes=settings.conversion_memory_bytes,
        )
        self._turns = asyncio.Semaphore(AT_ONCE)
        self._waiting = 0

    async def convert(self, data: bytes, filename: str) -> ConvertedText:
        """Return the text of a file.

        Raises:
            ConversionError: it has none, or to read it takes more than the limits allow.
            ApiError: too many files are waiting to be read.
        """
        kind = plain_kind_of(data, filename)
        if kind is not None:
            return await asyncio.to_thread(convert, data, kind, self.limits, read_plain_text)
        if self._waiting >= MAX_WAITING:
            message = "The server is reading as many files as it can. Try again later."
            raise errors.unavailable(message, "conversions_busy")
        self._waiting += 1
        try:
            async with self._turns:
                return _result(await self._run(data, filename))
        finally:
            self._waiting -= 1

    async def _run(self, data: bytes, filename: str) -> bytes:
        """Return what the process writes."""
        limits = self.limits
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-P", "-m", WORKER, filename, json.dumps(asdict(limits))),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env={name: os.environ[name] for name in ENVIRONMENT if name in os.environ},
            start_new_session=True,
        )
        try:
            async with asyncio.timeout(limits.seconds + START_SECONDS):
                written, _ = await process.communicate(data)
        except TimeoutError:
            raise _too_slow(limits) from None
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
            raise _too_slow(limits)
        if process.returncode and not written:
            reason = "cannot be read: its parser failed, for lack of memory or as it is damaged"
            raise ConversionError("damaged_file", reason)
        return written


def _too_slow(limits: Limits) -> ConversionError:
    reason = f"takes longer to read than --conversion-seconds ({limits.seconds:g}) allow"
    return ConversionError("too_slow", reason)


def _result(written: bytes) -> ConvertedText:
    found = json.loads(written)
    if "error" in found:
        reason = found["reason"]
        if found["error"] == "too_much_memory":
            reason = "takes more memory to read than --conversion-memory-bytes allow"
        raise ConversionError(found["error"], reason)
    pages = tuple(Page(**page) for page in found["pages"])
    return ConvertedText(**{**found, "pages": pages})
