"""Write a text token by token from a state."""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from tokenizers.decoders import DecodeStream

from refine_server.ttt.batching import Call
from refine_server.ttt.decoding.decode import DecodeStep, Prediction
from refine_server.ttt.decoding.grammar import Grammar
from refine_server.ttt.decoding.prompt_lookup import Lookup
from refine_server.ttt.decoding.sampling import TopTokens, sample, score
from refine_server.ttt.decoding.stop_strings import StopStrings
from refine_server.ttt.fast_weights import FastWeights
from refine_server.ttt.interface.config import SamplingConfig
from refine_server.ttt.models.base import CausalLM
from refine_server.ttt.models.reader import Reader
from refine_server.ttt.models.state import State

FinishReason = Literal["stop", "length"]

CONTEXT = 8
"""Tokens before the first decoded one that a tokenizer may need in order to spell it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodedToken:
    """One decoded token and the text that it adds."""

    id: int
    text: str
    """Text that became certain with this token; empty within a character or a stop string."""
    is_end: bool
    """Whether this is a token that ends answers."""
    start: int
    """Characters of the tokens before it, those of a stop string included."""
    log_prob: float | None = None
    """The model's own log-probability in nats, before temperature and top_p; None if not asked."""
    top: TopTokens = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodedText:
    """A whole decoded text."""

    text: str
    finish_reason: FinishReason
    ids: tuple[int, ...]
    """Its tokens, with the one that ended it if it ended by itself."""

    @property
    def tokens(self) -> int:
        """How many tokens it has."""
        return len(self.ids)


class Decoder:
    """Decodes the continuation of a sequence, one token at each call of ``next_token``.

    Args:
        model: the model that made the prediction.
        prediction: the first token's logits and the state; neither is changed.
        fast: the fast weights under which both were computed.
        sampling: temperature, top_p, stop strings, length and seed.
        context: the tokens that were read; some tokenizers spell the first token differently (for
            example without its space) when they do not know them.
        known: tokens from which drafts may be copied (``Lookup``).
        grammar: the form that the text is held to; None: any. White space before it is dropped.
        top: number of most likely tokens to report beside each token; None reports no
            log-probabilities.
    """

    def __init__(
        self,
        model: CausalLM,
        prediction: Prediction,
        fast: FastWeights,
        sampling: SamplingConfig,
        *,
        context: Sequence[int] = (),
        known: Sequence[int] = (),
        grammar: Grammar | None = None,
        top: int | None = None,
    ) -> None:
        self.text = ""
        self.tokens = 0
        self._longest = _longest_text(model, prediction.state, sampling)
        self.finish_reason: FinishReason | None = None if self._longest else "length"
        self._model, self._fast, self._sampling, self._top = model, fast, sampling, top
        self._state = prediction.state
        self._logits = deque(prediction.logits.split(1))  # each [1, V]
        self._stop_ids = frozenset() if sampling.ignore_eos else model.stop_ids
        self._generator = torch.Generator().manual_seed(sampling.seed)
        self._stops = StopStrings(sampling.stop)
        self._spelling = _spelling(model.tokenizer, context)
        self._spelled = 0
        """Characters of all tokens so far, those of a stop string included."""
        self._matcher = None if grammar is None else grammar.start()
        self._drops_space = grammar is not None
        # A draft is what the model itself would write, which the grammar may forbid.
        drafts = sampling.is_greedy and model.truncates_states and grammar is None
        self._lookup = Lookup(known) if drafts else None
        self._last = 0

    async def next_token(self) -> DecodedToken | None:
        """Decode one more token; None once ``finish_reason`` is set."""
        if self.finish_reason is not None:
            return None
        if not self._logits:
            await self._predict()
        logits = self._logits.popleft()  # [1, V]
        allowed = logits if self._matcher is None else self._matcher.mask(logits)
        token = self._last = sample(allowed[0], self._sampling, self._generator)
        self.tokens += 1
        if self._matcher is not None:
            self._matcher.advance(token)
        if self._lookup is not None:
            self._lookup.append(token)
        is_end, start = token in self._stop_ids, self._spelled
        text = self._spell(token, is_end)
        self.text += text
        decoded = DecodedToken(id=token, text=text, is_end=is_end, start=start)
        if self._top is None:
            return decoded
        ids = torch.tensor([token], device=self._model.device)
        [(log_prob, top)] = score(logits, ids, self._top)
        return replace(decoded, log_prob=log_prob, top=top)

    async def _predict(self) -> None:
        left = self._longest - self.tokens - 1
        draft = self._lookup.draft(left) if self._lookup is not None else ()
        step = DecodeStep(self._model, self._last, self._state, self._fast, draft)
        prediction = await step
        self._state = prediction.state
        self._logits += prediction.logits.split(1)

    def _spell(self, token: int, is_end: bool) -> str:
        """Return the text that the token adds, and set the finish reason if it is the last."""
        text = ""
        if not is_end:
            piece = self._spelling.step(self._model.tokenizer.backend_tokenizer, token) or ""
            if self._drops_space:
                piece = piece.lstrip(" ")
                self._drops_space = not piece
            self._spelled += len(piece)
            text = self._stops.feed(piece)
        if is_end or self._stops.hit or (self._matcher is not None and self._matcher.is_complete):
            self.finish_reason = "stop"
        elif self.tokens == self._longest:
            self.finish_reason = "length"
        return text + self._stops.rest() if self.finish_reason is not None else text


async def decode(
    model: CausalLM,
    query: Sequence[int],
    state: State,
    fast: FastWeights,
    sampling: SamplingConfig,
    *,
    document: Sequence[int] = (),
    grammar: Grammar | None = None,
    on_token: Callable[[DecodedToken], None] = lambda token: None,
) -> DecodedText:
    """Read a query from the document's state, then write the answer.

    Args:
        model: the model whose state it is.
        query: token ids to read, at least one.
        state: the state after the document; it is not changed, so that any number of queries can
            start from it.
        fast: the fast weights under which the document was read.
        sampling: how to choose tokens.
        document: the document's token ids if they are known; drafts are copied from them and from
            the query.
        grammar: the form that the answer is held to; None: any.
        on_token: called with each token as soon as it is decoded.
    """
    # What is derived from it for this answer ends with the answer.
    fast = fast.detach().to_dtype(model.dtype)

    reader = Reader(model, torch.tensor([list(query)], device=model.device), state, fast)
    while not reader.is_done:
        hidden = await Call(reader.read_piece)  # [1, n, D]
    prediction = Prediction(model.head_logits(hidden[:, -1], fast), reader.state)
    known = (*document, *query)
    decoder = Decoder(model, prediction, fast, sampling, known=known, grammar=grammar)
    ids: list[int] = []
    while (token := await decoder.next_token()) is not None:
        ids.append(token.id)
        on_token(token)
    assert decoder.finish_reason is not None
    return DecodedText(text=decoder.text, finish_reason=decoder.finish_reason, ids=tuple(ids))


def _longest_text(model: CausalLM, state: State, sampling: SamplingConfig) -> int:
    """Return how many tokens may be decoded: those asked for, as far as the model's length goes."""
    if model.context_length is None:
        return sampling.max_tokens
    left = model.context_length - int(state.position[0])
    return max(min(sampling.max_tokens, left), 0)


def _spelling(tokenizer: Any, context: Sequence[int]) -> DecodeStream:
    """Return a stream that spells tokens after a context, unless that ends within a character."""
    ids = list(context[-CONTEXT:])
    if not ids or tokenizer.decode(ids, skip_special_tokens=True).endswith("\ufffd"):
        return DecodeStream(skip_special_tokens=True)
    return DecodeStream(ids=ids, skip_special_tokens=True)
