"""What is read of a document that is too long, and what is told of it."""

from pathlib import Path
from typing import Any

import pytest
import torch

from refine_server.ttt.decoding.prompts.prompt import PromptTemplate
from refine_server.ttt.interface.config import AdaptConfig, SamplingConfig
from refine_server.ttt.interface.errors import RequestError
from refine_server.ttt.interface.events import AnswerCompleted, DocumentAdapted
from refine_server.ttt.interface.evidence import DocumentSpan, EvidenceByWords, EvidenceSpans
from refine_server.ttt.interface.reports import Overflow
from refine_server.ttt.interface.requests import (
    AdaptRequest,
    AnswerRequest,
    AskRequest,
    CompletionRequest,
    Limits,
    Work,
)
from refine_server.ttt.models import CausalLM, load
from refine_server.ttt.programs.encode import EncodedAdapt, EncodedAnswer, encode
from refine_server.ttt.programs.start import perform
from support.small_models import write_llama

POSITIONS = 512
NOTHING = AdaptConfig(objective="none")
SHORT = SamplingConfig(max_tokens=20)
FACTS = [
    f"The keeper of tower {n} wrote about the weather, the boats and bread.\n" for n in range(99)
]
KEY = "The harbour master keeps the amber key in a blue book.\n"
DOCUMENT = "".join([*FACTS[:50], KEY, *FACTS[50:]])
QUERY = "Where does the harbour master keep the amber key?"


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> CausalLM:
    """A model that was trained for 512 positions."""
    directory = write_llama(tmp_path_factory.mktemp("short"), max_position_embeddings=POSITIONS)
    return load(directory)


def encoded(model: CausalLM, work: Work, limits: Limits | None = None) -> Any:
    within = (limits or Limits()).within(model.context_length)
    template = PromptTemplate(model.tokenizer)
    return encode(work, template, within, model.embedding.num_embeddings)


def answer(model: CausalLM, document: str = DOCUMENT, **options: Any) -> EncodedAnswer:
    options = {"adapt": NOTHING, "sampling": SHORT, "context": "document", **options}
    work = encoded(model, AnswerRequest(document, options.pop("query", QUERY), **options))
    assert isinstance(work, EncodedAnswer)
    return work


def read(model: CausalLM, work: EncodedAnswer | EncodedAdapt) -> str:
    return str(model.tokenizer.decode(work.prompt.header + work.prompt.document))


def total(work: EncodedAnswer) -> int:
    return len(work.prompt.header) + len(work.prompt.document) + len(work.query)


def check_report(overflow: Overflow | None, work: EncodedAnswer | EncodedAdapt) -> Overflow:
    """Check that what is left out, and nothing else, is missing from what is read."""
    assert overflow is not None
    assert overflow.read_tokens == work.tokens < overflow.sent_tokens
    at = 0
    for gap in overflow.left_out:
        assert at <= gap.start < gap.end <= len(DOCUMENT)
        at = gap.end
    return overflow


def kept_text(overflow: Overflow) -> str:
    at, kept = 0, ""
    for gap in overflow.left_out:
        kept, at = kept + DOCUMENT[at : gap.start], gap.end
    return kept + DOCUMENT[at:]


@pytest.mark.parametrize("context", ["document", "document+passages"])
def test_by_default_the_passages_are_read_that_the_query_asks_about(
    short: CausalLM, context: str
) -> None:
    work = answer(short, context=context)
    overflow = check_report(work.overflow, work)
    assert overflow.handled == "passages"
    assert KEY.strip() in read(short, work)
    assert total(work) + SHORT.max_tokens <= POSITIONS
    assert total(work) > POSITIONS // 2
    assert "".join(kept_text(overflow).split()) == "".join(
        read(short, work).replace(work.prompt.tail, "").split()
    )


def test_the_middle_is_cut_out_and_both_ends_stay(short: CausalLM) -> None:
    work = answer(short, on_overflow="truncate_middle")
    overflow = check_report(work.overflow, work)
    assert overflow.handled == "truncate_middle"
    [gap] = overflow.left_out
    assert read(short, work).startswith(DOCUMENT[:200])
    assert read(short, work).rstrip().endswith(DOCUMENT.rstrip()[-100:])
    assert DOCUMENT.index(KEY) in range(gap.start, gap.end)
    assert abs(gap.start - (len(DOCUMENT) - gap.end)) < len(DOCUMENT) // 8
    assert total(work) + SHORT.max_tokens <= POSITIONS


def test_a_document_that_is_too_long_is_refused_where_that_is_asked_for(short: CausalLM) -> None:
    with pytest.raises(RequestError, match="are accepted") as refused:
        answer(short, on_overflow="error")
    assert (refused.value.param, refused.value.code) == ("document", "document_too_long")


@pytest.mark.parametrize("on_overflow", ["error", "truncate_middle", "passages"])
def test_a_document_that_fits_is_read_as_it_is(short: CausalLM, on_overflow: str) -> None:
    work = answer(short, DOCUMENT[:400], on_overflow=on_overflow)
    assert work.overflow is None
    assert read(short, work) + work.prompt.tail == DOCUMENT[:400]


@pytest.mark.parametrize("on_overflow", ["truncate_middle", "passages"])
def test_the_limit_of_the_server_is_treated_like_that_of_the_model(on_overflow: str) -> None:
    tiny = load("tiny")
    work = encoded(
        tiny,
        AnswerRequest(DOCUMENT, QUERY, NOTHING, on_overflow=on_overflow),  # type: ignore[arg-type]
        Limits(document_tokens=500),
    )
    overflow = check_report(work.overflow, work)
    assert 400 < overflow.read_tokens <= 500


def test_a_document_that_takes_too_long_to_choose_from_is_refused() -> None:
    with pytest.raises(RequestError, match="at most 400 are accepted") as refused:
        encoded(load("tiny"), AnswerRequest(DOCUMENT, QUERY), Limits(document_tokens=100))
    assert refused.value.code == "document_too_long"


def test_the_query_and_the_answer_take_their_part_of_the_positions(short: CausalLM) -> None:
    document = DOCUMENT[:1600]  # fits beside a short answer
    assert answer(short, document).overflow is None
    longer = answer(short, document, sampling=SamplingConfig(max_tokens=200))
    assert longer.overflow is not None
    assert total(longer) + 200 <= POSITIONS
    # An answer has half of what the query leaves at most, whatever is asked for.
    longest = answer(short, document, sampling=SamplingConfig(max_tokens=4000))
    assert total(longest) > POSITIONS // 3


def test_passages_of_any_document_are_read_in_its_place(short: CausalLM) -> None:
    evidence = EvidenceByWords(count=64, tokens=64)
    work = answer(short, context="passages", evidence=evidence)
    assert work.overflow is None
    assert total(work) + SHORT.max_tokens <= POSITIONS
    assert work.context.candidates is not None
    assert KEY.strip() in read(short, work)


def test_evidence_is_cited_by_its_place_in_the_whole_document(short: CausalLM) -> None:
    evidence = EvidenceByWords(count=1, tokens=32)
    adapt = AdaptConfig.model_validate({"on": {"kind": "evidence"}})
    work = answer(short, context="document+passages", evidence=evidence, adapt=adapt)
    assert work.context.candidates is not None
    [citation] = work.context.candidates.citations()
    assert citation.text == DOCUMENT[citation.start : citation.end]
    assert "amber key" in citation.text
    [(start, end)] = work.context.aim
    aimed = short.tokenizer.decode(work.prompt.document[start:end])
    assert aimed.strip() == citation.text.strip()


def test_what_the_client_names_is_read_or_refused(short: CausalLM) -> None:
    place = DOCUMENT.index(FACTS[30])
    spans = (DocumentSpan(start=place, end=place + len(FACTS[30])),)
    work = answer(short, evidence=EvidenceSpans(spans=spans), context="document+passages")
    assert "tower 30" in read(short, work)
    with pytest.raises(RequestError, match="not read") as refused:
        answer(short, evidence=EvidenceSpans(spans=spans), on_overflow="truncate_middle")
    assert refused.value.param == "evidence.spans.0"


def test_a_document_in_a_script_without_spaces_is_shortened_by_words_too(short: CausalLM) -> None:
    chinese = (
        "灯塔的看守每天写天气。" * 60 + "港口主管把琥珀钥匙放在蓝色的书里。" + "渔船早上出海。" * 60
    )
    work = answer(short, chinese, query="琥珀钥匙在哪里？")
    assert work.overflow is not None
    assert "琥珀钥匙" in read(short, work)


def test_an_answer_ends_with_the_positions(short: CausalLM) -> None:
    sampling = SamplingConfig(max_tokens=4000, ignore_eos=True)
    work = AnswerRequest(DOCUMENT, QUERY, NOTHING, sampling, context="document")
    *_, last = perform(short, work)
    assert isinstance(last, AnswerCompleted)
    assert last.overflow is not None
    assert last.finish_reason == "length"
    header = len(encoded(short, work).prompt.header)
    used = last.usage
    assert header + used.document_tokens + used.query_tokens + used.completion_tokens == POSITIONS


def test_a_kept_document_leaves_room_for_questions(short: CausalLM) -> None:
    *_, kept = perform(short, AdaptRequest(DOCUMENT, NOTHING))
    assert isinstance(kept, DocumentAdapted)
    overflow = kept.document.overflow
    assert overflow is not None
    assert overflow.handled == "truncate_middle"
    assert overflow.read_tokens <= POSITIONS * 3 // 4
    *_, last = perform(short, AskRequest(kept.document, QUERY, SHORT))
    assert isinstance(last, AnswerCompleted)
    assert last.overflow == overflow
    with pytest.raises(RequestError, match="follow this document") as refused:
        next(perform(short, AskRequest(kept.document, "What? " * 90, SHORT)))
    assert (refused.value.param, refused.value.code) == ("query", "query_too_long")
    with pytest.raises(RequestError, match="follow this document") as refused:
        next(perform(short, CompletionRequest(((5,) * 200,), SHORT, adapted=kept.document)))
    assert (refused.value.param, refused.value.code) == ("prompt", "context_length_exceeded")


def test_a_kept_document_that_is_too_long_can_be_refused(short: CausalLM) -> None:
    with pytest.raises(RequestError) as refused:
        encoded(short, AdaptRequest(DOCUMENT, NOTHING, on_overflow="error"))
    assert refused.value.code == "document_too_long"


def test_a_prompt_has_as_many_tokens_as_the_model_has_positions(short: CausalLM) -> None:
    with pytest.raises(RequestError, match=f"at most {POSITIONS - 1} are accepted") as refused:
        encoded(short, CompletionRequest(((5,) * POSITIONS,)))
    assert refused.value.code == "context_length_exceeded"
    longest = CompletionRequest(((5,) * (POSITIONS - 1),), SamplingConfig(max_tokens=9))
    *_, last = perform(short, longest)
    assert last.completion_tokens == 1  # type: ignore[union-attr]


def test_a_window_reads_documents_of_any_length(tmp_path: Path) -> None:
    model = load(write_llama(tmp_path, max_position_embeddings=POSITIONS), window=64)
    work = answer(model)
    assert work.overflow is None
    assert model(torch.tensor([work.prompt.document[:600]])).hidden.isfinite().all()
