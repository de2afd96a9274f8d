"""What programs over a document's frozen state share: one reading of it, and its evidence."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch

from refine_server.ttt.batching import Call
from refine_server.ttt.decoding.prompts.prompt import DocumentPrompt
from refine_server.ttt.evidence.candidates import Candidates
from refine_server.ttt.evidence.context import Context
from refine_server.ttt.evidence.quotes import find_quotes
from refine_server.ttt.evidence.scoring import score_by_attention, score_by_utility
from refine_server.ttt.interface.events import DocumentReading, Emit
from refine_server.ttt.interface.evidence import (
    Evidence,
    EvidenceByAttention,
    EvidenceByUtility,
)
from refine_server.ttt.interface.reports import Citation, Quote, page_of
from refine_server.ttt.models.base import CausalLM
from refine_server.ttt.query_side.attention_target import supervised_layers
from refine_server.ttt.query_side.document_cache import DocumentCache, document_key
from refine_server.ttt.query_side.frozen_document import DocumentReader, FrozenDocument
from refine_server.ttt.refine.inputs.rows import Span


class Frozen(NamedTuple):
    """A document as the base model reads it."""

    document: FrozenDocument
    seconds: float
    """Time that reading it took; 0 if it had been read before."""
    is_cached: bool
    """Whether it had been read before."""


async def read_frozen(
    model: CausalLM,
    prompt: DocumentPrompt,
    owner: str,
    documents: DocumentCache | None,
    emit: Emit,
    *,
    with_entropy: bool = False,
) -> Frozen:
    """Read a document with the base model, unless its owner has had it read before.

    Args:
        model: the base model.
        prompt: the document and what is before it.
        owner: who alone shares the reading.
        documents: documents that were read before; None keeps none.
        emit: receives the progress of the reading.
        with_entropy: whether the entropies of its tokens are needed; a document that was read
            without them is read again.
    """
    ids = torch.tensor([prompt.header + prompt.document], device=model.device)  # [1, T]
    document = None if documents is None else documents.frozen(owner, ids)
    if document is not None and (document.entropy is not None or not with_entropy):
        return Frozen(document, 0.0, True)
    if documents is not None and document is not None:
        documents.forget(owner, document_key(ids))
    reader = DocumentReader(model, ids, len(prompt.header), with_entropy=with_entropy)
    while not reader.is_done:
        emit(DocumentReading(reader.tokens, len(prompt.document)))
        await Call(reader.read_piece, model.threads)
    document = reader.document()
    if documents is not None:
        document = documents.keep_frozen(owner, document)
    return Frozen(document, reader.seconds, False)


async def find_evidence(
    document: FrozenDocument, context: Context, evidence: Evidence | None
) -> tuple[Candidates | None, list[Span]]:
    """Return what can be evidence, scored, and the spans that an adaptation is aimed at.

    Both are empty where the request looks for no evidence.

    Args:
        document: what was read first.
        context: the query, and what can be evidence for it.
        evidence: how it is found; the model is asked if it says so.

    Returns:
        The candidates, and spans of the document's ``input_ids``.
    """
    candidates, aim = context.candidates, context.aim
    if candidates is not None and isinstance(evidence, EvidenceByAttention | EvidenceByUtility):
        score = partial(_scored, document, context, evidence, candidates)
        call = Call(score, document.model.threads)
        candidates = await call
        chosen = (candidates.chunks[n] for n in candidates.chosen())
        aim = tuple((chunk.start, chunk.end) for chunk in chosen)
    offset = document.context_tokens
    return candidates, [Span(offset + start, offset + end) for start, end in aim]


def _scored(
    document: FrozenDocument,
    context: Context,
    evidence: EvidenceByAttention | EvidenceByUtility,
    candidates: Candidates,
) -> Candidates:
    """Score the candidates by the unadapted model."""
    chunks = candidates.chunks
    if isinstance(evidence, EvidenceByAttention):
        [layer] = supervised_layers(document.model.attention_layers)
        scores = score_by_attention(document, context.query, chunks, layer)
    else:
        passages = [context.prompt.document[chunk.start : chunk.end] for chunk in chunks]
        scores = score_by_utility(document.model, context.prompt.header, context.query, passages)
    return replace(candidates, scores=tuple(scores))


async def quote(
    text: str, candidates: Candidates, citations: Sequence[Citation]
) -> tuple[Quote, ...]:
    """Find an answer's own words in the document, in what is cited where they are there."""
    cited = [(citation.start, citation.end) for citation in citations]
    call = Call(lambda: tuple(find_quotes(text, candidates.document, cited)))
    found = await call
    return tuple(
        own.model_copy(update={"page": page_of(own.start, candidates.pages)}) for own in found
    )
