"""Decoding an answer token by token from a state."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Self

import torch
from tokenizers.decoders import DecodeStream
from torch import Tensor

from refine_server.ttt.batching import Alone, Coroutine, Operation
from refine_server.ttt.decoding.prompt_lookup import Lookup
from refine_server.ttt.fast_weights import FastWeights
from refine_server.ttt.interface.config import SamplingConfig
from refine_server.ttt.models.base import CausalLM
from refine_server.ttt.models.state import State

Likeliest = tuple[tuple[int, float], ...]
"""Ids and log-probabilities of the likeliest tokens, best first."""


@dataclass(frozen=True)
class Decoded:
    """One decoded token and the text that it adds, possibly empty; ``ends`` if it ended the answer.

    ``log_prob`` and ``top`` are the model's own, before temperature and top_p; None and empty when
    they were not asked for.
    """

    id: int
    text: str
    ends: bool
    log_prob: float | None = None
    top: Likeliest = ()


Decoding = Coroutine[Decoded, tuple[str, str, int]]
"""Yields tokens; returns the whole text, why it ended ("stop" or "length"), and the token count."""

CONTEXT = 8
"""Tokens before the first decoded one that a tokenizer may need to know its text."""

MOST_DECODED = 64
"""Rows of one decoding batch: far beyond, the head's logits are what takes the time."""


class Next(NamedTuple):
    """What follows the tokens read so far, and the state after all of them.

    logits: [N, V], of the next token and of those after each of N - 1 drafted tokens, which are
    the likeliest in their places. drafted: how many were tried.
    """

    logits: Tensor
    state: State
    drafted: int = 0

    @property
    def accepted(self) -> int:
        """How many drafted tokens are what greedy decoding would have written."""
        return self.logits.shape[0] - 1


@dataclass(frozen=True)
class DecodeStep(Operation):
    """Read one token of one sequence and score the one after it; the result is a ``Next``.

    A step that runs alone reads the ``draft`` as well, and keeps what greedy decoding would have
    written. In a batch the others' rows are what makes use of the weights.
    """

    name: ClassVar[str] = "decode"
    model: CausalLM
    token: int
    state: State
    fast: FastWeights
    draft: tuple[int, ...] = ()

    @property
    def room(self) -> int:
        """See ``Operation.room``."""
        return MOST_DECODED if self.model.stacks_states and self.fast.is_delta else 1

    def fits(self, lead: Self) -> bool:
        """Any low-rank deltas go with any others, and with none."""
        return self.model is lead.model and self.room > 1

    @classmethod
    @torch.no_grad()
    def run_together(cls, operations: Sequence[Self]) -> list[Next]:
        """Every layer's projections and the head once for all rows, each with its own deltas."""
        if len(operations) == 1:
            return [operations[0]._run_alone()]
        model = operations[0].model
        fast = FastWeights.stack_deltas([step.fast for step in operations])
        state = State.stack([step.state for step in operations])
        ids = torch.tensor([[step.token] for step in operations], device=model.device)
        output = model(ids, state, fast)
        logits = model.head_logits(output.hidden[:, 0], fast)  # [R, V]
        rows = zip(logits.split(1), output.state.split(), strict=True)
        return [Next(*row) for row in rows]

    def _run_alone(self) -> Next:
        ids = torch.tensor([[self.token, *self.draft]], device=self.model.device)
        output = self.model(ids, self.state, self.fast)
        logits = self.model.head_logits(output.hidden[0], self.fast)  # [1 + drafted, V]
        drafted = len(self.draft)
        if not drafted:
            return Next(logits, output.state)
        right = (logits[:-1].argmax(-1) == ids[0, 1:]).cumprod(0)
        accepted = int(right.sum())
        state = output.state.without_last(drafted - accepted)
        return Next(logits[: 1 + accepted], state, drafted)


def decode(
    model: CausalLM,
    query: Sequence[int],
    state: State,
    fast: FastWeights,
    sampling: SamplingConfig,
    *,
    document: Sequence[int] = (),
) -> Decoding:
    """Read the query from the document's state, then write the answer.

    The given state is not changed: any number of queries can start from it. The ``document``'s
    tokens, where they are known, are what drafts are taken from, beside the query's.
    """
    fast = fast.detach()  # what is made of it for this answer ends with the answer

    @torch.no_grad()
    def read() -> Next:
        output = model(torch.tensor([list(query)], device=model.device), state, fast)
        return Next(model.head_logits(output.hidden[:, -1], fast), output.state)

    after = yield Alone(read)
    return (yield from write(model, after, fast, sampling, known=(*document, *query)))


def write(
    model: CausalLM,
    after: Next,
    fast: FastWeights,
    sampling: SamplingConfig,
    *,
    context: Sequence[int] = (),
    known: Sequence[int] = (),
    top: int | None = None,
) -> Decoding:
    """Decode what follows the tokens that were read.

    Args:
        model: whose tokens.
        after: the first token's logits, and the state; not changed.
        fast: the fast weights that both were computed under.
        sampling: how.
        context: the tokens that were read, for the first token's text: some tokenizers leave out
            the space before it otherwise.
        known: the tokens that were read, or the last of them, to take drafts from (``Lookup``).
        top: how many of the likeliest tokens to tell beside each; None tells no log-probability.
    """
    generator = torch.Generator().manual_seed(sampling.seed)
    stops, stop_ids = StopStrings(sampling.stop), model.stop_ids
    stream = _text_stream(model.tokenizer, context)
    lookup = Lookup(known) if sampling.temperature == 0 and model.cuts_states else None
    pieces: list[str] = []
    finish, count, token = "length", 0, 0
    scored = deque(after.logits.split(1))
    while count < sampling.max_tokens and finish == "length":
        if not scored:
            draft = lookup.draft(sampling.max_tokens - count - 1) if lookup else ()
            after = yield DecodeStep(model, token, after.state, fast, draft)
            scored += after.logits.split(1)
        logits = scored.popleft()  # [1, V]
        token = _sample(logits[0], sampling, generator)
        count += 1
        if lookup:
            lookup.append(token)
        ends = token in stop_ids and not sampling.ignore_eos
        if ends:
            text, finish = "", "stop"
        else:
            text = stops.feed(stream.step(_backend(model.tokenizer), token) or "")
            finish = "stop" if stops.hit else "length"
        if finish == "stop" or count == sampling.max_tokens:
            text += stops.rest()
        pieces.append(text)
        if top is None:
            yield Decoded(token, text, ends)
        else:
            [score] = scores(logits, torch.tensor([token], device=model.device), top)
            yield Decoded(token, text, ends, *score)
    return "".join(pieces), finish, count


def scores(logits: Tensor, tokens: Tensor, top: int) -> list[tuple[float, Likeliest]]:
    """Log-probability of each token [N] under logits [N, V], and the ``top`` likeliest tokens."""
    wide = torch.promote_types(logits.dtype, torch.float32)
    log_probs = logits.to(wide).log_softmax(-1)
    chosen = log_probs.gather(-1, tokens[:, None])[:, 0].tolist()
    best = log_probs.topk(min(top, log_probs.shape[-1]), dim=-1)
    rows = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    likeliest = [tuple(zip(ids, values, strict=True)) for ids, values in rows]
    return list(zip(chosen, likeliest, strict=True))


def _text_stream(tokenizer: Any, context: Sequence[int]) -> DecodeStream:
    """A stream of text that goes on after a context, unless that ends within a character."""
    ids = list(context[-CONTEXT:])
    if not ids or tokenizer.decode(ids, skip_special_tokens=True).endswith("\ufffd"):
        return DecodeStream(skip_special_tokens=True)
    return DecodeStream(ids=ids, skip_special_tokens=True)


def _sample(logits: Tensor, sampling: SamplingConfig, generator: torch.Generator) -> int:
    """One token from logits [V]: greedy at temperature 0, else from the top_p of the mass."""
    if sampling.temperature == 0:
        return int(logits.argmax())
    p = (logits.float() / sampling.temperature).softmax(-1).cpu()
    if sampling.top_p < 1:
        ordered, order = p.sort(descending=True, stable=True)
        outside = ordered.cumsum(-1) - ordered >= sampling.top_p
        p[order[outside]] = 0.0
    return int(torch.multinomial(p, 1, generator=generator))


def _backend(tokenizer: Any) -> Any:
    return tokenizer.backend_tokenizer


class StopStrings:
    """Ends a text before the first stop string, which may come in several pieces."""

    def __init__(self, stops: Sequence[str]) -> None:
        self.stops = [s for s in stops if s]
        self.hit = False
        self._held = ""

    def feed(self, text: str) -> str:
        """Take more text; return what is certain to stand before any stop string."""
        self._held += text
        found = [at for at in (self._held.find(s) for s in self.stops) if at >= 0]
        if found:
            self.hit = True
            ready, self._held = self._held[: min(found)], ""
            return ready
        keep = max((self._begun(s) for s in self.stops), default=0)
        cut = len(self._held) - keep
        ready, self._held = self._held[:cut], self._held[cut:]
        return ready

    def rest(self) -> str:
        """What was held back in case a stop string followed."""
        held, self._held = self._held, ""
        return held

    def _begun(self, stop: str) -> int:
        """Length of the longest end of the held text that begins the stop string."""
        longest = min(len(stop) - 1, len(self._held))
        return next((n for n in range(longest, 0, -1) if self._held.endswith(stop[:n])), 0)
