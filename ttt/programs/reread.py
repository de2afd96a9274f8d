"""States of kept adaptations to whole documents: from the cache, or read again."""

from torch import Tensor

from refine_server.ttt.batching import Call
from refine_server.ttt.document import AdaptedDocument
from refine_server.ttt.document_adaptation import DocumentAdaptation, ReadEnd
from refine_server.ttt.models.base import CausalLM
from refine_server.ttt.models.reader import Reader
from refine_server.ttt.query_side.document_cache import DocumentCache


def grows_with_document(model: CausalLM) -> bool:
    """Return whether a document's state takes more memory the longer the document is."""
    return any(kind.views_prefixes for kind in model.state_classes)


def without_state(
    adapted: AdaptedDocument, input_ids: Tensor, document_key: str
) -> DocumentAdaptation:
    """Return what is kept of an adapted document whose state is read again.

    Args:
        adapted: the document.
        input_ids: [1, T], what was read.
        document_key: tells its state from the owner's others.
    """
    return DocumentAdaptation(
        owner=adapted.owner,
        fast_weights=adapted.fast_weights,
        input_ids=input_ids,
        report=adapted.report,
        document_tokens=adapted.document_tokens,
        document_key=document_key,
        tail=adapted.tail,
        overflow=adapted.overflow,
    )


async def read_end(
    model: CausalLM,
    kept: AdaptedDocument | DocumentAdaptation,
    documents: DocumentCache | None,
) -> ReadEnd:
    """Return where the reading of a kept document ended, under its own weights.

    Args:
        model: the base model.
        kept: has the state itself, or the tokens, which are read unless ``documents`` has it.
        documents: states that are kept; None keeps none.
    """
    if isinstance(kept, AdaptedDocument):
        return ReadEnd(hidden=kept.hidden, state=kept.state)
    if documents is not None:
        end = documents.read_end(kept.owner, kept.document_key)
        if end is not None:
            return end
    reader = Reader(model, kept.input_ids, fast=kept.fast_weights)
    while not reader.is_done:
        hidden = await Call(reader.read_piece, model.threads)
    end = ReadEnd(hidden=hidden[:, -1].clone(), state=reader.state)
    if documents is None:
        return end
    return documents.keep_read_end(kept.owner, kept.document_key, end)
