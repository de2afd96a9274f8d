"""The trace of one run: its document before and after, and what describes its steps."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from refine_server.ttt.batching import Call
from refine_server.ttt.decoding.token_bytes import TokenBytes
from refine_server.ttt.fast_weights import BASE, FastWeights
from refine_server.ttt.interface.traces import DocumentTrace, RunTrace
from refine_server.ttt.models.base import CausalLM
from refine_server.ttt.models.reader import Reader
from refine_server.ttt.query_side.frozen_document import (
    DocumentReader,
    FrozenDocument,
    TokenEntropies,
)
from refine_server.ttt.refine.inputs.rows import Rows, Span
from refine_server.ttt.tracing.document import TracedDocument
from refine_server.ttt.tracing.step import StepTracer
from refine_server.ttt.tracing.weights import WeightChanges


class RunTracer:
    """Traces one run. What it computes changes nothing that the run computes.

    Args:
        document: what is traced, and what is marked in it.
        emit: receives the traces of the document.
    """

    def __init__(self, document: TracedDocument, emit: Callable[[DocumentTrace], None]) -> None:
        self._document, self._emit = document, emit
        self._before: DocumentTrace | None = None
        self._after: DocumentTrace | None = None

    @property
    def model(self) -> CausalLM:
        """The model that reads the document."""
        return self._document.model

    @property
    def result(self) -> RunTrace | None:
        """What was traced; None before the first trace."""
        return None if self._before is None else RunTrace(before=self._before, after=self._after)

    def steps(self, rows: Rows, fast: FastWeights, count: int) -> StepTracer:
        """Return what describes the steps of an adaptation.

        Args:
            rows: what their rollouts start in.
            fast: the weights that they adapt, before the first step.
            count: the most steps that are made.
        """
        return StepTracer(
            rows=rows,
            document_context=self._document.context_tokens,
            characters=self._document.characters,
            steps=count,
            changes=WeightChanges(self.model, fast),
            token_bytes=TokenBytes(self.model.tokenizer),
        )

    async def before(
        self,
        *,
        spans: Sequence[Span] = (),
        held_out: Sequence[Span] = (),
        frozen: FrozenDocument | None = None,
    ) -> None:
        """Trace the document under the base weights.

        Args:
            spans: what the steps will read; empty where it is the whole document.
            held_out: what is held out of their loss.
            frozen: the document as the base model read it, with its entropies; None: it is read.
        """
        self._document = own = replace(self._document, spans=spans, held_out=held_out)
        if frozen is None:
            reader = DocumentReader(
                self.model, own.input_ids, own.context_tokens, with_entropy=True
            )
            while not reader.is_done:
                await Call(reader.read_piece, self.model.threads)
            frozen = reader.document()
        entropy, state = frozen.entropy, frozen.state
        assert entropy is not None, "the document was read without its entropies"
        attention = await Call(lambda: own.attend(state, BASE), self.model.threads)
        self._before = own.describe("before", 0, entropy, attention)
        self._emit(self._before)

    async def after(self, fast: FastWeights, step: int) -> None:
        """Trace the document, read under adapted weights.

        Args:
            fast: the weights that answer.
            step: the step that made them.
        """
        own, entropies = self._document, TokenEntropies(self.model, fast)
        reader = Reader(self.model, own.input_ids, fast=fast)

        def read_piece() -> None:
            entropies.add(reader.read_piece())

        while not reader.is_done:
            await Call(read_piece, self.model.threads)
        attention = await Call(lambda: own.attend(reader.state, fast), self.model.threads)
        self._end(step, entropies.of_tokens(), attention)

    async def after_queries(
        self, fast: FastWeights, step: int, frozen: FrozenDocument, rows: Rows
    ) -> None:
        """Trace a document that stays as it is, with the evidence read under adapted queries.

        Args:
            fast: the weights that answer.
            step: the step that made them.
            frozen: the document.
            rows: its evidence.
        """

        @torch.no_grad()
        def read() -> tuple[torch.Tensor, torch.Tensor | None]:
            stats = rows.token_stats(rows.trunk(fast).hidden, fast)  # [S, T - first]
            entropy = frozen.hidden.new_full((frozen.input_ids.shape[1],), torch.nan)  # [T]
            entropy[rows.places_in_document[:, rows.first :]] = stats.entropy.to(entropy.dtype)
            return entropy, self._document.attend(frozen.state, fast)

        call = Call(read, self.model.threads)
        entropy, attention = await call
        self._end(step, entropy, attention)

    def _end(self, step: int, entropy: torch.Tensor, attention: torch.Tensor | None) -> None:
        self._after = self._document.describe("after", step, entropy, attention)
        self._emit(self._after)
