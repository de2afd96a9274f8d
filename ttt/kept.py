"""What adaptations leave for later queries, of either kind, and how it is written and read."""

from typing import Any

import torch
from safetensors import SafetensorError

from refine_server.ttt import document
from refine_server.ttt.document import FORMAT, AdaptedDocument
from refine_server.ttt.document_adaptation import DocumentAdaptation
from refine_server.ttt.interface.config import SamplingConfig
from refine_server.ttt.interface.errors import DamagedError
from refine_server.ttt.interface.evidence import ContextStrategy, Evidence
from refine_server.ttt.interface.requests import DEFAULT_ADAPTATION, AnswerRequest, AskRequest
from refine_server.ttt.query_side.query_adaptation import QueryAdaptation

Kept = AdaptedDocument | DocumentAdaptation | QueryAdaptation
"""A document's state under its own weights, weights under which the document is read again, or
deltas of queries over the base model's state."""


def dump(kept: Kept) -> tuple[bytes, dict[str, Any]]:
    """Write it: its tensors as safetensors bytes, the rest as a description for JSON."""
    if isinstance(kept, AdaptedDocument):
        return document.dump(kept)
    if isinstance(kept, DocumentAdaptation):
        return kept.dump()
    data, description = kept.dump()
    return data, {"format": FORMAT, **description}


def restore(data: bytes, description: dict[str, Any], device: torch.device) -> Kept:
    """Read what ``dump`` wrote.

    Raises:
        DamagedError: the bytes or the description are damaged, or of another format.
    """
    if "state" in description:
        return document.restore(data, description, device)
    try:
        if description["kind"] == DocumentAdaptation.kind:
            return DocumentAdaptation.restore(data, description, device)
        if description["format"] != FORMAT or description["kind"] != QueryAdaptation.kind:
            raise DamagedError("its format is unknown")
        return QueryAdaptation.restore(data, description, device)
    except (KeyError, TypeError, ValueError, SafetensorError) as error:
        raise DamagedError(f"it cannot be read: {error!r}") from error


def question(
    kept: Kept,
    query: str,
    sampling: SamplingConfig,
    *,
    context: ContextStrategy,
    evidence: Evidence | None = None,
    compare_base: bool = False,
) -> AskRequest | AnswerRequest:
    """Return the request that asks a query of what is kept, for its owner.

    Args:
        kept: is asked.
        query: the question.
        sampling: how the answer is decoded.
        context: what is read; a document with a state of its own is read as it is.
        evidence: how evidence is found, where the document's text is kept.
        compare_base: whether the unadapted model answers as well.
    """
    if not isinstance(kept, QueryAdaptation):
        return AskRequest(kept, query, sampling, kept.owner, compare_base)
    return AnswerRequest(
        document=kept.document,
        query=query,
        adapt=DEFAULT_ADAPTATION,
        sampling=sampling,
        compare_base=compare_base,
        owner=kept.owner,
        context=context,
        evidence=evidence,
        kept=kept,
        pages=kept.pages,
    )
