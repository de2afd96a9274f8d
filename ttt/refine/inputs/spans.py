"""Which spans of a document are adapted on instead of all of it, and the rows that they become."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from refine_server.kernels.select_positions import smooth
from refine_server.ttt.fast_weights import BASE, FastWeights
from refine_server.ttt.interface.config import AdaptConfig, OnQuerySpans, OnSpans, Selection
from refine_server.ttt.models.tape import Graph
from refine_server.ttt.pieces import Pieces
from refine_server.ttt.refine.inputs.query_spans import similar_spans, whole_sentences
from refine_server.ttt.refine.inputs.row_batch import RowBatch, TrunkBatch
from refine_server.ttt.refine.inputs.rows import Rows, Span

POOL_KERNEL = 5
"""Tokens over which scores are averaged before spans are chosen."""


@dataclass(frozen=True, kw_only=True, slots=True)
class QueryContext:
    """A query that is known when its document is adapted to, and the prompt around the document."""

    text: str
    """The query as its author wrote it: spans are chosen by its words."""
    header: list[int]
    """Tokens of the prompt before the document."""
    query: list[int]
    """Tokens of the prompt from the document's end to where the answer begins."""


def choose_spans(
    document: Rows, config: AdaptConfig, generator: torch.Generator, query: QueryContext | None
) -> Pieces[list[Span]]:
    """Choose the spans of a document that are adapted on; none where it is the document itself.

    By a query, the most similar ones, in the order that ``learn_as`` asks for; there are none when
    no word of the query occurs. Otherwise those with the highest entropy or surprise under the
    base weights, in the document's order.

    Raises:
        ValueError: the spans are to be chosen by a query, and there is none.
    """
    on, tokens = config.on, document.num_targets
    if not isinstance(on, OnSpans | OnQuerySpans):
        return []
    budget = tokens if config.guard == "none" else tokens * 3 // 4  # the guard holds spans out, too
    length = min(on.tokens, tokens)
    count = min(config.rollouts.positions, max(1, budget // length))
    if on.kind == "query_spans":
        if query is None:
            raise ValueError("adapt.on: query_spans needs a query")
        return _query_spans(document, on, query, count, length)
    trunk = yield from document.read_base()
    yield
    batch = TrunkBatch(RowBatch([document]), trunk, BASE)
    [stats] = yield from batch.read_token_stats(Graph())
    starts = select_spans(
        stats.entropy[0],
        -stats.log_prob[0],
        on.choose,
        count=count,
        length=length,
        generator=generator,
    )
    return [Span(document.first + start, document.first + start + length) for start in starts]


def _query_spans(
    document: Rows, on: OnQuerySpans, query: QueryContext, count: int, length: int
) -> list[Span]:
    """Choose spans by a query: the best first, or as whole sentences in the document's order.

    An answer is made of the latter, so that it says the same as the document where that is in
    context.
    """
    ids, tokenizer = document.input_ids[0, document.first :].tolist(), document.model.tokenizer
    starts = similar_spans(ids, query.text, tokenizer, count=count, length=length)
    spans = [(start, start + length) for start in starts]
    if on.learn_as != "text":
        spans = sorted(whole_sentences(ids, *span, tokenizer) for span in spans)
    return [Span(document.first + start, document.first + end) for start, end in spans]


def select_spans(
    entropy: Tensor,
    surprise: Tensor,
    rule: Selection,
    *,
    count: int,
    length: int,
    generator: torch.Generator,
) -> list[int]:
    """Select the ``count`` best windows of ``length`` tokens that do not overlap.

    Windows stand around the positions with the highest pooled score (the lowest for ``argmin``,
    random ones for ``uniform``); fewer are returned when no more fit.

    Args:
        entropy: [T], of the distribution that predicts each token.
        surprise: [T], minus the log-probability of each token.
        rule: which of the two is the score, and which end of it is best.
        count: the most windows.
        length: tokens of a window, at most T.
        generator: the only source of randomness.

    Returns:
        The first token of every window, rising.
    """
    scores = smooth((surprise if rule == "surprise" else entropy)[None], POOL_KERNEL)[0]
    if rule == "uniform":
        scores = torch.rand(scores.shape[0], generator=generator)
    order = scores.argsort(descending=rule != "argmin", stable=True).tolist()
    last = scores.shape[0] - length
    starts: list[int] = []
    for position in order:
        start = min(max(position - length // 2, 0), last)
        if all(abs(start - other) >= length for other in starts):
            starts.append(start)
        if len(starts) == count:
            break
    return sorted(starts)


def prompt_rows(document: Rows, fast: FastWeights, query: QueryContext | None) -> Rows:
    """Make one row of a document and the query behind it; what the guard holds out stays so.

    Raises:
        ValueError: there is no query.
    """
    if query is None:
        raise ValueError("adapt.on: prompt needs a query")
    ids = torch.cat([document.input_ids[0], document.input_ids.new_tensor(query.query)])
    context, positions = document.context_tokens, document.positions
    rows = Rows(document.model, ids[None], fast, context_tokens=context, positions=positions)
    rows.held_out = document.held_out
    own = torch.arange(document.input_ids.shape[1], device=ids.device)
    rows.places = torch.cat([own, own.new_full((len(query.query),), -1)])[None]
    return rows


def span_rows(document: Rows, spans: Sequence[Span], fast: FastWeights) -> Rows:
    """Make short rows of their own out of a document's spans, which all have one length."""
    ids = torch.stack([document.input_ids[0, start:end] for start, end in spans])
    rows = Rows(document.model, ids, fast, min_prefix=ids.shape[1] // 4)
    rows.places = torch.stack([torch.arange(*span, device=ids.device) for span in spans])
    return rows


def answer_rows(
    document: Rows, spans: Sequence[Span], fast: FastWeights, query: QueryContext, in_context: bool
) -> Rows:
    """Make a single row out of a document's spans, one after the other, as the answer to a query.

    The query and what stands before it are context: the prompt's header alone, or the document
    itself where the answer is to be learned ``in_context``.
    """
    ids = document.input_ids[0]
    header, question = ids.new_tensor(query.header), ids.new_tensor(query.query)
    prompt = torch.cat([ids if in_context else header, question])
    answer = torch.cat([ids[start:end] for start, end in spans])
    tokens = prompt.shape[0]
    own = [torch.arange(*span, device=ids.device) for span in spans]
    rows = Rows(
        document.model,
        torch.cat([prompt, answer])[None],
        fast,
        context_tokens=tokens,
        positions=document.positions,
        min_prefix=tokens,
    )
    rows.places = torch.cat([torch.full_like(prompt, -1), *own])[None]
    return rows
