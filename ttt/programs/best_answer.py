"""The best of three answers: behind the document, behind document and evidence, behind evidence.

Evidence helps with some questions and misleads with others. An answer that rests on the evidence is
likely behind the evidence alone, whatever was read when it was decoded, so that is what answers are
compared by: best-of-n decoding with the unadapted model as its own verifier.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from refine_server.ttt.batching import Call
from refine_server.ttt.decoding.decoder import DecodedText, DecodedToken, decode
from refine_server.ttt.decoding.prompts.prompt import DocumentPrompt
from refine_server.ttt.fast_weights import BASE, FastWeights
from refine_server.ttt.interface.evidence import ReadContext
from refine_server.ttt.models.base import CausalLM
from refine_server.ttt.models.reader import Reader
from refine_server.ttt.models.state import State
from refine_server.ttt.programs.encode import EncodedAnswer


@dataclass(frozen=True, kw_only=True, slots=True)
class _Answer:
    read: ReadContext
    decoded: DecodedText
    tokens: list[DecodedToken]


async def decode_answer(
    model: CausalLM,
    work: EncodedAnswer,
    state: State,
    fast: FastWeights,
    on_token: Callable[[DecodedToken], None],
) -> tuple[DecodedText, ReadContext]:
    """Decode the answer to a request from the state after its document.

    Where the request asks for the best answer, that is the one of three that the base model finds
    likeliest, whole and with its end, behind the evidence alone. An empty answer is better than
    none only.

    Args:
        model: the base model.
        work: the request.
        state: after the document; it is not changed.
        fast: the weights that the document was read under.
        on_token: called with each token of the answer; of the best one as soon as it is known.

    Returns:
        The answer, and what was read before its query.
    """
    context, sampling, known = work.context, work.request.sampling, work.prompt.document
    if (check := context.check) is None:
        decoded = await decode(
            model,
            work.query,
            state,
            fast,
            sampling,
            document=known,
            grammar=work.grammar,
            on_token=on_token,
        )
        return decoded, context.read
    evidence = await _read(model, check.prompt, BASE)
    own = evidence if fast.is_base else await _read(model, check.prompt, fast)
    ways: dict[ReadContext, tuple[State, list[int]]] = {
        "document": (state, check.query),
        context.read: (state, work.query),
        "passages": (own, check.query_after_evidence),
    }
    answers: list[_Answer] = []
    for read, (after, query) in ways.items():
        tokens: list[DecodedToken] = []
        decoded = await decode(
            model,
            query,
            after,
            fast,
            sampling,
            document=known,
            grammar=work.grammar,
            on_token=tokens.append,
        )
        answers.append(_Answer(read=read, decoded=decoded, tokens=tokens))

    def rank() -> list[tuple[bool, float]]:
        query = check.query_after_evidence
        return [
            (bool(a.decoded.text.strip()), log_likelihood(model, evidence, query, a.decoded.ids))
            for a in answers
        ]

    ranks = await Call(rank, model.threads)
    best = answers[ranks.index(max(ranks))]
    for token in best.tokens:
        on_token(token)
    return best.decoded, best.read


async def _read(model: CausalLM, prompt: DocumentPrompt, fast: FastWeights) -> State:
    ids = torch.tensor([prompt.header + prompt.document], device=model.device)
    reader = Reader(model, ids, fast=fast)
    while not reader.is_done:
        await Call(reader.read_piece, model.threads)
    return reader.state


@torch.no_grad()
def log_likelihood(
    model: CausalLM, state: State, query: Sequence[int], answer: Sequence[int]
) -> float:
    """Compute the log-probability in nats of an answer's tokens behind a query, under the base.

    Args:
        model: the base model.
        state: what the query follows.
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
