"""Start the program of any request: as a coroutine for the engine, or here and now."""

from collections.abc import Iterator
from functools import partial

from refine_server.ttt.batching import Program, stream
from refine_server.ttt.decoding.grammar import GrammarCompiler
from refine_server.ttt.decoding.prompts.prompt import PromptTemplate
from refine_server.ttt.interface.events import Emit, Event, ShouldStop, never_stop
from refine_server.ttt.interface.requests import Limits, Work
from refine_server.ttt.models.base import CausalLM
from refine_server.ttt.programs.adapt_queries import adapt_on_evidence
from refine_server.ttt.programs.answer import adapt, answer, ask
from refine_server.ttt.programs.answer_on_evidence import answer_on_evidence
from refine_server.ttt.programs.complete import complete
from refine_server.ttt.programs.encode import (
    EncodedAnswer,
    EncodedAsk,
    EncodedWork,
    encode,
)
from refine_server.ttt.programs.encode_adaptation import EncodedAdapt, EncodedQueryAdapt
from refine_server.ttt.programs.encode_completion import EncodedCompletion
from refine_server.ttt.query_side.document_cache import DocumentCache


def start(
    model: CausalLM,
    work: EncodedWork,
    emit: Emit,
    should_stop: ShouldStop = never_stop,
    documents: DocumentCache | None = None,
) -> Program[None]:
    """Return the program that does a piece of work; the last event that it emits is a ``Last``.

    Documents that the base model reads are looked up and kept in ``documents``, if it is there.
    """
    match work:
        case EncodedAnswer() if work.keeps_state:
            return answer_on_evidence(model, work, emit, should_stop, documents)
        case EncodedAnswer():
            return answer(model, work, emit, should_stop)
        case EncodedAdapt():
            return adapt(model, work, emit, should_stop, documents)
        case EncodedQueryAdapt():
            return adapt_on_evidence(model, work, emit, should_stop, documents)
        case EncodedAsk():
            return ask(model, work, emit, documents)
        case EncodedCompletion():
            return complete(model, work, emit, documents)


def perform(
    model: CausalLM,
    work: Work,
    *,
    template: PromptTemplate | None = None,
    limits: Limits | None = None,
    should_stop: ShouldStop = never_stop,
    documents: DocumentCache | None = None,
) -> Iterator[Event]:
    """Do a piece of work in this thread and yield its events as they happen.

    Documents that the base model reads are looked up and kept in ``documents``, if it is there.

    Raises:
        RequestError: the request cannot be served as written; nothing was computed.
        IsolationError: the request uses another owner's document.
    """
    template = template or PromptTemplate(model.tokenizer)
    encoded = encode(
        work,
        template,
        (limits or Limits()).within(model.context_length),
        model.embedding.num_embeddings,
        has_attention=bool(model.attention_layers),
        grammars=GrammarCompiler(model),
    )
    yield from stream(partial(start, model, encoded, should_stop=should_stop, documents=documents))
