"""What the events of a completion make of its choices so far."""

import codecs
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from typing_extensions import override

from refine_server.server.api.openai.document_report import DocumentReport
from refine_server.server.api.openai.responses import CompletionUsage, TttReport
from refine_server.server.engine.events import RunEvent
from refine_server.ttt.interface.events import (
    ChoiceEnded,
    CompletionDelta,
    PromptRead,
    ScoredToken,
)


class TextOffset:
    """Counts the whole characters of tokens, which may hold parts of characters."""

    def __init__(self) -> None:
        self._characters = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def advance(self, token: ScoredToken) -> int:
        """Return where a token starts in the text, and move past it."""
        start = self._characters
        self._characters += len(self._decoder.decode(token.data))
        return start


@dataclass(slots=True)
class Choice:
    """A choice so far."""

    text: str = ""
    tokens: list[ScoredToken] = field(default_factory=list)
    """Tokens that ``logprobs`` reports."""
    new_tokens: Sequence[ScoredToken] = ()
    """Those of ``tokens`` that the last event added."""
    held_tokens: list[CompletionDelta] = field(default_factory=list)
    """Tokens that may turn out to be part of a stop string."""
    has_end_token: bool = False
    """Whether the last token is one that ends answers."""
    finish_reason: str = "length"
    text_offset: TextOffset = field(default_factory=TextOffset)
    """Where the next token of its stream starts."""


class ChoiceCollector(ABC):
    """Collects the choices of a completion, their tokens, and what is said of the document.

    Args:
        n: choices for each prompt.
        ttt: what the document is before anything is read of it; None where there is none.
    """

    def __init__(self, n: int, ttt: TttReport | None) -> None:
        self.n = n
        self._ttt = None if ttt is None else DocumentReport(ttt)
        self._choices: defaultdict[int, Choice] = defaultdict(Choice)
        self._prompt_tokens = self._completion_tokens = 0

    @property
    def usage(self) -> CompletionUsage:
        """Token counts so far."""
        return CompletionUsage(
            prompt_tokens=self._prompt_tokens,
            completion_tokens=self._completion_tokens,
            total_tokens=self._prompt_tokens + self._completion_tokens,
        )

    def add(self, event: RunEvent) -> None:
        """Take the next event."""
        if self._ttt is not None:
            self._ttt.add(event)
        match event:
            case PromptRead():
                self._prompt_tokens += event.tokens
                text = b"".join(token.data for token in event.echo).decode(errors="replace")
                for index in self._choices_of(event):
                    self._choices[index].text = text
                    self._choices[index].tokens += event.echo
            case CompletionDelta():
                self._completion_tokens += 1
                choice = self._choices[event.choice]
                choice.text += event.text
                choice.new_tokens = self._logprob_tokens(choice, event)
                choice.tokens += choice.new_tokens
                choice.has_end_token = event.ends
            case ChoiceEnded():
                choice = self._choices[event.choice]
                choice.finish_reason = event.finish_reason
                is_cut = event.finish_reason == "stop" and not choice.has_end_token
                choice.new_tokens = () if is_cut else [d.token for d in choice.held_tokens]
                choice.tokens += choice.new_tokens

    @property
    def _document_report(self) -> TttReport | None:
        return None if self._ttt is None else self._ttt.whole

    def _choices_of(self, event: PromptRead) -> range:
        return range(event.prompt * self.n, (event.prompt + 1) * self.n)

    @abstractmethod
    def _logprob_tokens(self, choice: Choice, event: CompletionDelta) -> Sequence[ScoredToken]:
        """Return the tokens that ``logprobs`` reports, now that the choice has the event's."""


class ContentCollector(ChoiceCollector):
    """Collects answers, whose log-probabilities are those of the content.

    They are neither those of a token that ends an answer, nor of tokens of a stop string, unless
    the content ends within them.
    """

    @override
    def _logprob_tokens(self, choice: Choice, event: CompletionDelta) -> Sequence[ScoredToken]:
        held = choice.held_tokens if event.ends else [*choice.held_tokens, event]
        choice.held_tokens = [delta for delta in held if delta.start >= len(choice.text)]
        return [delta.token for delta in held if delta.start < len(choice.text)]
