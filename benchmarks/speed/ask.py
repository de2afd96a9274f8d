"""Cost of a query on an adapted document, and what adapting only once saves."""

from typing import Any

import torch

from refine_server.benchmarks.common.timing import medians
from refine_server.ttt.document import AdaptedDocument
from refine_server.ttt.interface.config import AdaptConfig, OptimizerConfig, SamplingConfig
from refine_server.ttt.interface.events import DocumentAdapted
from refine_server.ttt.interface.requests import AdaptRequest, AnswerRequest, AskRequest, Limits
from refine_server.ttt.models import load
from refine_server.ttt.programs.start import perform

SENTENCE = "The keeper of the north light wrote down what the sea had brought that day.\n"
QUERY = "What did the keeper write down?"


class AskBench:
    """Times queries on adapted documents of two lengths, and many queries on one document.

    Every query decodes ``tokens`` tokens. The documents repeat one sentence, because the cost does
    not depend on the content. The documents of the length comparison are adapted to for one step,
    because the number of steps does not change the cost of a query; the comparison of many queries
    uses the default settings.
    """

    def __init__(self, model: str, tokens: int, threads: int | None = None) -> None:
        if threads is not None:
            torch.set_num_threads(threads)
        self.model = load(model)
        self.sampling = SamplingConfig(max_tokens=tokens, ignore_eos=True)

    def run(
        self, shortest: int, longest: int, document_tokens: int, queries: int, repeats: int
    ) -> dict[str, Any]:
        """Return ratios of medians; document lengths are in tokens."""
        one_step = AdaptConfig(optimizer=OptimizerConfig(steps=1), guard="none")
        documents = {n: self._adapted(self._text(n), one_step) for n in (shortest, longest)}
        at = medians(
            {str(n): lambda d=d: self._ask(d) for n, d in documents.items()},  # type: ignore[misc]
            repeats,
        )
        text = self._text(document_tokens)
        many = medians(
            {"once": lambda: self._once(text, queries), "each": lambda: self._each(text, queries)},
            repeats=1,
            warm_up=0,  # the model is warm, and each side is long
        )
        return {
            "model": self.model.name,
            "threads": torch.get_num_threads(),
            "tokens_a_query": self.sampling.max_tokens,
            "shortest": documents[shortest].document_tokens,
            "longest": documents[longest].document_tokens,
            "shortest_seconds": at[str(shortest)],
            "longest_seconds": at[str(longest)],
            "ratio_longest_to_shortest": at[str(longest)] / at[str(shortest)],
            "queries": queries,
            "document_tokens": document_tokens,
            "adapt_once_seconds": many["once"],
            "adapt_each_seconds": many["each"],
            "speedup_ask_many": many["each"] / many["once"],
        }

    def _text(self, tokens: int) -> str:
        ids = self.model.tokenizer(SENTENCE, add_special_tokens=False)["input_ids"]
        return SENTENCE * max(1, tokens // len(ids))

    def _adapted(self, text: str, config: AdaptConfig) -> AdaptedDocument:
        request = AdaptRequest(text, config)
        *_, last = perform(self.model, request, limits=Limits(document_tokens=10**6))
        assert isinstance(last, DocumentAdapted)
        assert isinstance(last.document, AdaptedDocument)
        return last.document

    def _ask(self, document: AdaptedDocument) -> None:
        for _ in perform(self.model, AskRequest(document, QUERY, self.sampling)):
            pass

    def _once(self, text: str, queries: int) -> None:
        document = self._adapted(text, AdaptConfig())
        for _ in range(queries):
            self._ask(document)

    def _each(self, text: str, queries: int) -> None:
        for _ in range(queries):
            for _ in perform(self.model, AnswerRequest(text, QUERY, sampling=self.sampling)):
                pass
