"""The program that continues prompts: what OpenAI's API calls completions and chat completions."""

import time
from collections import deque
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from refine_server.ttt.batching import Call
from refine_server.ttt.decoding.decode import Prediction
from refine_server.ttt.decoding.decoder import DecodedToken, Decoder
from refine_server.ttt.decoding.sampling import TopTokens, score
from refine_server.ttt.decoding.token_bytes import TokenBytes
from refine_server.ttt.fast_weights import BASE
from refine_server.ttt.interface.events import (
    ChoiceEnded,
    CompletionDelta,
    CompletionEnded,
    Event,
    PromptRead,
    ScoredToken,
)
from refine_server.ttt.interface.reports import Timings
from refine_server.ttt.models.base import CausalLM
from refine_server.ttt.models.reader import Reader
from refine_server.ttt.programs.encode import EncodedCompletion

SCORED_AT_ONCE = 128
"""Prompt tokens whose logits are held together; all of a long prompt's would fill the memory."""


async def complete(model: CausalLM, work: EncodedCompletion, emit: Callable[[Event], None]) -> None:
    """Continue every prompt; choice n p + j is the j-th continuation of prompt p.

    A prompt is read once for all its choices, which are then decoded in turns, one token each.

    Raises:
        IsolationError: the adapted document belongs to another owner.
    """
    request = work.request
    if request.adapted is not None:
        request.adapted.require_owner(request.owner)
    completer = _Completer(model, work, emit)
    read_seconds, decode_seconds = 0.0, 0.0
    for number, prompt in enumerate(work.prompts):
        began = time.monotonic()
        prediction = await completer.prefill(number, prompt)
        read_seconds += time.monotonic() - began
        began = time.monotonic()
        await completer.decode_choices(number, prediction)
        decode_seconds += time.monotonic() - began
    timings = Timings(
        prefill_seconds=read_seconds,
        adapt_seconds=0.0,
        decode_seconds=decode_seconds,
        time_to_first_token_seconds=completer.first_token,
    )
    emit(CompletionEnded(work.tokens, completer.tokens, timings))


class _Completer:
    """What all prompts of one request share."""

    def __init__(
        self, model: CausalLM, work: EncodedCompletion, emit: Callable[[Event], None]
    ) -> None:
        self.model, self.prompts, self.request = model, work.prompts, work.request
        self.emit = emit
        self.token_bytes = TokenBytes(model.tokenizer)
        adapted = self.request.adapted
        # Detached: what is derived from it for these completions ends with them.
        self.fast = BASE if adapted is None else adapted.fast_weights.detach()
        self.started = time.monotonic()
        self.first_token = 0.0
        """Seconds until the first token; 0 before it."""
        self.tokens = 0

    async def prefill(self, number: int, prompt: tuple[int, ...]) -> Prediction:
        """Read a prompt, emit its own tokens if they are echoed, and return the prediction."""
        adapted, echo = self.request.adapted, tuple[ScoredToken, ...]()
        if not prompt:
            assert adapted is not None  # an empty prompt is refused without a document
            self.emit(PromptRead(number, 0, 0.0, echo))
            return Prediction(self._logits(adapted.hidden), adapted.state)
        ids = torch.tensor([prompt], device=self.model.device)
        reader = Reader(self.model, ids, None if adapted is None else adapted.state, self.fast)
        predicting = [] if adapted is None else [adapted.hidden]
        while not reader.is_done:
            hidden = (await Call(reader.read_piece))[0]  # [n, D]
            predicting.append(hidden if self.request.echo else hidden[-1:])
        if self.request.echo:
            before = torch.cat(predicting)[:-1]  # the last predicts what is decoded
            scored = Call(lambda: tuple(self._echo(prompt, before)))
            echo = await scored
        self.emit(PromptRead(number, len(prompt), reader.seconds, echo))
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

    async def decode_choices(self, number: int, prediction: Prediction) -> None:
        """Decode a prompt's choices in turns, one token each."""
        n = self.request.n
        waiting = deque((number * n + j, self._decoder(number, j, prediction)) for j in range(n))
        while waiting:
            choice, decoder = waiting.popleft()
            token = await decoder.next_token()
            if token is None:
                assert decoder.finish_reason is not None
                self.emit(ChoiceEnded(choice, decoder.finish_reason))
                continue
            self.tokens += 1
            self.first_token = self.first_token or time.monotonic() - self.started
            scored = self._reported(token)
            self.emit(CompletionDelta(choice, token.text, scored, token.is_end, token.start))
            waiting.append((choice, decoder))

    def _decoder(self, number: int, j: int, prediction: Prediction) -> Decoder:
        sampling = self.request.sampling
        return Decoder(
            self.model,
            prediction,
            self.fast,
            sampling.model_copy(update={"seed": (sampling.seed + j) % 2**63}),
            context=self.prompts[number],
            known=self.prompts[number],
            top=self.request.logprobs,
        )

    def _reported(self, token: DecodedToken) -> ScoredToken:
        if token.log_prob is None:
            return ScoredToken(self.token_bytes(token.id))
        return self._scored(token.id, token.log_prob, token.top)

    def _scored(self, id: int, log_prob: float, top: TopTokens) -> ScoredToken:
        best = tuple(ScoredToken(self.token_bytes(i), p) for i, p in top)
        return ScoredToken(self.token_bytes(id), log_prob, best)
