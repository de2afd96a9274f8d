"""A scripted stand-in for the model, apps and live servers around it."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest
import torch
from fastapi import FastAPI
from starlette.testclient import TestClient
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from refine_server.server.app import create_app
from refine_server.server.engine.backend import SELF_CHECK, Backend, Emit, ShouldStop
from refine_server.server.process import Server, listen
from refine_server.server.settings import Settings
from refine_server.ttt.batching import Call, Program
from refine_server.ttt.decoding.prompt import DocumentPrompt, PromptTemplate
from refine_server.ttt.decoding.token_bytes import _BYTES
from refine_server.ttt.document import AdaptedDocument, dump, restore
from refine_server.ttt.fast_weights import FastWeights
from refine_server.ttt.interface.errors import RequestError
from refine_server.ttt.interface.events import (
    AdaptationEnded,
    AdaptationStep,
    AnswerCompleted,
    AnswerDelta,
    BaseAnswered,
    ChoiceEnded,
    CompletionDelta,
    CompletionEnded,
    DocumentAdapted,
    DocumentRead,
    PromptRead,
    ScoredToken,
)
from refine_server.ttt.interface.reports import AdaptationReport, StepReport, Timings, Usage
from refine_server.ttt.interface.requests import (
    AdaptRequest,
    AnswerRequest,
    AskRequest,
    CompletionRequest,
    Limits,
    Work,
)
from refine_server.ttt.models import CausalLM, load
from refine_server.ttt.models.state import DeltaState, State
from refine_server.ttt.programs.encode import (
    EncodedAdapt,
    EncodedAnswer,
    EncodedAsk,
    EncodedCompletion,
    EncodedWork,
    encode,
)

LONGEST_DOCUMENT = 50


class FakeModel:
    """Takes one step for each that is asked and echoes the query, one letter a token.

    The query is the request's name in ``turns`` and ``closed``. The word "hold" in a document makes
    its steps wait for ``gate``; "crash", "refuse", "nan", "exit" and "oom" do what they say.
    """

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.turns: list[str] = []
        self.closed: list[str] = []
        self.fails_to_open: Exception | None = None
        self.measured = "as loaded"
        self.out_of_memory: Exception = MemoryError()
        self.open_gate = threading.Event()
        self.open_gate.set()

    def open(self, _: Settings) -> Backend:
        self.open_gate.wait(10)
        if self.fails_to_open:
            raise self.fails_to_open
        return Backend(
            name="fake",
            family="delta_net",
            parameters=7,
            dtype="float32",
            device="cpu",
            fingerprint="as loaded",
            measure=lambda: self.measured,
            encode=self.encode,
            template=PromptTemplate(byte_tokenizer()),
            start=self.start,
            dump=dump,
            restore=lambda data, form: restore(data, form, torch.device("cpu")),
        )

    def encode(self, work: Work) -> EncodedWork:
        """A word of a document or a query is one token."""
        match work:
            case CompletionRequest():
                limits = Limits(LONGEST_DOCUMENT, LONGEST_DOCUMENT)
                return encode(work, PromptTemplate(byte_tokenizer()), limits, 260)
            case AskRequest():
                return EncodedAsk(request=work, query=self._words(work.query))
            case AnswerRequest():
                prompt = DocumentPrompt([], self._words(work.document))
                return EncodedAnswer(request=work, prompt=prompt, query=[0])
            case AdaptRequest():
                prompt = DocumentPrompt([], self._words(work.document))
                return EncodedAdapt(request=work, prompt=prompt, query=None)

    def _words(self, text: str) -> list[int]:
        words = len(text.split())
        if words > LONGEST_DOCUMENT:
            raise RequestError("document is too long", "document", "document_too_long")
        return [0] * words

    def start(self, work: EncodedWork, emit: Emit, should_stop: ShouldStop) -> Program[None]:
        match work:
            case EncodedAnswer():
                return self.answer(work.request, emit)
            case EncodedAdapt():
                return self.adapt(work.request, emit, should_stop)
            case EncodedAsk():
                return self.ask(work.request, emit)
            case EncodedCompletion():
                return self.complete(work, emit)

    async def adapt(self, work: AdaptRequest, emit: Emit, should_stop: ShouldStop) -> None:
        """The document's first word is the name in ``turns`` and ``closed``."""
        words = work.document.split()
        name = words[0]
        try:
            emit(DocumentRead(len(words), 0.01))
            steps: list[StepReport] = []
            stopped = None
            while len(steps) < work.adapt.steps and stopped is None:
                await self._work(name, words)
                number = len(steps) + 1
                steps.append(StepReport(number, 2.0, 2.0, 0.1, 0.5, 0.1, 3.0, 0.0, 1.0, 0.001, 10))
                emit(AdaptationStep(steps[-1]))
                stopped = should_stop()
            report = AdaptationReport(
                "refine", tuple(steps), len(steps), None, stopped, 2.0, 1.5, 1024
            )
            emit(AdaptationEnded(report, 0.02))
            emit(DocumentAdapted(fake_document(work, report, len(words))))
        finally:
            self.closed.append(name)

    async def ask(self, work: AskRequest, emit: Emit) -> None:
        """Answers with what the document's fast weights hold."""
        work.adapted.require_owner(work.owner)
        said = "".join(map(chr, work.adapted.fast_weights["model.norm.weight"][0].int().tolist()))
        for letter in said:
            emit(AnswerDelta(letter))
        emit(
            AnswerCompleted(
                answer=said,
                base_answer=None,
                finish_reason="stop",
                adaptation=work.adapted.report,
                usage=Usage(work.adapted.document_tokens, 1, len(said), 0),
                timings=Timings(0.0, 0.0, 0.03, 0.01),
            )
        )

    async def complete(self, encoded: EncodedCompletion, emit: Emit) -> None:
        """Says each prompt's first word, which is its name in ``turns`` and ``closed``."""
        work, name, tokens = encoded.request, "", 0
        try:
            for number, prompt in enumerate(encoded.prompts):
                words = bytes(id for id in prompt if id < 256).decode(errors="replace").split()
                name = words[0] if words else "nothing"
                echo = tuple(ScoredToken(bytes([id])) for id in prompt if work.echo and id < 256)
                emit(PromptRead(number, len(prompt), 0.01, echo))
                for choice in range(number * work.n, (number + 1) * work.n):
                    for letter in name[: work.sampling.max_tokens]:
                        await self._work(name, words)
                        tokens += 1
                        score = None if work.logprobs is None else -0.5
                        token = ScoredToken(letter.encode(errors="replace"), score)
                        emit(CompletionDelta(choice, letter, token, False))
                    emit(ChoiceEnded(choice, "stop"))
            timings = Timings(0.01, 0.0, 0.03, 0.04)
            emit(CompletionEnded(encoded.tokens, tokens, timings))
        finally:
            self.closed.append(name)

    async def answer(self, request: AnswerRequest, emit: Emit) -> None:
        if request is SELF_CHECK:
            return
        name, words = request.query, request.document.split()
        try:
            emit(DocumentRead(len(words), 0.01))
            if request.compare_base:
                emit(BaseAnswered("base says no"))
            steps = []
            for number in range(1, request.adapt.steps + 1):
                await self._work(name, words)
                loss = float("nan") if "nan" in words else 2.0 / number
                steps.append(StepReport(number, loss, 2.0, 0.1, 0.5, 0.1, 3.0, 0.0, 1.0, 0.001, 10))
                emit(AdaptationStep(steps[-1]))
            guard = "kept_base" if "worse" in words else None
            accepted = 0 if guard else len(steps)
            report = AdaptationReport("refine", tuple(steps), accepted, guard, None, 2.0, 1.5, 1024)
            emit(AdaptationEnded(report, 0.02))
            for letter in name[: request.sampling.max_tokens]:
                await Call(lambda: self.turns.append(name))
                emit(AnswerDelta(letter))
            emit(
                AnswerCompleted(
                    answer=name[: request.sampling.max_tokens],
                    base_answer="base says no" if request.compare_base else None,
                    finish_reason="stop",
                    adaptation=report,
                    usage=Usage(len(words), 1, len(name), 10 * len(steps)),
                    timings=Timings(0.01, 0.02, 0.03, 0.04),
                )
            )
        finally:
            self.closed.append(name)

    async def _work(self, name: str, words: list[str]) -> None:
        await Call(lambda: self._do(name, words))

    def _do(self, name: str, words: list[str]) -> None:
        self.turns.append(name)
        if "hold" in words:
            assert self.gate.wait(20)
        if "slow" in words:
            time.sleep(0.02)
        if "crash" in words:
            raise RuntimeError("secret internals")
        if "refuse" in words:
            raise RequestError("query is unfit", "query", "unfit")
        if "exit" in words:
            raise SystemExit
        if "oom" in words:
            raise self.out_of_memory


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Every byte is a token, its value its id."""
    alphabet = dict(zip(_BYTES.values(), _BYTES, strict=True))
    vocabulary = {alphabet[byte]: byte for byte in range(256)}
    backend = Tokenizer(models.BPE(vocabulary, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end|>")


def fake_document(work: AdaptRequest, report: AdaptationReport, tokens: int) -> AdaptedDocument:
    """A document of 4,000 bytes and more that remembers its first word."""
    word = torch.tensor([[float(ord(letter)) for letter in work.document.split()[0]]])
    state = State((DeltaState(torch.zeros(1, 1, 100, 10), None),), torch.tensor([tokens]))
    fast = FastWeights({"model.norm.weight": word}, work.owner)
    return AdaptedDocument(work.owner, fast, state, torch.zeros(1, 4), report, tokens)


@pytest.fixture
def fake() -> Iterator[FakeModel]:
    model = FakeModel()
    yield model
    model.gate.set()
    model.open_gate.set()


@pytest.fixture
def make_app(fake: FakeModel) -> Callable[..., FastAPI]:
    def make(**options: object) -> FastAPI:
        defaults = {"model": "fake", "store": "none", "shutdown_seconds": 0.3}
        return create_app(Settings(**{**defaults, **options}), fake.open)  # type: ignore[arg-type]

    return make


def wait_for(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.005)


def wait_until_open(app: FastAPI) -> None:
    if app.state.engine.opened.exception(10) is None:
        wait_for(lambda: app.state.adaptations.is_open)


@pytest.fixture(name="wait_for")
def _wait_for() -> Callable[..., None]:
    return wait_for


@pytest.fixture
def make_client(make_app: Callable[..., FastAPI]) -> Iterator[Callable[..., TestClient]]:
    """Clients of apps in this process, their engines ready."""
    with ExitStack() as stack:

        def make(**options: object) -> TestClient:
            app = make_app(**options)
            client = stack.enter_context(TestClient(app, raise_server_exceptions=False))
            wait_until_open(app)
            return client

        yield make


@pytest.fixture
def client(make_client: Callable[..., TestClient]) -> TestClient:
    return make_client()


@contextmanager
def serving(app: FastAPI) -> Iterator[str]:
    """A real server on a loopback port; gives its URL."""
    listener = listen("127.0.0.1", 0)
    server = Server(app, app.state.settings)
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        wait_until_open(app)
        wait_for(lambda: server.started)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(20)


@pytest.fixture
def live(make_app: Callable[..., FastAPI], fake: FakeModel) -> Iterator[Callable[..., str]]:
    """Real servers of the scripted model; returns their URLs."""
    with ExitStack() as stack:

        def start(**options: object) -> str:
            url = stack.enter_context(serving(make_app(**{"shutdown_seconds": 0.3, **options})))
            stack.callback(fake.gate.set)
            return url

        yield start


@pytest.fixture(scope="session")
def tiny_url() -> Iterator[str]:
    """A real server of the real tiny model."""
    settings = Settings(model="tiny", store="none", shutdown_seconds=0.3)
    with serving(create_app(settings)) as url:
        yield url


@pytest.fixture(scope="session")
def tiny() -> CausalLM:
    """The tiny model itself, to compare with."""
    return load("tiny")
