"""The best of several answers: of ways to read the document, and with or without an adaptation.

Evidence helps with some questions and misleads with others, and so does an adaptation. An answer
that rests on the evidence is likely behind the evidence alone, whatever was read and whatever the
weights were when it was decoded, so that is what answers are compared by: best-of-n decoding with
the unadapted model as its own verifier.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from refine_server.ttt.batching import Call
from refine_server.ttt.decoding.decoder import DecodedText, DecodedToken, decode
from refine_server.ttt.fast_weights import BASE, FastWeights
from refine_server.ttt.interface.evidence import ReadContext
from refine_server.ttt.models.base import CausalLM
from refine_server.ttt.models.reader import Reader
from refine_server.ttt.models.state import State
from refine_server.ttt.programs.encode import EncodedAnswer
from refine_server.ttt.query_side.frozen_document import FrozenDocument
from refine_server.ttt.refine.inputs.rows import Span


@dataclass(frozen=True, kw_only=True, slots=True)
class EvidenceAlone:
    """Evidence and a query as the base model reads them without the rest of the document."""

    state: State | None
    """After the evidence, or what is before it if the query begins with it; None: the start."""
    query: Sequence[int]
    """What follows, to where the answer begins."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """An answer, and how it was made."""

    decoded: DecodedText
    tokens: Sequence[DecodedToken]
    """The same, token by token."""
    read: ReadContext
    """What of the document was read before the query."""
    is_base: bool
    """Whether the base weights gave it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Way:
    """What an answer follows."""

    read: ReadContext
    state: State
    query: Sequence[int]
    fast: FastWeights


OnToken = Callable[[DecodedToken], None]


async def decode_answer(
    model: CausalLM,
    work: EncodedAnswer,
    state: State,
    fast: FastWeights,
    on_token: OnToken,
    *,
    alone: EvidenceAlone | None = None,
    base: Answer | None = None,
) -> Answer:
    """Decode the answer to a request from the state after its document.

    Where the request asks for the best answer, there are three. Where the evidence alone is given,
    each of them is decoded under the base weights too. Of several, the answer is the one that the
    base model finds likeliest, whole and with its end, behind the evidence alone; of equals the
    first, and those of the base weights come first. An empty answer is better than none only.

    Args:
        model: the base model.
        work: the request.
        state: after the document; it is not changed.
        fast: the weights that the document was read under.
        on_token: called with each token of the answer; of the best one as soon as it is known.
        alone: what answers are compared by where ``fast`` is guarded: those of the base weights,
            under which the document has the same state, and those of ``fast``.
        base: the answer of the base weights to the request's query, if it is known.
    """
    check = work.context.check
    if check is None and alone is None:
        way = _Way(read=work.context.read, state=state, query=work.query, fast=fast)
        return await _decode(model, work, way, on_token)
    ways: list[_Way] = []
    for weights in (fast,) if alone is None else (BASE, fast):
        ways += await _ways(model, work, state, weights)
    if check is not None:
        evidence = await _read(model, check.prompt.header + check.prompt.document, BASE)
        alone = EvidenceAlone(state=evidence, query=check.query_after_evidence)
    assert alone is not None
    answers: list[Answer] = []
    for way in ways:
        is_known = base is not None and way.fast.is_base and way.query is work.query
        answers.append(base if base and is_known else await _decode(model, work, way, ignore))
    best = await Call(lambda: _likeliest(model, alone, answers), model.threads)
    for token in best.tokens:
        on_token(token)
    return best


async def _ways(
    model: CausalLM, work: EncodedAnswer, state: State, fast: FastWeights
) -> list[_Way]:
    """List what a request's answers follow under some weights."""
    own = _Way(read=work.context.read, state=state, query=work.query, fast=fast)
    if (check := work.context.check) is None:
        return [own]
    evidence = await _read(model, check.prompt.header + check.prompt.document, fast)
    query = check.query_after_evidence
    return [
        _Way(read="document", state=state, query=check.query, fast=fast),
        own,
        _Way(read="passages", state=evidence, query=query, fast=fast),
    ]


async def decode_base(model: CausalLM, work: EncodedAnswer, state: State) -> Answer:
    """Decode the base weights' answer to a request's query, from their state after the document."""
    way = _Way(read=work.context.read, state=state, query=work.query, fast=BASE)
    return await _decode(model, work, way, ignore)


def ignore(token: DecodedToken) -> None:
    """Tell nobody of a token."""


async def _decode(model: CausalLM, work: EncodedAnswer, way: _Way, on_token: OnToken) -> Answer:
    tokens: list[DecodedToken] = []

    def on_next(token: DecodedToken) -> None:
        tokens.append(token)
        on_token(token)

    decoded = await decode(
        model,
        way.query,
        way.state,
        way.fast,
        work.request.sampling,
        document=work.prompt.document,
        grammar=work.grammar,
        on_token=on_next,
    )
    return Answer(decoded=decoded, tokens=tokens, read=way.read, is_base=way.fast.is_base)


async def read_alone(
    document: FrozenDocument, work: EncodedAnswer, evidence: Sequence[Span]
) -> EvidenceAlone | None:
    """Read the evidence for a request's query without the rest of the document.

    Args:
        document: what was read first.
        work: the request.
        evidence: spans of the document's ``input_ids``.

    Returns:
        The evidence and the query; None if there is no evidence.
    """
    ids, start, query = document.input_ids[0].tolist(), document.context_tokens, work.query
    if work.context.read == "passages":
        return EvidenceAlone(state=document.state, query=query)
    read = ids[:start]
    if work.context.read == "document":
        if not evidence:
            return None
        read = [*read, *(token for a, b in evidence for token in ids[a:b])]
    state = await _read(document.model, read, BASE) if read else None
    return EvidenceAlone(state=state, query=query)


async def _read(model: CausalLM, ids: Sequence[int], fast: FastWeights) -> State:
    reader = Reader(model, torch.tensor([ids], device=model.device), fast=fast)
    while not reader.is_done:
        await Call(reader.read_piece, model.threads)
    return reader.state


def _likeliest(model: CausalLM, alone: EvidenceAlone, answers: Sequence[Answer]) -> Answer:
    """Return the first answer of those that the evidence alone makes likeliest."""

    def rank(answer: Answer) -> tuple[bool, float]:
        ids = answer.decoded.ids
        return bool(answer.decoded.text.strip()), log_likelihood(
            model, alone.state, alone.query, ids
        )

    return max(answers, key=rank)


@torch.no_grad()
def log_likelihood(
    model: CausalLM, state: State | None, query: Sequence[int], answer: Sequence[int]
) -> float:
    """Compute the log-probability in nats of an answer's tokens behind a query, under the base.

    Args:
        model: the base model.
        state: what the query follows; None: the start.
        query: token ids, at least one.
        answer: token ids.
    """
    if not answer:
        return 0.0
    ids = torch.tensor([[*query, *answer]], device=model.device)  # [1, Q + A]
    first = len(query)
    predicting = model(ids, state).hidden[:, first - 1 : -1]  # [1, A, D]
    log_prob, _ = model.token_stats(predicting, ids[:, first:], BASE)  # [1, A]
    return float(log_prob.sum())
