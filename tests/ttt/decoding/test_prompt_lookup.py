"""Drafts by prompt lookup: where they come from, and that they change nothing but speed."""

from collections.abc import Callable, Sequence
from dataclasses import fields
from itertools import pairwise
from typing import Any, Self

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from refine_server.ttt.batching import Program, resume, run_batch
from refine_server.ttt.decoding.decode import DecodeStep, Prediction
from refine_server.ttt.decoding.decoder import DecodedToken, Decoder, decode
from refine_server.ttt.decoding.prompt_lookup import LONGEST, Lookup
from refine_server.ttt.decoding.prompts.prompt import PromptTemplate
from refine_server.ttt.fast_weights import BASE, FastWeights
from refine_server.ttt.interface.config import AdaptConfig, SamplingConfig
from refine_server.ttt.interface.events import AnswerCompleted
from refine_server.ttt.interface.requests import AnswerRequest, CompletionRequest, Limits, Work
from refine_server.ttt.models import CausalLM
from refine_server.ttt.programs.encode import encode
from refine_server.ttt.programs.start import perform, start

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5}
DTYPES = pytest.mark.parametrize("dtype", TOLERANCE, ids=["fp64", "fp32"])
TARGETS = pytest.mark.parametrize("targets", [None, "fast_weights", "low_rank", "all"])
TOKENS = 40
GREEDY = SamplingConfig(max_tokens=TOKENS)


# -- where drafts come from -------------------------------------------------------------------


def searched(tokens: Sequence[int], limit: int) -> tuple[int, ...]:
    """Compute ``Lookup.draft`` by its definition: the latest of the longest matches."""
    for n in range(min(LONGEST, len(tokens) - 1), 0, -1):
        for place in range(len(tokens) - 1, n - 1, -1):
            if tokens[place - n : place] == tokens[-n:]:
                return tuple(tokens[place : place + min(n, limit)])
    return ()


@given(st.lists(st.integers(0, 3), min_size=1, max_size=40), st.integers(0, 8))
def test_a_draft_follows_the_latest_of_the_longest_matches(tokens: list[int], limit: int) -> None:
    begun = Lookup(tokens[: len(tokens) // 2])
    for token in tokens[len(tokens) // 2 :]:
        begun.append(token)
    assert begun.draft(limit) == Lookup(tokens).draft(limit) == searched(tokens, limit)


def test_new_tokens_have_no_draft() -> None:
    assert Lookup([1, 2, 3]).draft(8) == ()
    assert Lookup([1, 2, 3, 1]).draft(8) == (2,)
    assert Lookup([1, 2, 3, 1, 2]).draft(8) == (3, 1)
    assert Lookup([1, 2, 3, 1, 2]).draft(0) == ()


# -- decoding with them -----------------------------------------------------------------------


class Decode:
    """A model with a prompt read, what greedy decoding writes after it, and decoding with drafts.

    ``plain`` is the definition: everything is read again for every token.
    """

    def __init__(self, model: CausalLM, prompt: list[int], fast: FastWeights = BASE) -> None:
        self.model, self.prompt, self.fast = model, prompt, fast
        sequence = list(prompt)
        with torch.no_grad():
            while len(sequence) < len(prompt) + TOKENS:
                output = model(torch.tensor([sequence]), fast_weights=fast)
                logits = model.head_logits(output.hidden[0], fast)  # [T, V]
                sequence.append(int(logits[-1].argmax()))
            output = model(torch.tensor([prompt]), fast_weights=fast)
            self.after = Prediction(model.head_logits(output.hidden[:, -1], fast), output.state)
        self.plain = sequence[len(prompt) :]
        self.log_probs = logits[len(prompt) - 1 :].log_softmax(-1)  # [TOKENS, V]

    @property
    def nearly(self) -> list[int]:
        """The expected tokens with every seventh one wrong, and then the prompt."""
        written = [(t + 1) % 96 if n % 7 == 6 else t for n, t in enumerate(self.plain)]
        return [*written, *self.prompt]

    def write(self, sampling: SamplingConfig = GREEDY, **options: Any) -> "Written":
        options = {"known": self.nearly, **options}
        written = Written()
        decoder = Decoder(self.model, self.after, self.fast, sampling, **options)

        async def write() -> None:
            while (token := await decoder.next_token()) is not None:
                written.tokens.append(token)

        written.run(write())
        written.text, written.ended = decoder.text, (decoder.finish_reason, decoder.tokens)
        return written


class Written:
    """A finished decoding: its tokens, its steps, and the result of each step."""

    def __init__(self) -> None:
        self.tokens: list[DecodedToken] = []
        self.steps: list[DecodeStep] = []
        self.results: list[Prediction] = []
        self.text = ""
        self.ended: tuple[str | None, int] = (None, 0)

    def run(self, program: Program[Any]) -> Self:
        outcome = None
        while True:
            try:
                operation = resume(program, outcome)
            except StopIteration:
                return self
            [outcome] = run_batch([operation])
            if isinstance(operation, DecodeStep):
                self.steps.append(operation)
                self.results.append(outcome)

    @property
    def ids(self) -> list[int]:
        return [token.id for token in self.tokens]

    @property
    def accepted(self) -> int:
        return sum(result.accepted for result in self.results)


MakeDecode = Callable[..., Decode]


@pytest.fixture
def make(families, spell, tokens, perturbed) -> MakeDecode:
    def decode(dtype=torch.float64, targets: str | None = None, name: str = "overlay") -> Decode:
        model = spell(families[name](dtype))
        fast = perturbed(model, targets) if targets else BASE
        return Decode(model, tokens(1, 21)[0].tolist(), fast)

    return decode


@DTYPES
@TARGETS
def test_drafts_change_no_token_and_no_log_probability(make: MakeDecode, dtype, targets) -> None:
    case = make(dtype, targets)
    written = case.write(top=3)
    assert written.ids == case.plain
    assert len(written.steps) + written.accepted == TOKENS - 1
    drafted = sum(result.drafted for result in written.results)
    assert drafted == sum(len(step.draft) for step in written.steps)
    assert TOKENS // 4 <= written.accepted < drafted
    close = {"atol": TOLERANCE[dtype], "rtol": TOLERANCE[dtype]}
    for token, row in zip(written.tokens, case.log_probs, strict=True):
        torch.testing.assert_close(token.log_prob, row[token.id].item(), **close)
        best = torch.tensor([p for _, p in token.top])
        torch.testing.assert_close(best, row.topk(3).values.to(best), **close)


@TARGETS
def test_rejected_draft_tokens_leave_the_state(make: MakeDecode, targets) -> None:
    """After any number of accepted tokens, the state equals reading only them, one by one."""
    case = make(targets=targets)
    token, *following = case.plain
    for right in range(5):
        draft = (*following[:right], *((t + 1) % 96 for t in following[right:4]))
        step = DecodeStep(case.model, token, case.after.state, case.fast, draft)
        [after] = run_batch([step])
        state, rows = case.after.state, []
        for read in (token, *following[:right]):
            [plain] = run_batch([DecodeStep(case.model, read, state, case.fast)])
            state = plain.state
            rows.append(plain.logits)
        close = {"atol": 1e-9, "rtol": 0}
        torch.testing.assert_close(after.logits, torch.cat(rows), **close)
        torch.testing.assert_close(after.state.position, state.position)
        for layer, expected in zip(after.state.layers, state.layers, strict=True):
            for field in fields(layer):
                torch.testing.assert_close(
                    getattr(layer, field.name), getattr(expected, field.name), **close
                )


def test_a_state_gives_up_what_was_read_since_and_no_more(make: MakeDecode) -> None:
    state = make().after.state
    assert state.truncate(0) is state
    with pytest.raises(ValueError, match="fewer than 1"):
        state.truncate(1)


def test_drafts_are_used_only_when_a_request_decodes_alone(make: MakeDecode, perturbed) -> None:
    case = make()
    other = FastWeights(perturbed(case.model).tensors)
    token, *following = case.plain
    drafted = DecodeStep(case.model, token, case.after.state, BASE, tuple(following[:3]))
    other_step = DecodeStep(case.model, 5, case.after.state, other, (1, 2))
    together = run_batch([drafted, other_step])
    for step, after in zip((drafted, other_step), together, strict=True):
        [alone] = run_batch([DecodeStep(case.model, step.token, step.state, step.fast)])
        torch.testing.assert_close(after.logits, alone.logits, atol=1e-9, rtol=0)
        assert after.state.position.tolist() == alone.state.position.tolist() == [22]
        assert (after.drafted, after.accepted) == (0, 0)


@pytest.mark.parametrize("most", range(1, 13))
def test_no_token_beyond_the_last_is_read(make: MakeDecode, most: int) -> None:
    case = make()
    written = case.write(SamplingConfig(max_tokens=most))
    assert written.ids == case.plain[:most]
    assert written.ended == ("length", most)
    assert sum(1 + len(step.draft) for step in written.steps[-1:]) <= most
    assert len(written.steps) + written.accepted == most - 1


@pytest.mark.parametrize("last", range(2, 9))
def test_a_token_that_ends_answers_ends_them_within_a_draft(make: MakeDecode, last: int) -> None:
    case = make()
    first = case.plain.index(case.plain[last])
    case.model.tokenizer.eos_token = text(case, case.plain[last : last + 1])
    written = case.write()
    assert written.ids == case.plain[: first + 1]
    assert [token.is_end for token in written.tokens] == [False] * first + [True]
    assert written.text == text(case, case.plain[:first])
    assert written.ended == ("stop", first + 1)


@pytest.mark.parametrize("last", range(2, 9))
def test_a_stop_string_ends_an_answer_within_a_draft(make: MakeDecode, last: int) -> None:
    case = make()
    stop = text(case, case.plain[last - 1 : last + 1])
    end = next(n for n, pair in enumerate(pairwise(case.plain)) if text(case, pair) == stop)
    written = case.write(SamplingConfig(max_tokens=TOKENS, stop=(stop,)))
    assert written.ids == case.plain[: end + 2]
    assert written.text == text(case, case.plain[:end])
    assert written.ended == ("stop", end + 2)
    assert "".join(token.text for token in written.tokens) == written.text


def text(case: Decode, ids: Sequence[int]) -> str:
    return "".join(case.model.tokenizer.convert_ids_to_tokens(list(ids)))


# -- who decodes with them --------------------------------------------------------------------


def test_only_states_that_can_be_cut_are_drafted_on(model: CausalLM, make_model) -> None:
    """Recurrent memories and windows cannot be restored to an earlier token."""
    overlay = type(model).__name__ == "Overlay"
    windows = overlay and any(model.windows)
    assert model.truncates_states is (overlay and not windows)


def test_a_window_and_a_temperature_have_no_drafts(make: MakeDecode) -> None:
    windowed = make(name="window")
    assert windowed.write().ids == windowed.plain
    assert {step.draft for step in windowed.write().steps} == {()}
    case = make()
    drawn = case.write(SamplingConfig(max_tokens=TOKENS, temperature=0.5))
    assert {step.draft for step in drawn.steps} == {()}


def test_a_query_is_answered_with_drafts_from_the_document(make: MakeDecode) -> None:
    case = make()
    state, query = case.after.state, [3, 4]

    def answer(document: Sequence[int] = ()) -> Written:
        written = Written()
        options = {"document": document, "on_token": written.tokens.append}
        return written.run(decode(case.model, query, state, BASE, GREEDY, **options))

    alone = answer()
    written = answer([*query, *alone.ids])
    assert written.ids == alone.ids
    assert written.steps[0].draft == tuple(alone.ids[1:4])  # after the query and the first token


def test_answers_and_completions_draft_from_their_own_texts(make: MakeDecode) -> None:
    case = make()
    model, prompt = case.model, tuple(case.nearly)

    def write(work: Work) -> Written:
        encoded = encode(work, PromptTemplate(model.tokenizer), Limits(), 96)
        return Written().run(start(model, encoded, lambda event: None))

    completion = write(CompletionRequest((prompt,), GREEDY))
    assert set(completion.steps[0].draft) <= set(prompt)
    assert any(step.draft for step in completion.steps)
    document, query = text(case, prompt), text(case, case.prompt[:3])
    request = AnswerRequest(document, query, AdaptConfig(objective="none"), GREEDY, True)
    answered = write(request)
    assert any(step.draft for step in answered.steps)
    *_, last = perform(model, request)
    assert isinstance(last, AnswerCompleted)
    assert last.answer == last.base_answer
