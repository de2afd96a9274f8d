"""Completions: log-probabilities equal a direct forward's, and choices come in order."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from refine_server.ttt.decoding.prompts.prompt import PromptTemplate
from refine_server.ttt.decoding.token_bytes import TokenBytes
from refine_server.ttt.document import AdaptedDocument
from refine_server.ttt.fast_weights import BASE, FastWeights
from refine_server.ttt.interface.config import (
    AdaptConfig,
    OptimizerConfig,
    RolloutConfig,
    SamplingConfig,
)
from refine_server.ttt.interface.errors import IsolationError, RequestError
from refine_server.ttt.interface.events import (
    ChoiceEnded,
    CompletionDelta,
    CompletionEnded,
    DocumentAdapted,
    Event,
    PromptRead,
)
from refine_server.ttt.interface.reports import AdaptationReport
from refine_server.ttt.interface.requests import AdaptRequest, AskRequest, CompletionRequest, Limits
from refine_server.ttt.models import CausalLM, load
from refine_server.ttt.programs.complete import SCORED_AT_ONCE
from refine_server.ttt.programs.encode import encode
from refine_server.ttt.programs.start import perform

GREEDY = SamplingConfig(max_tokens=4)


@pytest.fixture(scope="module")
def tiny() -> CausalLM:
    return load("tiny")


@pytest.fixture
def with_tokenizer(model: CausalLM, spell: Callable[[CausalLM], CausalLM]) -> CausalLM:
    """A small model of each family whose token n is spelled as the n-th character from a space."""
    return spell(model)


def run(model: CausalLM, request: CompletionRequest, **options: Any) -> list[Event]:
    return list(perform(model, request, **options))


def ids(tiny: CausalLM, text: str) -> tuple[int, ...]:
    return tuple(tiny.tokenizer(text)["input_ids"])


def texts(events: list[Event], choice: int = 0) -> str:
    deltas = [e for e in events if isinstance(e, CompletionDelta) and e.choice == choice]
    return "".join(delta.text for delta in deltas)


def direct(model: CausalLM, tokens: list[int], fast: FastWeights = BASE) -> Tensor:
    """[T, V] log-probabilities after each token, by one forward."""
    with torch.no_grad():
        logits = model(torch.tensor([tokens]), fast_weights=fast).logits
    return logits[0].log_softmax(-1)


def assert_scored(events: list[Event], expected: Tensor, tokens: list[int], top: int) -> None:
    """Check all tokens but the first against the log-probabilities of ``expected``."""
    read = next(e for e in events if isinstance(e, PromptRead))
    decoded = [e.token for e in events if isinstance(e, CompletionDelta)]
    returned = [*read.echo, *decoded]
    assert len(returned) == len(tokens)
    assert (returned[0].log_prob, returned[0].top) == (None, ())
    for before, (scored, token) in enumerate(zip(returned[1:], tokens[1:], strict=True)):
        row = expected[before]
        torch.testing.assert_close(scored.log_prob, row[token].item(), rtol=0, atol=1e-12)
        best = row.topk(top).values.tolist()
        torch.testing.assert_close([t.log_prob for t in scored.top], best, rtol=0, atol=1e-12)


def test_log_probabilities_are_those_of_a_direct_forward(
    with_tokenizer: CausalLM, tokens: Callable[..., Tensor]
) -> None:
    model = with_tokenizer
    prompt = tokens(SCORED_AT_ONCE + 3).tolist()  # longer than what is scored at once
    request = CompletionRequest((tuple(prompt),), GREEDY, logprobs=3, echo=True)
    events = run(model, request)
    returned = [e.token.text for e in events if isinstance(e, CompletionDelta)]
    sequence = [*prompt, *model.tokenizer.convert_tokens_to_ids(returned)]
    expected = direct(model, sequence)
    assert sequence[len(prompt) :] == expected[len(prompt) - 1 : -1].argmax(-1).tolist()
    assert_scored(events, expected, sequence, top=3)


def test_a_prompt_continues_an_adapted_document(
    with_tokenizer: CausalLM, tokens: Callable[..., Tensor], perturbed: Callable[..., FastWeights]
) -> None:
    model = with_tokenizer
    fast = FastWeights(perturbed(model).tensors, "anna")
    document, prompt = tokens(23).tolist(), tokens(9, seed=2).tolist()
    with torch.no_grad():
        read = model(torch.tensor([document]), fast_weights=fast)
    report = AdaptationReport(
        objective="ntp",
        steps=(),
        accepted_step=1,
        kept_base_reason=None,
        stopped=None,
        first_ntp_loss=1.0,
        final_ntp_loss=0.5,
        fast_weight_bytes=fast.nbytes,
    )
    adapted = AdaptedDocument(
        owner="anna",
        fast_weights=fast,
        state=read.state,
        hidden=read.hidden[:, -1],
        report=report,
        document_tokens=23,
    )
    request = CompletionRequest(
        (tuple(prompt),), GREEDY, logprobs=2, echo=True, adapted=adapted, owner="anna"
    )
    events = run(model, request)
    decoded = [e.token.text for e in events if isinstance(e, CompletionDelta)]
    sequence = [*document, *prompt, *model.tokenizer.convert_tokens_to_ids(decoded)]
    expected = direct(model, sequence, fast)
    echo = next(e for e in events if isinstance(e, PromptRead)).echo
    returned = [*echo, *(e.token for e in events if isinstance(e, CompletionDelta))]
    for at, scored in enumerate(returned, start=len(document)):
        value = expected[at - 1, sequence[at]].item()
        torch.testing.assert_close(scored.log_prob, value, rtol=0, atol=1e-12)
    # Nothing more to read: the document itself is continued.
    empty = run(model, CompletionRequest(((),), GREEDY, adapted=adapted, owner="anna"))
    first = next(e for e in empty if isinstance(e, CompletionDelta)).token.text
    assert model.tokenizer.convert_tokens_to_ids(first) == int(expected[22].argmax())
    with pytest.raises(IsolationError, match="anna"):
        run(model, CompletionRequest((tuple(prompt),), adapted=adapted, owner="bert"))


def test_the_same_tokens_as_an_answer(tiny: CausalLM) -> None:
    """A question's tokens as a prompt after the document are the question."""
    document = "The harbour code is amber. The bakery owner is Tobias Hartley."
    adapt = AdaptRequest(
        document,
        AdaptConfig(rollouts=RolloutConfig(positions=2), optimizer=OptimizerConfig(steps=1)),
    )
    adapted = next(e for e in perform(tiny, adapt) if isinstance(e, DocumentAdapted)).document
    sampling = SamplingConfig(max_tokens=6, temperature=0.8, seed=3)
    answered = list(perform(tiny, AskRequest(adapted, "What is the harbour code?", sampling)))
    prompt = ids(tiny, "\n\nQuestion: What is the harbour code?\nAnswer:")
    events = run(tiny, CompletionRequest((prompt,), sampling, adapted=adapted))
    assert texts(events) == answered[-1].answer


def test_choices_of_a_batch_come_under_their_own_numbers(tiny: CausalLM) -> None:
    sampling = SamplingConfig(max_tokens=5, temperature=1.0, seed=11)
    prompts = (ids(tiny, "The harbour code is"), ids(tiny, "The captain"))
    events = run(tiny, CompletionRequest(prompts, sampling, n=3))
    for p, prompt in enumerate(prompts):
        for j in range(3):
            alone = sampling.model_copy(update={"seed": 11 + j})
            expected = texts(run(tiny, CompletionRequest((prompt,), alone)))
            assert texts(events, 3 * p + j) == expected
    ended = [e.choice for e in events if isinstance(e, ChoiceEnded)]
    assert sorted(ended) == list(range(6))
    last = events[-1]
    assert isinstance(last, CompletionEnded)
    assert last.prompt_tokens == sum(map(len, prompts))
    assert last.completion_tokens == sum(isinstance(e, CompletionDelta) for e in events)


def test_nothing_is_decoded_when_a_prompt_is_only_read(tiny: CausalLM) -> None:
    prompt = ids(tiny, "The harbour code is amber.")
    sampling = SamplingConfig(max_tokens=0)
    events = run(tiny, CompletionRequest((prompt,), sampling, logprobs=0, echo=True))
    assert [type(e) for e in events] == [PromptRead, ChoiceEnded, CompletionEnded]
    assert len(events[0].echo) == len(prompt)
    assert events[1].finish_reason == "length"
    silent = run(tiny, CompletionRequest((prompt,), sampling, echo=True))
    assert {token.log_prob for token in silent[0].echo} == {None}


def test_stop_strings_and_end_tokens_end_a_choice(tiny: CausalLM) -> None:
    prompt = ids(tiny, "The harbour code is amber.\n\nQuestion: What is the harbour code?\nAnswer:")
    events = run(tiny, CompletionRequest((prompt,), SamplingConfig(max_tokens=8)))
    deltas = [e for e in events if isinstance(e, CompletionDelta)]
    assert [d.ends for d in deltas] == [False] * (len(deltas) - 1) + [True]
    assert (deltas[-1].text, deltas[-1].token.text) == ("", "<|endoftext|>")
    assert events[-2] == ChoiceEnded(0, "stop")
    stopped = run(tiny, CompletionRequest((prompt,), SamplingConfig(max_tokens=8, stop=("mbe",))))
    assert texts(stopped) == texts(events).partition("mbe")[0]
    on = SamplingConfig(max_tokens=8, ignore_eos=True)
    events = run(tiny, CompletionRequest((prompt,), on))
    assert sum(isinstance(e, CompletionDelta) for e in events) == 8


@pytest.mark.parametrize(
    ("prompt", "code", "message"),
    [
        ((), "empty", "is empty"),
        ((1,) * 31, "context_length_exceeded", "at most 30"),
        ((1, 2560), "unknown_token", "0 to 2559"),
        ((-1,), "unknown_token", "token -1"),
    ],
)
def test_invalid_prompts_are_refused(
    tiny: CausalLM, prompt: tuple[int, ...], code: str, message: str
) -> None:
    with pytest.raises(RequestError, match=message) as error:
        run(tiny, CompletionRequest(((5,), prompt)), limits=Limits(20, 10))
    assert (error.value.param, error.value.code) == ("prompt", code)


def test_a_response_holds_so_many_log_probabilities(tiny: CausalLM) -> None:
    request = CompletionRequest(((1,) * 100,) * 100, SamplingConfig(max_tokens=1), logprobs=98)
    template = PromptTemplate(tiny.tokenizer)
    assert encode(replace(request, echo=True), template, Limits(), 2).tokens == 10_000
    with pytest.raises(RequestError, match="smaller batches") as error:
        encode(replace(request, echo=True, logprobs=99), template, Limits(), 2)
    assert error.value.param == "logprobs"
    assert encode(replace(request, logprobs=99), template, Limits(), 2).tokens == 10_000


@pytest.mark.parametrize("text", ["Grüße an 北京 \U0001f389\n\n<|endoftext|>x", " two  spaces", ""])
def test_the_bytes_of_a_texts_tokens_are_the_text(tiny: CausalLM, text: str) -> None:
    token_bytes = TokenBytes(tiny.tokenizer)
    joined = b"".join(map(token_bytes, ids(tiny, text)))
    assert joined.decode() == text
    assert token_bytes(2559) == b""  # the model's vocabulary is larger than the tokenizer's


def test_bytes_of_sentencepiece_tokens() -> None:
    vocabulary = {"<unk>": 0, "\u2581": 1, "\u2581a": 2, "<0xC3>": 3, "<0xBC>": 4, "b": 5}
    backend = Tokenizer(models.WordLevel(vocabulary, "<unk>"))
    backend.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    token_bytes = TokenBytes(PreTrainedTokenizerFast(tokenizer_object=backend))
    assert b"".join(map(token_bytes, [2, 3, 4, 5, 1])).decode() == " aüb "
