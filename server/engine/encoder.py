"""Tokenising beside the event loop and the model's thread, in a few threads of its own."""

import asyncio
import copy
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from queue import SimpleQueue
from typing import TypeVar

from refine_server.ttt.decoding.prompts.prompt import PromptTemplate
from refine_server.ttt.interface.requests import (
    AdaptRequest,
    AnswerRequest,
    AskRequest,
    CompletionRequest,
    Conversation,
    Prompt,
    Work,
)

T = TypeVar("T")

LONG_TEXT = 16_384
"""Characters from which on a text is encoded by the threads for long texts."""
SHORT_TEXT_THREADS = 1
LONG_TEXT_THREADS = 2


class TemplatePool:
    """A prompt template for each encoding thread, as two threads cannot share a tokenizer."""

    def __init__(self, template: PromptTemplate) -> None:
        self._free: SimpleQueue[PromptTemplate] = SimpleQueue()
        for _ in range(SHORT_TEXT_THREADS + LONG_TEXT_THREADS):
            self._free.put(copy.deepcopy(template))

    @contextmanager
    def take(self) -> Iterator[PromptTemplate]:
        """Give a template, with its tokenizer, that no other thread uses meanwhile."""
        template = self._free.get()
        try:
            yield template
        finally:
            self._free.put(template)


class Encoder:
    """The encoding threads. What may take long has its own, for which short texts never wait."""

    def __init__(self) -> None:
        self._short = ThreadPoolExecutor(SHORT_TEXT_THREADS, "refine-encode-short")
        self._long = ThreadPoolExecutor(LONG_TEXT_THREADS, "refine-encode-long")

    async def run(
        self, encode: Callable[[], T], *, characters: int, may_measure: bool = False
    ) -> T:
        """Return what ``encode`` returns for a text of so many characters.

        With ``may_measure`` it may have to wait until the memory of adaptations is measured. If the
        caller is cancelled before a thread is free, ``encode`` is never called.
        """
        is_long = may_measure or characters >= LONG_TEXT
        threads = self._long if is_long else self._short
        return await asyncio.get_running_loop().run_in_executor(threads, encode)

    def close(self) -> None:
        """Drop what has not begun."""
        for threads in (self._short, self._long):
            threads.shutdown(wait=False, cancel_futures=True)


def adapts(work: Work) -> bool:
    """Return whether a request makes steps of an adaptation."""
    return isinstance(work, AdaptRequest | AnswerRequest) and work.adapt.objective != "none"


def count_characters(work: Work) -> int:
    """Return how many characters of a request are to be encoded."""
    match work:
        case AnswerRequest():
            return len(work.document) + len(work.query)
        case AdaptRequest():
            return len(work.document) + sum(map(len, work.queries))
        case AskRequest():
            return len(work.query)
        case CompletionRequest():
            return len(work.document or "") + sum(map(_count_prompt, work.prompts))


def _count_prompt(prompt: Prompt) -> int:
    match prompt:
        case str():
            return len(prompt)
        case Conversation(messages):
            return sum(len(message.content) for message in messages)
        case _:
            return 0  # token ids
