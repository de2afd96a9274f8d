"""What is asked about an adapted document continues the document's own tokens."""

import pytest

from refine_server.ttt.decoding.prompts.prompt import PLAIN_PROMPT, PromptTemplate
from refine_server.ttt.document import AdaptedDocument, dump, restore
from refine_server.ttt.interface.config import AdaptConfig
from refine_server.ttt.interface.errors import RequestError
from refine_server.ttt.interface.events import DocumentAdapted
from refine_server.ttt.interface.requests import (
    AdaptRequest,
    AskRequest,
    CompletionRequest,
    Conversation,
    Limits,
    Message,
    Prompt,
)
from refine_server.ttt.models import CausalLM, load
from refine_server.ttt.programs.encode import EncodedAsk, encode
from refine_server.ttt.programs.encode_completion import EncodedCompletion
from refine_server.ttt.programs.start import perform

DOCUMENT = "The harbour code is amber.\n"
QUERY = "What is the harbour code?"


@pytest.fixture(scope="module")
def tiny() -> CausalLM:
    return load("tiny")


@pytest.fixture(scope="module")
def adapted(tiny: CausalLM) -> AdaptedDocument:
    """A document whose last line break belongs to a token of the line breaks behind it."""
    *_, last = perform(tiny, AdaptRequest(DOCUMENT, AdaptConfig(objective="none")))
    assert isinstance(last, DocumentAdapted)
    document = last.document
    assert document.tail == "\n"
    return restore(*dump(document), tiny.device)


def ids(model: CausalLM, text: str) -> list[int]:
    found: list[int] = model.tokenizer(text)["input_ids"]
    return found


@pytest.mark.parametrize("kind", ["query_spans", "prompt"])
def test_adapting_on_a_query_needs_one(tiny: CausalLM, kind: str) -> None:
    template, config = PromptTemplate(tiny.tokenizer), AdaptConfig().updated(on={"kind": kind})
    with pytest.raises(RequestError, match=f"{kind} requires a query"):
        encode(AdaptRequest(DOCUMENT, config), template, Limits(), 2560)
    encode(AdaptRequest(DOCUMENT, config, queries=(QUERY,)), template, Limits(), 2560)


def test_a_query_begins_with_the_tail(tiny: CausalLM, adapted: AdaptedDocument) -> None:
    template = PromptTemplate(tiny.tokenizer)
    asked = encode(AskRequest(adapted, QUERY), template, Limits(), 2560)
    assert isinstance(asked, EncodedAsk)
    whole = ids(tiny, PLAIN_PROMPT.format(document=DOCUMENT, query=QUERY))
    assert ids(tiny, DOCUMENT.rstrip()) + asked.query == whole


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        ("\n\nQuestion:", "\n\n\nQuestion:"),
        ("", "\n"),
        (Conversation((Message("user", "Who?"),)), "\n\n\nQuestion: Who?\nAnswer:"),
    ],
)
def test_a_prompt_begins_with_the_tail(
    tiny: CausalLM, adapted: AdaptedDocument, prompt: Prompt, text: str
) -> None:
    template = PromptTemplate(tiny.tokenizer)
    work = CompletionRequest((prompt,), adapted=adapted)
    encoded = encode(work, template, Limits(), 2560)
    assert isinstance(encoded, EncodedCompletion)
    assert list(encoded.prompts[0]) == ids(tiny, text)


def test_token_ids_follow_the_tail(tiny: CausalLM, adapted: AdaptedDocument) -> None:
    work = CompletionRequest(((5, 6),), adapted=adapted)
    encoded = encode(work, PromptTemplate(tiny.tokenizer), Limits(), 2560)
    assert isinstance(encoded, EncodedCompletion)
    assert list(encoded.prompts[0]) == [*ids(tiny, "\n"), 5, 6]
