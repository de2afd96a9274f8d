"""Prompts continued as they are: what OpenAI's API calls a completion."""

import time
from collections import deque
from collections.abc import Iterator

import torch
from torch import Tensor

from refine_server.ttt.fast_weights import BASE
from refine_server.ttt.generation import Decoding, Likeliest, scores, write
from refine_server.ttt.models.base import CausalLM
from refine_server.ttt.models.state import State
from refine_server.ttt.token_bytes import TokenBytes
from refine_server.ttt.types import (
    TOO_LONG,
    ChoiceEnded,
    CompletionDelta,
    CompletionEnded,
    CompletionRequest,
    Event,
    Limits,
    PromptRead,
    RequestError,
    ScoredToken,
    Timings,
)

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


def complete(
    model: CausalLM, request: CompletionRequest, *, limits: Limits | None = None
) -> Iterator[Event]:
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
    started, first_token = time.monotonic(), 0.0
    read_seconds, decode_seconds, completion_tokens = 0.0, 0.0, 0
    for number, prompt in enumerate(request.prompts):
        began = time.monotonic()
        before, state, echo = completer.read(prompt)
        read_seconds += (seconds := time.monotonic() - began)
        yield PromptRead(number, len(prompt), seconds, echo)
        began = time.monotonic()
        for event in completer.choices(number, before, state):
            first_token = first_token or time.monotonic() - started
            completion_tokens += isinstance(event, CompletionDelta)
            yield event
        decode_seconds += time.monotonic() - began
    timings = Timings(read_seconds, 0.0, decode_seconds, first_token)
    yield CompletionEnded(prompt_tokens, completion_tokens, timings)


class _Completer:
    def __init__(
        self, model: CausalLM, request: CompletionRequest, token_bytes: TokenBytes
    ) -> None:
        self.model, self.request, self.token_bytes = model, request, token_bytes
        self.fast = BASE if request.adapted is None else request.adapted.fast_weights

    @torch.no_grad()
    def read(self, prompt: tuple[int, ...]) -> tuple[Tensor, State, tuple[ScoredToken, ...]]:
        """A prompt's last hidden state [1, D], the state after it, and its tokens if asked for."""
        adapted, echo = self.request.adapted, tuple[ScoredToken, ...]()
        if not prompt:
            assert adapted is not None  # as checked
            return adapted.hidden, adapted.state, echo
        ids = torch.tensor([prompt], device=self.model.device)
        output = self.model(ids, None if adapted is None else adapted.state, self.fast)
        if self.request.echo:
            predicting = output.hidden[0, :-1]  # [T - 1, D]
            if adapted is not None:
                predicting = torch.cat([adapted.hidden, predicting])
            echo = tuple(self._echo(prompt, predicting))
        return output.hidden[:, -1], output.state, echo

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

    def choices(self, number: int, before: Tensor, state: State) -> Iterator[Event]:
        """Decode a prompt's choices in turns, a token each."""
        request = self.request
        waiting = deque(
            (number * request.n + j, self._write(number, j, before, state))
            for j in range(request.n)
        )
        while waiting:
            choice, decoding = waiting.popleft()
            try:
                token = next(decoding)
            except StopIteration as end:
                _, finish, _ = end.value
                yield ChoiceEnded(choice, finish)
                continue
            if token.log_prob is None:
                told = ScoredToken(self.token_bytes(token.id))
            else:
                told = self._told(token.id, token.log_prob, token.top)
            yield CompletionDelta(choice, token.text, told, token.ends)
            waiting.append((choice, decoding))

    def _write(self, number: int, j: int, before: Tensor, state: State) -> Decoding:
        sampling = self.request.sampling
        return write(
            self.model,
            before,
            state,
            self.fast,
            sampling.model_copy(update={"seed": (sampling.seed + j) % 2**63}),
            context=self.request.prompts[number],
            top=self.request.logprobs,
        )

    def _told(self, id: int, log_prob: float, top: Likeliest) -> ScoredToken:
        best = tuple(ScoredToken(self.token_bytes(i), p) for i, p in top)
        return ScoredToken(self.token_bytes(id), log_prob, best)
