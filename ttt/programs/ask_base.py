"""What the unadapted model answers to a question about a document that is kept adapted."""

from refine_server.ttt.decoding.decoder import decode
from refine_server.ttt.decoding.prompts.prompt import DocumentPrompt
from refine_server.ttt.fast_weights import BASE
from refine_server.ttt.interface.events import BaseAnswered, Emit
from refine_server.ttt.models.base import CausalLM
from refine_server.ttt.programs.encode import EncodedAsk
from refine_server.ttt.programs.frozen import read_frozen
from refine_server.ttt.query_side.document_cache import DocumentCache


async def answer_unadapted(
    model: CausalLM, work: EncodedAsk, emit: Emit, documents: DocumentCache | None
) -> str:
    """Read the document under the base weights, as its own state is not theirs, and answer.

    Args:
        model: the base model.
        work: a question to an adaptation that keeps its document's tokens.
        emit: receives the progress of the reading, and the answer.
        documents: documents that were read before; None keeps none.
    """
    request, adapted = work.request, work.request.adapted
    assert adapted.input_ids is not None  # it is refused without
    ids: list[int] = adapted.input_ids[0].tolist()
    header = len(ids) - adapted.document_tokens
    prompt = DocumentPrompt(header=ids[:header], document=ids[header:])
    frozen = await read_frozen(model, prompt, request.owner, documents, emit)
    decoded = await decode(
        model,
        work.query,
        frozen.document.state,
        BASE,
        request.sampling,
        document=prompt.document,
        grammar=work.grammar,
    )
    emit(BaseAnswered(decoded.text))
    return decoded.text
