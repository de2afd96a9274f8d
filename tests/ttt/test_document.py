"""Adapted documents are bitwise the same after being written and read, in every family."""

import json
from dataclasses import replace

import pytest
import torch

from refine_server.ttt.batching import run
from refine_server.ttt.document import AdaptedDocument, dump, restore
from refine_server.ttt.interface.config import AdaptConfig, OptimizerConfig, SamplingConfig
from refine_server.ttt.interface.errors import DamagedError, IsolationError, RequestError
from refine_server.ttt.interface.events import AnswerCompleted, BaseAnswered, DocumentAdapted
from refine_server.ttt.interface.requests import AdaptRequest, AnswerRequest, AskRequest
from refine_server.ttt.models import load
from refine_server.ttt.programs.start import perform
from refine_server.ttt.refine.inputs.rows import Rows
from refine_server.ttt.refine.loop import adapt

CPU = torch.device("cpu")
TEXT = "The harbour code is amber. It rained until late. The castle animal is falcon. " * 3


def adapted(model, ids, owner: str = "a") -> AdaptedDocument:
    fast = model.new_fast_weights("fast_weights", 4, 0)
    fast.owner = owner
    document = Rows(model, ids, fast, positions=2)
    return run(adapt(document, fast, AdaptConfig(optimizer=OptimizerConfig(steps=2)), owner=owner))


@pytest.fixture(scope="module")
def tiny():
    return load("tiny")


def test_a_restored_document_is_the_same_in_every_bit(model, tokens) -> None:
    document = adapted(model, tokens(1, 90))
    data, form = dump(document)
    again = restore(data, json.loads(json.dumps(form)), CPU)
    assert again.report == document.report
    assert (again.owner, again.fast_weights.owner) == ("a", "a")
    assert again.nbytes == document.nbytes
    more = tokens(1, 7, seed=2)
    one = model(more, document.state, document.fast_weights)
    two = model(more, again.state, again.fast_weights)
    assert torch.equal(one.hidden, two.hidden)


def test_the_reported_size_of_a_state_is_its_memory(model, tokens) -> None:
    document = adapted(model, tokens(1, 200))
    storages = {}

    def visit(value) -> None:
        if isinstance(value, torch.Tensor):
            storage = value.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
        elif isinstance(value, tuple):
            for item in value:
                visit(item)
        elif hasattr(value, "__dataclass_fields__"):
            for name in value.__dataclass_fields__:
                visit(getattr(value, name))

    visit(document.state)
    small = 64 * len(document.state.layers) + 64  # positions and lengths
    assert sum(storages.values()) <= document.state.nbytes + small


def test_damaged_bytes_are_refused(model, tokens) -> None:
    data, form = dump(adapted(model, tokens(1, 60)))
    bad = [
        (data[:100], form),
        (b"", form),
        (data, {**form, "format": 99}),
        (data, {}),
        (data, {**form, "state": {"kind": "os.system", "fields": {}}}),
        (data, {**form, "state": {"tensor": "none"}}),
        (data, {**form, "report": {"steps": [{}]}}),
    ]
    for broken, described in bad:
        with pytest.raises(DamagedError):
            restore(broken, described, CPU)


SHORT = SamplingConfig(max_tokens=4)


def question(document: AdaptedDocument, owner: str) -> AskRequest:
    return AskRequest(document, "What is the harbour code?", SHORT, owner)


def make(tiny, owner: str) -> AdaptedDocument:
    *_, last = perform(
        tiny, AdaptRequest(TEXT, AdaptConfig(optimizer=OptimizerConfig(steps=2)), owner)
    )
    assert isinstance(last, DocumentAdapted)
    return last.document


def test_many_questions_leave_the_document_as_it_is(tiny) -> None:
    document = make(tiny, "a")
    answers = set()
    for _ in range(3):
        *_, last = perform(tiny, question(document, "a"))
        assert isinstance(last, AnswerCompleted)
        answers.add(last.answer.strip())
    assert answers == {"amber"}
    assert last.usage.document_tokens == document.document_tokens > 50


def test_the_unadapted_model_answers_beside_a_kept_document(tiny) -> None:
    document = make(tiny, "a")
    data, form = dump(document)
    stored = restore(data, form, CPU)
    base = AnswerRequest(
        TEXT, "What is the harbour code?", AdaptConfig(objective="none"), SHORT, context="document"
    )
    *_, unadapted = perform(tiny, base)
    assert isinstance(unadapted, AnswerCompleted)
    for kept in (document, stored):
        *events, last = perform(tiny, replace(question(kept, "a"), compare_base=True))
        assert isinstance(last, AnswerCompleted)
        assert last.base_answer == unadapted.answer
        assert BaseAnswered(unadapted.answer) in events
        assert last.timings.decode_seconds > 0


def test_a_document_of_an_earlier_version_has_no_unadapted_answer(tiny) -> None:
    document = replace(make(tiny, "a"), input_ids=None)
    with pytest.raises(RequestError, match="Adapt again") as refused:
        next(perform(tiny, replace(question(document, "a"), compare_base=True)))
    assert refused.value.param == "compare_base"


def test_a_document_answers_its_owner_alone(tiny) -> None:
    document = make(tiny, "a")
    with pytest.raises(IsolationError):
        next(perform(tiny, question(document, "b")))
    mixed = replace(document, owner="b")  # but the fast weights are a's
    with pytest.raises(IsolationError):
        next(perform(tiny, question(mixed, "b")))
