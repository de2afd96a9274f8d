"""Evidence by the model: chunks that the question attends to, or is easier to predict behind."""

from collections.abc import Sequence

import torch
from torch import Tensor

from refine_server.ttt.evidence.chunks import Chunk
from refine_server.ttt.fast_weights import BASE
from refine_server.ttt.models.base import CausalLM
from refine_server.ttt.query_side.attention_target import SINK_TOKENS
from refine_server.ttt.query_side.frozen_document import FrozenDocument

BATCH = 8
"""Chunks that are read in one forward."""


@torch.no_grad()
def score_by_attention(
    document: FrozenDocument, question: Sequence[int], chunks: Sequence[Chunk], layer: int
) -> list[float]:
    """Score chunks by the share of the question's attention that a token of theirs gets.

    Attention sinks, the first tokens of the prompt, count for no chunk.

    Args:
        document: holds the chunks, whose tokens are counted from ``context_tokens`` on.
        question: the prompt from the document's end to where the answer begins.
        chunks: of the document.
        layer: the layer whose attention, of the question's last token and in the mean over heads,
            is taken.
    """
    ids = document.input_ids.new_tensor(list(question))[None]
    [weights] = document.model.attention_to_prefix(ids, document.state, BASE, [layer])
    mean = weights[0].mean(0)  # [P]
    mean[:SINK_TOKENS] = 0
    mean = mean[document.context_tokens :]  # [tokens of the document]
    places = [(chunk.start, chunk.end) for chunk in chunks]
    return [float(mean[a:b].mean()) if a < b else 0.0 for a, b in places]


@torch.no_grad()
def score_by_utility(
    model: CausalLM,
    header: Sequence[int],
    question: Sequence[int],
    passages: Sequence[Sequence[int]],
) -> list[float]:
    """Score passages by how much easier the question is to predict behind them.

    The score is the fall of the question's next-token loss, in nats per token, from behind the
    prompt's header alone to behind header and passage (arXiv 2606.06906, equation 2).

    Args:
        model: the unadapted model.
        header: tokens of the prompt before the document.
        question: the prompt from the document's end to where the answer begins.
        passages: tokens of each passage.
    """
    alone = _question_loss(model, [list(header)], question)[0]
    losses: list[float] = []
    for first in range(0, len(passages), BATCH):
        behind = [[*header, *passage] for passage in passages[first : first + BATCH]]
        losses += _question_loss(model, behind, question)
    return [alone - loss for loss in losses]


def _question_loss(
    model: CausalLM, before: Sequence[Sequence[int]], question: Sequence[int]
) -> list[float]:
    """Compute the question's next-token loss behind each text, without its first token."""
    rows = [[*text, *question] for text in before]
    longest = max(map(len, rows))
    # A model is causal, so what is filled up at the end changes nothing before it.
    padded = [row + [row[-1]] * (longest - len(row)) for row in rows]
    ids = torch.tensor(padded, device=model.device)  # [B, T]
    hidden = model(ids).hidden  # [B, T, D]
    at = torch.tensor(
        [range(len(text), len(text) + len(question) - 1) for text in map(list, before)],
        device=model.device,
    )  # [B, Q - 1], the tokens that predict
    row = torch.arange(len(rows), device=model.device)[:, None]
    log_prob, _ = model.token_stats(hidden[row, at], ids[row, at + 1], BASE)
    loss: Tensor = -log_prob.mean(-1)  # [B]
    return [float(value) for value in loss]
