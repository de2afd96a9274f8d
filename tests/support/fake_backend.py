"""A scripted backend, and the values that its programs emit."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from typing_extensions import override

from refine_server.server.engine.backend.protocol import Backend
from refine_server.server.engine.backend.self_check import SELF_CHECK
from refine_server.server.engine.encoder import TemplatePool
from refine_server.server.memory.budget import MemoryBudget
from refine_server.server.settings import Settings
from refine_server.ttt.batching import Call, Program
from refine_server.ttt.decoding.prompts.prompt import PromptTemplate
from refine_server.ttt.decoding.token_bytes import BYTE_ALPHABET
from refine_server.ttt.document import AdaptedDocument
from refine_server.ttt.fast_weights import FastWeights
from refine_server.ttt.interface.events import (
    AdaptationEnded,
    AdaptationStarted,
    AdaptationStep,
    AnswerCompleted,
    AnswerDelta,
    BaseAnswered,
    ChoiceEnded,
    CompletionDelta,
    CompletionEnded,
    DocumentAdapted,
    DocumentRead,
    DocumentReading,
    Emit,
    PromptRead,
    ScoredToken,
    ShouldStop,
)
from refine_server.ttt.interface.reports import AdaptationReport, StepReport, Timings, Usage
from refine_server.ttt.interface.requests import Limits, PromptForm, Work
from refine_server.ttt.kept import Kept, dump, restore
from refine_server.ttt.models.state import DeltaState, State
from refine_server.ttt.programs.encode import (
    EncodedAnswer,
    EncodedAsk,
    EncodedWork,
    encode,
)
from refine_server.ttt.programs.encode_adaptation import EncodedAdapt, EncodedQueryAdapt
from refine_server.ttt.programs.encode_completion import EncodedCompletion
from refine_server.ttt.query_side.query_adaptation import QueryAdaptation

LIMITS = Limits(document_tokens=160, query_tokens=60)
"""In bytes, as every byte is a token; the self-check's document just fits."""
VOCABULARY = 257
FINGERPRINT = "as loaded"


@dataclass(frozen=True, kw_only=True)
class Script:
    """How work on a text differs from the plain answer."""

    step: Callable[[], None] = lambda: None
    """Called in every step; it may wait, or raise."""
    loss: float = 2.0
    """Of every step."""
    kept_base_reason: str | None = None
    """Why the answer uses the base weights."""


class FakeBackend(Backend):
    """Takes one turn for each adaptation step and each token, and echoes the query.

    Every turn is recorded in ``turns`` under the name of its work, and so is the end of the work
    in ``closed``. The name is the query of an answer, and otherwise the first word of the document
    or prompt. Work on a text that contains a scripted one follows its script.
    """

    name = "fake"
    family = "delta_net"
    parameters = 7
    dtype = "float32"
    device = "cpu"
    vocabulary = VOCABULARY
    prompt_form: PromptForm = "plain"
    limits = Limits()
    fingerprint = FINGERPRINT

    def __init__(self) -> None:
        self.templates = TemplatePool(PromptTemplate(byte_tokenizer()))
        self.turns: list[str] = []
        self.closed: list[str] = []
        self.is_intact = True
        """What ``verify`` and ``is_unchanged`` return."""
        self.fails_to_open: Exception | None = None
        self.open_gate = threading.Event()
        """Opening waits for it."""
        self.open_gate.set()
        self.gate = threading.Event()
        """Steps on held texts wait for it."""
        self.bytes_per_token = 0
        """Memory that requests are predicted to take for each of their tokens."""
        self._scripts: dict[str, Script] = {}

    # -- scripts ------------------------------------------------------------------------------

    def script(self, text: str, script: Script) -> str:
        """Let work on ``text`` follow a script; return the text."""
        self._scripts[text] = script
        return text

    def hold(self, text: str) -> str:
        """Let steps on ``text`` wait for the gate."""
        return self.script(text, Script(step=self._wait_for_gate))

    def slow_down(self, text: str) -> str:
        """Let each step on ``text`` take 20 ms."""
        return self.script(text, Script(step=lambda: time.sleep(0.02)))

    def fail(self, text: str, error: BaseException | None = None) -> str:
        """Let steps on ``text`` raise ``error``."""

        def step() -> None:
            raise error or RuntimeError("secret internals")

        return self.script(text, Script(step=step))

    def _wait_for_gate(self) -> None:
        assert self.gate.wait(20)

    def _script_of(self, text: str) -> Script:
        return next((s for key, s in self._scripts.items() if key in text), Script())

    # -- the backend --------------------------------------------------------------------------

    def open(self, _: Settings) -> Backend:
        """Return itself, as ``open_backend`` returns a model."""
        self.open_gate.wait(10)
        if self.fails_to_open:
            raise self.fails_to_open
        return self

    @property
    @override
    def cached_document_bytes(self) -> int:
        return 0

    @override
    def forget_document(self, owner: str, key: str) -> None:
        pass

    @override
    def drop_expired_documents(self) -> None:
        pass

    @override
    def drop_excess_documents(self) -> None:
        pass

    @override
    def limit_memory(self, budget: MemoryBudget) -> None:
        pass

    @override
    def request_bytes(self, work: EncodedWork) -> int:
        return self.bytes_per_token * work.tokens

    @override
    def encode(self, work: Work) -> EncodedWork:
        with self.templates.take() as template:
            return encode(work, template, LIMITS, self.vocabulary)

    @override
    def start(self, work: EncodedWork, emit: Emit, should_stop: ShouldStop) -> Program[None]:
        match work:
            case EncodedAnswer() if work.request is SELF_CHECK:
                return _pass()
            case EncodedAnswer():
                return self._answer(work, emit, should_stop)
            case EncodedAdapt() | EncodedQueryAdapt():
                return self._adapt(work, emit, should_stop)
            case EncodedAsk():
                return self._ask(work, emit)
            case EncodedCompletion():
                return self._complete(work, emit)

    @override
    def verify(self) -> bool:
        return self.is_intact

    @override
    def is_unchanged(self) -> bool:
        return self.is_intact

    @override
    def dump(self, document: Kept) -> tuple[bytes, dict[str, Any]]:
        return dump(document)

    @override
    def restore(self, data: bytes, description: dict[str, Any]) -> Kept:
        return restore(data, description, torch.device("cpu"))

    # -- programs -----------------------------------------------------------------------------

    async def _answer(self, work: EncodedAnswer, emit: Emit, should_stop: ShouldStop) -> None:
        request, name = work.request, work.request.query
        try:
            report = await self._take_steps(name, work, emit, should_stop)
            answer = name[: request.sampling.max_tokens]
            for letter in answer:
                await self._turn(name)
                emit(AnswerDelta(letter))
            rollout_tokens = sum(step.rollout_tokens for step in report.steps)
            emit(
                AnswerCompleted(
                    answer=answer,
                    base_answer="base says no" if request.compare_base else None,
                    finish_reason="stop",
                    adaptation=report,
                    usage=Usage(
                        document_tokens=work.tokens,
                        query_tokens=1,
                        completion_tokens=len(answer),
                        rollout_tokens=rollout_tokens,
                    ),
                    timings=TIMINGS,
                )
            )
        finally:
            self.closed.append(name)

    async def _adapt(
        self, work: EncodedAdapt | EncodedQueryAdapt, emit: Emit, should_stop: ShouldStop
    ) -> None:
        name = work.request.document.split()[0]
        try:
            report = await self._take_steps(name, work, emit, should_stop)
            if isinstance(work, EncodedAdapt):
                kept: Kept = adapted_document(name, work.request.owner, report, work.tokens)
            else:
                kept = query_adaptation(work, report)
            emit(DocumentAdapted(kept))
        finally:
            self.closed.append(name)

    async def _ask(self, work: EncodedAsk, emit: Emit) -> None:
        """Answer with the word that the document's fast weights hold."""
        adapted = work.request.adapted
        adapted.require_owner(work.request.owner)
        base_answer = None
        if work.request.compare_base:
            base_answer = "base says no"
            emit(BaseAnswered(base_answer))
        word = "".join(map(chr, adapted.fast_weights["model.norm.weight"][0].int().tolist()))
        for letter in word:
            await Call(lambda: None)
            emit(AnswerDelta(letter))
        emit(
            AnswerCompleted(
                answer=word,
                base_answer=base_answer,
                finish_reason="stop",
                adaptation=adapted.report,
                usage=Usage(
                    document_tokens=adapted.document_tokens,
                    query_tokens=1,
                    completion_tokens=len(word),
                    rollout_tokens=0,
                ),
                timings=TIMINGS,
            )
        )

    async def _complete(self, work: EncodedCompletion, emit: Emit) -> None:
        """Continue each prompt with its first word."""
        request, name, tokens = work.request, "", 0
        score = None if request.logprobs is None else -0.5
        try:
            for number, prompt in enumerate(work.prompts):
                text = bytes(id for id in prompt if id < 256).decode(errors="replace")
                name, script = next(iter(text.split()), "nothing"), self._script_of(text)
                echo = tuple(ScoredToken(bytes([id])) for id in prompt if request.echo and id < 256)
                context = work.contexts[number] if work.contexts else None
                citations = ()
                if context is not None and request.adapted is None:
                    emit(DocumentRead(len(context.prompt.document), seconds=0.01))
                if context is not None and context.candidates is not None:
                    citations = context.candidates.citations()
                read = PromptRead(number, len(prompt), 0.01, echo, citations)
                emit(read)
                for choice in range(number * request.n, (number + 1) * request.n):
                    for place, letter in enumerate(name[: request.sampling.max_tokens]):
                        await self._turn(name, script)
                        tokens += 1
                        token = ScoredToken(letter.encode(errors="replace"), score)
                        emit(CompletionDelta(choice, letter, token, ends=False, start=place))
                    emit(ChoiceEnded(choice=choice, finish_reason="stop"))
            emit(
                CompletionEnded(
                    prompt_tokens=work.tokens, completion_tokens=tokens, timings=TIMINGS
                )
            )
        finally:
            self.closed.append(name)

    async def _take_steps(
        self,
        name: str,
        work: EncodedAnswer | EncodedAdapt | EncodedQueryAdapt,
        emit: Emit,
        should_stop: ShouldStop,
    ) -> AdaptationReport:
        request, script = work.request, self._script_of(work.request.document)
        emit(DocumentReading(tokens_read=0, document_tokens=work.tokens))
        emit(DocumentRead(document_tokens=work.tokens, seconds=0.01))
        if isinstance(work, EncodedAnswer) and work.request.compare_base:
            emit(BaseAnswered("base says no"))
        emit(AdaptationStarted(request.adapt.optimizer.steps))
        steps: list[StepReport] = []
        stopped = None
        while len(steps) < request.adapt.optimizer.steps and (stopped := should_stop(0.0)) is None:
            await self._turn(name, script)
            steps.append(step_report(len(steps) + 1, loss=script.loss))
            emit(AdaptationStep(steps[-1]))
        reason = script.kept_base_reason or (None if steps else stopped)
        report = AdaptationReport(
            objective="refine",
            steps=tuple(steps),
            accepted_step=0 if reason else len(steps),
            kept_base_reason=reason,
            stopped=stopped,
            first_ntp_loss=2.0,
            final_ntp_loss=1.5,
            fast_weight_bytes=1024,
        )
        emit(AdaptationEnded(report, seconds=0.02))
        return report

    def _turn(self, name: str, script: Script = Script()) -> Call[None]:
        def turn() -> None:
            self.turns.append(name)
            script.step()

        return Call(turn)


TIMINGS = Timings(
    prefill_seconds=0.01,
    adapt_seconds=0.02,
    judge_seconds=0.005,
    decode_seconds=0.03,
    time_to_first_token_seconds=0.04,
)


async def _pass() -> None:
    """Do nothing."""


def step_report(step: int, *, loss: float = 2.0, seconds: float = 0.001) -> StepReport:
    """Return the report of a step that went well."""
    return StepReport(
        step=step,
        loss=loss,
        ntp_loss=2.0,
        grpo_loss=0.1,
        reward_mean=0.5,
        reward_std=0.1,
        entropy_mean=3.0,
        kl=0.0,
        attention=0.0,
        grad_norm=1.0,
        seconds=seconds,
        rollout_tokens=10,
    )


def adapted_document(
    word: str, owner: str, report: AdaptationReport, tokens: int
) -> AdaptedDocument:
    """Return a document of somewhat more than 4,000 bytes that remembers a word."""
    letters = torch.tensor([[float(ord(letter)) for letter in word]])
    state = State((DeltaState(torch.zeros(1, 1, 100, 10), None),), torch.tensor([tokens]))
    return AdaptedDocument(
        owner=owner,
        fast_weights=FastWeights({"model.norm.weight": letters}, owner),
        state=state,
        hidden=torch.zeros(1, 4),
        report=report,
        document_tokens=tokens,
        input_ids=torch.zeros(1, tokens, dtype=torch.int64),
    )


def query_adaptation(work: EncodedQueryAdapt, report: AdaptationReport) -> QueryAdaptation:
    """Return an adaptation of queries that cites the evidence of the first query."""
    request, candidates = work.request, work.contexts[0].candidates
    deltas = {"model.layers.0.q_proj.lora_b": torch.ones(1, 2, 4)}
    return QueryAdaptation(
        owner=request.owner,
        document=request.document,
        fast_weights=FastWeights(deltas, request.owner),
        report=report,
        document_tokens=work.tokens,
        room=work.room,
        document_key="as read",
        citations=() if candidates is None else candidates.citations(),
    )


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer of which every token is a byte, its value its id."""
    alphabet = {byte: character for character, byte in BYTE_ALPHABET.items()}
    vocabulary = {alphabet[byte]: byte for byte in range(256)}
    backend = Tokenizer(models.BPE(vocabulary, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end|>")
