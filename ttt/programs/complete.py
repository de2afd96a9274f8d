"""The program that continues prompts: what OpenAI's API calls completions and chat completions."""

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from refine_server.ttt.batching import Call
from refine_server.ttt.decoding.decode import Prediction
from refine_server.ttt.decoding.decoder import DecodedToken, Decoder
from refine_server.ttt.decoding.prompts.prompt import DocumentPrompt
from refine_server.ttt.decoding.sampling import TopTokens, score
from refine_server.ttt.decoding.token_bytes import TokenBytes
from refine_server.ttt.evidence.candidates import Candidates
from refine_server.ttt.evidence.context import Context
from refine_server.ttt.fast_weights import BASE
from refine_server.ttt.interface.events import (
    ChoiceEnded,
    CompletionDelta,
    CompletionEnded,
    DocumentRead,
    Event,
    PromptRead,
    ScoredToken,
)
from refine_server.ttt.interface.reports import Citation, Timings
from refine_server.ttt.models.base import CausalLM
from refine_server.ttt.models.reader import Reader
from refine_server.ttt.models.state import State
from refine_server.ttt.programs.encode_completion import EncodedCompletion
from refine_server.ttt.programs.frozen import find_evidence, quote, read_frozen
from refine_server.ttt.programs.reread import read_end
from refine_server.ttt.query_side.document_cache import DocumentCache
from refine_server.ttt.query_side.frozen_document import FrozenDocument

SCORED_AT_ONCE = 128
"""Prompt tokens whose logits are held together; all of a long prompt's would fill the memory."""


async def complete(
    model: CausalLM,
    work: EncodedCompletion,
    emit: Callable[[Event], None],
    documents: DocumentCache | None,
) -> None:
    """Continue every prompt; choice n p + j is the j-th continuation of prompt p.

    A prompt is read once for all its choices, which are then decoded in turns, one token each. A
    document is read once for all prompts that follow it.

    Args:
        model: the base model.
        work: the prompts, and the document that they follow.
        emit: receives the events.
        documents: documents that were read before; None keeps none.

    Raises:
        IsolationError: the adaptation belongs to another owner.
    """
    request = work.request
    if (kept := request.adapted or request.kept) is not None:
        kept.require_owner(request.owner)
    completer = _Completer(model, work, emit, documents)
    began = time.monotonic()
    for number in range(len(work.prompts)):
        await completer.continue_prompt(number)
    decode_seconds = completer.decode_seconds
    timings = Timings(
        prefill_seconds=time.monotonic() - began - decode_seconds,
        adapt_seconds=0.0,
        judge_seconds=0.0,
        decode_seconds=decode_seconds,
        time_to_first_token_seconds=completer.first_token,
    )
    emit(CompletionEnded(work.prompt_tokens, completer.tokens, timings))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Document:
    """The document that a prompt follows."""

    hidden: Tensor
    """[1, D], the final hidden state of its last token."""
    state: State
    """The state after it."""
    known: Sequence[int] = ()
    """Its tokens, if they are known: drafts are copied from them."""


class _Completer:
    """What all prompts of one request share."""

    def __init__(
        self,
        model: CausalLM,
        work: EncodedCompletion,
        emit: Callable[[Event], None],
        documents: DocumentCache | None,
    ) -> None:
        self.model, self.work, self.request = model, work, work.request
        self.emit, self.documents = emit, documents
        self.token_bytes = TokenBytes(model.tokenizer)
        kept = self.request.adapted or self.request.kept
        # Detached: what is derived from it for these completions ends with them.
        self.fast = BASE if kept is None else kept.fast_weights.detach()
        self.started = time.monotonic()
        self.first_token = 0.0
        """Seconds until the first token; 0 before it."""
        self.decode_seconds = 0.0
        self.tokens = 0
        self._frozen: tuple[DocumentPrompt, FrozenDocument] | None = None
        """The document that was read last, and what it was read from."""

    async def continue_prompt(self, number: int) -> None:
        """Read a prompt behind its document, and decode its choices."""
        document, candidates = await self._open_document(number)
        citations = () if candidates is None else candidates.citations()
        prompt = self.work.prompts[number]
        prediction = await self._prefill(number, prompt, document, citations)
        began = time.monotonic()
        n = self.request.n
        known = () if document is None else document.known
        choices = {number * n + j: self._decoder(prompt, j, prediction, known) for j in range(n)}
        await self._decode_choices(choices, candidates, citations)
        self.decode_seconds += time.monotonic() - began

    async def _open_document(self, number: int) -> tuple[_Document | None, Candidates | None]:
        """Return the document before a prompt, and what can be evidence in it."""
        adapted, contexts = self.request.adapted, self.work.contexts
        context = contexts[number] if contexts else None
        if adapted is not None:
            end = await read_end(self.model, adapted, self.documents)
            document = _Document(hidden=end.hidden, state=end.state)
            return document, None if context is None else context.candidates
        if context is None:
            return None, None
        frozen = await self._read_frozen(context)
        candidates, _ = await find_evidence(frozen, context, self.request.evidence)
        known = context.prompt.document
        return _Document(hidden=frozen.hidden, state=frozen.state, known=known), candidates

    async def _read_frozen(self, context: Context) -> FrozenDocument:
        """Read a document, unless the prompt before this one followed it, too."""
        prompt = context.prompt
        if self._frozen is not None and self._frozen[0] == prompt:
            return self._frozen[1]
        self._frozen = None  # so that two are never in memory for one request
        owner = self.request.owner
        frozen = await read_frozen(self.model, prompt, owner, self.documents, self.emit)
        document, seconds, is_cached = frozen
        tokens = len(prompt.document)
        self.emit(DocumentRead(tokens, seconds, is_cached=is_cached, overflow=context.overflow))
        self._frozen = prompt, document
        return document

    async def _prefill(
        self,
        number: int,
        prompt: tuple[int, ...],
        document: _Document | None,
        citations: tuple[Citation, ...],
    ) -> Prediction:
        """Read a prompt, emit its own tokens if they are echoed, and return the prediction."""
        echo = tuple[ScoredToken, ...]()
        if not prompt:
            assert document is not None  # an empty prompt is refused without a document
            self.emit(PromptRead(number, 0, 0.0, echo, citations))
            return Prediction(self._logits(document.hidden), document.state)
        ids = torch.tensor([prompt], device=self.model.device)
        reader = Reader(self.model, ids, None if document is None else document.state, self.fast)
        predicting = [] if document is None else [document.hidden]
        while not reader.is_done:
            hidden = (await Call(reader.read_piece))[0]  # [n, D]
            predicting.append(hidden if self.request.echo else hidden[-1:])
        if self.request.echo:
            before = torch.cat(predicting)[:-1]  # the last predicts what is decoded
            scored = Call(lambda: tuple(self._echo(prompt, before)))
            echo = await scored
        self.emit(PromptRead(number, len(prompt), reader.seconds, echo, citations))
        return Prediction(self._logits(hidden[-1:]), reader.state)

    @torch.no_grad()
    def _logits(self, hidden: Tensor) -> Tensor:
        return self.model.head_logits(hidden, self.fast)

    def _echo(self, prompt: tuple[int, ...], predicting: Tensor) -> Iterator[ScoredToken]:
        """Yield the prompt's tokens; the last N were predicted from hidden states [N, D]."""
        top = self.request.logprobs
        unscored = len(prompt) if top is None else len(prompt) - len(predicting)
        for id in prompt[:unscored]:
            yield ScoredToken(self.token_bytes(id))
        if top is None:
            return
        targets = torch.tensor(prompt[unscored:], device=self.model.device)
        for at in range(0, len(targets), SCORED_AT_ONCE):
            hidden, ids = (x[at : at + SCORED_AT_ONCE] for x in (predicting, targets))
            logits = self._logits(hidden)
            for id, scores in zip(ids.tolist(), score(logits, ids, top), strict=True):
                yield self._scored(id, *scores)

    async def _decode_choices(
        self,
        choices: dict[int, Decoder],
        candidates: Candidates | None,
        citations: Sequence[Citation],
    ) -> None:
        """Decode a prompt's choices in turns, one token each."""
        waiting = deque(choices.items())
        while waiting:
            choice, decoder = waiting.popleft()
            token = await decoder.next_token()
            if token is None:
                assert decoder.finish_reason is not None
                text = decoder.text
                quotes = () if candidates is None else await quote(text, candidates, citations)
                self.emit(ChoiceEnded(choice, decoder.finish_reason, quotes))
                continue
            self.tokens += 1
            self.first_token = self.first_token or time.monotonic() - self.started
            scored = self._reported(token)
            self.emit(CompletionDelta(choice, token.text, scored, token.is_end, token.start))
            waiting.append((choice, decoder))

    def _decoder(
        self, prompt: tuple[int, ...], j: int, prediction: Prediction, known: Sequence[int]
    ) -> Decoder:
        sampling = self.request.sampling
        return Decoder(
            self.model,
            prediction,
            self.fast,
            sampling.model_copy(update={"seed": (sampling.seed + j) % 2**63}),
            context=prompt,
            known=(*known, *prompt),
            grammar=self.work.grammar,
            top=self.request.logprobs,
        )

    def _reported(self, token: DecodedToken) -> ScoredToken:
        if token.log_prob is None:
            return ScoredToken(self.token_bytes(token.id))
        return self._scored(token.id, token.log_prob, token.top)

    def _scored(self, id: int, log_prob: float, top: TopTokens) -> ScoredToken:
        best = tuple(ScoredToken(self.token_bytes(i), p) for i, p in top)
        return ScoredToken(self.token_bytes(id), log_prob, best)
