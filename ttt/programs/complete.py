"""Prompts continued as they are: what OpenAI's API calls a completion."""

import time
from collections import deque
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from refine_server.ttt.batching import Alone, Coroutine, Operation
from refine_server.ttt.decoding.decode import Decoding, Likeliest, Next, scores, write
from refine_server.ttt.decoding.token_bytes import TokenBytes
from refine_server.ttt.fast_weights import BASE
from refine_server.ttt.interface.errors import TOO_LONG, RequestError
from refine_server.ttt.interface.events import (
    ChoiceEnded,
    CompletionDelta,
    CompletionEnded,
    Event,
    PromptRead,
    ScoredToken,
)
from refine_server.ttt.interface.reports import Timings
from refine_server.ttt.interface.requests import CompletionRequest, Limits
from refine_server.ttt.models.base import CausalLM

SCORED_AT_ONCE = 128
"""Prompt tokens whose logits are held together: all of a long prompt's would fill the memory."""

MOST_TOLD = 1_000_000
"""Log-probabilities in one response: its memory, and that of the client, is bounded."""


def check_prompts(request: CompletionRequest, limits: Limits, vocabulary: int) -> int:
    """Tokens of all prompts together; RequestError when one cannot be read."""
    longest = limits.prompt_tokens if request.adapted is None else limits.query_tokens
    for prompt in request.prompts:
        if not prompt and request.adapted is None:
            raise RequestError("prompt holds no token", "prompt", "empty")
        if len(prompt) > longest:
            raise RequestError(
                f"prompt has {len(prompt)} tokens; at most {longest} are accepted",
                "prompt",
                TOO_LONG,
            )
        unknown = [id for id in prompt if not 0 <= id < vocabulary]
        if unknown:
            raise RequestError(
                f"prompt holds token {unknown[0]}; the model knows 0 to {vocabulary - 1}",
                "prompt",
                "unknown_token",
            )
    tokens = sum(map(len, request.prompts))
    _check_told(request, tokens)
    return tokens


def _check_told(request: CompletionRequest, prompt_tokens: int) -> None:
    if request.logprobs is None:
        return
    told = len(request.prompts) * request.n * request.sampling.max_tokens
    told += prompt_tokens * request.n if request.echo else 0
    if told * (1 + request.logprobs) > MOST_TOLD:
        raise RequestError(
            f"logprobs: up to {told} tokens with {request.logprobs} likeliest each are more than "
            f"the {MOST_TOLD} log-probabilities of one response; ask in smaller batches",
            "logprobs",
            "too_many_logprobs",
        )


def completing(
    model: CausalLM, request: CompletionRequest, *, limits: Limits | None = None
) -> Coroutine[Event, None]:
    """Continue every prompt, choice n p + j being the j-th of prompt p.

    A prompt is read once for all its choices, which then take turns.

    Raises:
        RequestError: a prompt is empty, too long or holds unknown tokens, before anything is
            computed.
        IsolationError: the adapted document is not the asking owner's.
    """
    if request.adapted is not None:
        request.adapted.require_owner(request.owner)
    prompt_tokens = check_prompts(request, limits or Limits(), model.embedding.num_embeddings)
    completer = _Completer(model, request, TokenBytes(model.tokenizer))
    read_seconds, decode_seconds = 0.0, 0.0
    for number, prompt in enumerate(request.prompts):
        began = time.monotonic()
        after, echo = yield Alone(partial(completer.read, prompt))
        read_seconds += (seconds := time.monotonic() - began)
        yield PromptRead(number, len(prompt), seconds, echo)
        began = time.monotonic()
        yield from completer.choices(number, after)
        decode_seconds += time.monotonic() - began
    timings = Timings(read_seconds, 0.0, decode_seconds, completer.first_token)
    yield CompletionEnded(prompt_tokens, completer.tokens, timings)


class _Completer:
    def __init__(
        self, model: CausalLM, request: CompletionRequest, token_bytes: TokenBytes
    ) -> None:
        self.model, self.request, self.token_bytes = model, request, token_bytes
        # Detached: what is made of them for the completion's tokens ends with the completion.
        self.fast = BASE if request.adapted is None else request.adapted.fast_weights.detach()
        self.started = time.monotonic()
        self.first_token = 0.0  # seconds until then
        self.tokens = 0

    @torch.no_grad()
    def read(self, prompt: tuple[int, ...]) -> tuple[Next, tuple[ScoredToken, ...]]:
        """What follows a prompt, and its tokens if they are asked for."""
        adapted, echo = self.request.adapted, tuple[ScoredToken, ...]()
        if not prompt:
            assert adapted is not None  # as checked
            return Next(self.model.head_logits(adapted.hidden, self.fast), adapted.state), echo
        ids = torch.tensor([prompt], device=self.model.device)
        output = self.model(ids, None if adapted is None else adapted.state, self.fast)
        if self.request.echo:
            predicting = output.hidden[0, :-1]  # [T - 1, D]
            if adapted is not None:
                predicting = torch.cat([adapted.hidden, predicting])
            echo = tuple(self._echo(prompt, predicting))
        logits = self.model.head_logits(output.hidden[:, -1], self.fast)
        return Next(logits, output.state), echo

    def _echo(self, prompt: tuple[int, ...], predicting: Tensor) -> Iterator[ScoredToken]:
        """The prompt's tokens, the last of which were predicted from hidden states [N, D]."""
        top = self.request.logprobs
        unscored = len(prompt) if top is None else len(prompt) - len(predicting)
        for id in prompt[:unscored]:
            yield ScoredToken(self.token_bytes(id))
        if top is None:
            return
        targets = torch.tensor(prompt[unscored:], device=self.model.device)
        for at in range(0, len(targets), SCORED_AT_ONCE):
            hidden, ids = (x[at : at + SCORED_AT_ONCE] for x in (predicting, targets))
            logits = self.model.head_logits(hidden, self.fast)
            for id, score in zip(ids.tolist(), scores(logits, ids, top), strict=True):
                yield self._told(id, *score)

    def choices(self, number: int, after: Next) -> Coroutine[Event, None]:
        """Decode a prompt's choices in turns, a token each."""
        request = self.request
        waiting = deque(
            (number * request.n + j, self._write(number, j, after)) for j in range(request.n)
        )
        while waiting:
            choice, decoding = waiting.popleft()
            outcome = None
            try:
                while isinstance(token := decoding.send(outcome), Operation):
                    outcome = yield token
            except StopIteration as end:
                _, finish, _ = end.value
                yield ChoiceEnded(choice, finish)
                continue
            self.tokens += 1
            self.first_token = self.first_token or time.monotonic() - self.started
            if token.log_prob is None:
                told = ScoredToken(self.token_bytes(token.id))
            else:
                told = self._told(token.id, token.log_prob, token.top)
            yield CompletionDelta(choice, token.text, told, token.ends)
            waiting.append((choice, decoding))

    def _write(self, number: int, j: int, after: Next) -> Decoding:
        sampling = self.request.sampling
        return write(
            self.model,
            after,
            self.fast,
            sampling.model_copy(update={"seed": (sampling.seed + j) % 2**63}),
            context=self.request.prompts[number],
            known=self.request.prompts[number],
            top=self.request.logprobs,
        )

    def _told(self, id: int, log_prob: float, top: Likeliest) -> ScoredToken:
        best = tuple(ScoredToken(self.token_bytes(i), p) for i, p in top)
        return ScoredToken(self.token_bytes(id), log_prob, best)
