"""A model that adapts to documents in this process."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch

from refine_server.ttt.decoding.prompts.prompt import PromptTemplate
from refine_server.ttt.interface.config import AdaptConfig, SamplingConfig
from refine_server.ttt.interface.events import AdaptationStep, AnswerDelta, DocumentAdapted, Event
from refine_server.ttt.interface.reports import AdaptationReport, StepReport
from refine_server.ttt.interface.requests import AdaptRequest, Limits, Work
from refine_server.ttt.kept import Kept, question
from refine_server.ttt.models import CausalLM, load
from refine_server.ttt.programs.start import perform
from refine_server.ttt.query_side.document_cache import DocumentCache

DOCUMENT_BYTES = 512 * 2**20
"""The most bytes of documents that a model keeps as it read them, for later queries."""


def load_model(name: str, *, device: str, dtype: str | None) -> "Model":
    """Load a model; the arguments are those of ``refine_server.load``."""
    return Model(load(name, dtype=getattr(torch, dtype) if dtype else None, device=device))


class Model:
    """A base model, whose weights are never written, and the prompt that it is asked with.

    Args:
        base: the base model with its tokenizer.
        template: the text around documents and queries; the model's own chat form by default.
        limits: the longest document and query, in tokens.
    """

    def __init__(
        self,
        base: CausalLM,
        template: PromptTemplate | None = None,
        limits: Limits | None = None,
    ) -> None:
        self.base = base
        self.template = template or PromptTemplate(base.tokenizer)
        self.limits = limits or Limits()
        self._documents = DocumentCache(lambda: DOCUMENT_BYTES, math.inf)

    def adapt(
        self,
        document: str,
        query: str | None = None,
        *,
        config: AdaptConfig | None = None,
        on_step: Callable[[StepReport], None] | None = None,
    ) -> "Adapted":
        """Adapt a copy of the fast weights to a document; this takes seconds to minutes.

        Args:
            document: the text to read and adapt to.
            query: what will be asked, if it is known; settings may choose spans by it.
            config: the settings of the adaptation.
            on_step: called with the report of every step as soon as it ends.

        Raises:
            RequestError: the document or the query is empty or too long, or there is no query and
                the settings choose spans by it.
        """
        queries = () if query is None else (query,)
        request = AdaptRequest(document, config or AdaptConfig(), queries=queries)
        for event in self.perform(request):
            match event:
                case AdaptationStep(report) if on_step is not None:
                    on_step(report)
                case DocumentAdapted(adapted):
                    return Adapted(self, adapted, query)
        raise AssertionError("an adaptation ends with its document")

    def perform(self, work: Work) -> Iterator[Event]:
        """Do a piece of work and yield its events as they happen."""
        return perform(
            self.base,
            work,
            template=self.template,
            limits=self.limits,
            documents=self._documents,
        )


class Adapted:
    """A document that a model was adapted to; ask it as often as you like."""

    def __init__(self, model: Model, document: Kept, query: str | None) -> None:
        self.model = model
        self.document = document
        self.query = query
        """The query that was known when the document was adapted to."""

    @property
    def report(self) -> AdaptationReport:
        """Losses, rewards and seconds of the steps, and which step the answers use."""
        return self.document.report

    def answer(self, query: str | None = None, **sampling: Any) -> str:
        """Answer a query from the adapted document.

        Args:
            query: the question; by default the one that the document was adapted for.
            sampling: fields of ``SamplingConfig``, for example ``max_tokens`` or ``temperature``.

        Raises:
            RequestError: the query is empty or too long.
            ValueError: there is no query, or a field of the sampling is unknown or out of range.
        """
        return "".join(self.stream(query, **sampling))

    def stream(self, query: str | None = None, **sampling: Any) -> Iterator[str]:
        """Yield the pieces of an answer as they are decoded; the arguments are ``answer``'s."""
        asked = self.query if query is None else query
        if asked is None:
            raise ValueError("query: this document was adapted to without one; pass it here")
        request = question(self.document, asked, SamplingConfig(**sampling), context="document")
        for event in self.model.perform(request):
            if isinstance(event, AnswerDelta):
                yield event.text
