"""The delta rule, gated or not, by the kernels of flash-linear-attention, for half precision.

Its public functions return gradients into the first and the last state alone; rollouts start from
states in between. Its kernels can do more: the forward scan returns the state after any segment,
and the reverse scan continues from the gradient of one. So the state before a chunk is found when
it is asked for, by scanning again up to there, and the reverse scan is cut at these chunks, where
it takes in the gradients that came back to them.

Kept for the backward pass are q, k, v, beta, g and the inverse of each chunk's triangular matrix;
w, u and the states are computed again. Inside, tensors are token-first: q, k [B, T, Hk, K] and
v [B, T, H, V], H a multiple of Hk.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from fla.ops.common.chunk_delta_h import (
    chunk_gated_delta_rule_bwd_dhu,
    chunk_gated_delta_rule_fwd_h,
)
from fla.ops.common.chunk_o import chunk_bwd_dqkwg, chunk_bwd_dv_local, chunk_fwd_o
from fla.ops.gated_delta_rule.chunk_fwd import chunk_gated_delta_rule_fwd_intra
from fla.ops.gated_delta_rule.fused_recurrent import fused_recurrent_gated_delta_rule_fwd
from fla.ops.gated_delta_rule.wy_fast import prepare_wy_repr_bwd, recompute_w_u_fwd
from fla.ops.utils import chunk_local_cumsum
from fla.ops.utils.constant import RCP_LN2
from torch import Tensor
from torch.autograd.function import once_differentiable
from typing_extensions import override

from refine_server.kernels.delta_rule import CHUNK
from refine_server.kernels.delta_rule.memory import LateGradients, Memory, OneChunk
from refine_server.kernels.host_values import host_values
from refine_server.kernels.triton_support import GRID_LIMIT


def gated_delta_rule(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor | None, beta: Tensor, state: Tensor | None = None
) -> tuple[Tensor, Memory]:
    """Compute ``naive.gated_delta_rule`` in chunks, its states when they are asked for.

    Args:
        q, k: [B, Hk, T, K], K at most 256, H a multiple of Hk: heads share keys in groups.
        v: [B, H, T, V].
        g: [B, H, T, 1], the log of the decay; None: nothing decays (``naive.delta_rule``).
        beta: [B, H, T].
        state: [B, H, K, V], the memory before the first token; None: zeros.

    Returns:
        o [B, H, T, V] in q's dtype, and the memories.
    """
    B, H, T, V = v.shape
    if B * H > GRID_LIMIT:
        return _in_groups(q, k, v, g, beta, state)
    q, k, v = (x.transpose(1, 2).contiguous() for x in (q, k, v))
    decay = None if g is None else g[..., 0].transpose(1, 2).to(torch.float32).contiguous()
    beta = beta.transpose(1, 2).contiguous()
    if state is None:
        state = torch.zeros(B, H, k.shape[-1], V, dtype=torch.float32, device=v.device)
    state = state.to(torch.float32).contiguous()
    inputs = q, k, v, decay, beta, state
    wants_grad = any(x is not None and x.requires_grad for x in inputs)
    if T == 1 and not (wants_grad and torch.is_grad_enabled()):
        o, final = fused_recurrent_gated_delta_rule_fwd(
            q, k, v, decay, beta=beta, scale=_scale(k), initial_state=state, output_final_state=True
        )
        return o.transpose(1, 2), OneChunk(state, final)
    returned = LateGradients()
    apply: Callable[..., tuple[Tensor, Tensor, Tensor]] = _Chunks.apply
    o, final, link = apply(*inputs, returned)
    if T < CHUNK:
        return o.transpose(1, 2), OneChunk(state, final)
    read = _Read(
        k.detach(),
        v.detach(),
        None if decay is None else decay.detach(),
        beta.detach(),
        state.detach(),
    )
    return o.transpose(1, 2), _Rescanned(read, final, link, returned)


class _Read(NamedTuple):
    """What was written to the memory."""

    k: Tensor
    v: Tensor
    g: Tensor | None
    """[B, T, H], the log of each token's decay."""
    beta: Tensor
    state: Tensor
    """[B, H, K, V], before the first token, fp32."""


class _Gradient(NamedTuple):
    """The gradient that came back to some states before chunks."""

    chunks: Sequence[Sequence[int]]
    """[B, G], the chunks, counted from 0."""
    values: Tensor
    """[B G, H, K, V]."""


class _Chunks(torch.autograd.Function):
    """The rule in chunks. ``link``, an output without elements, ties states in between to it.

    A backward pass reaches this node only after those of all states that were made with the link,
    and finds the gradients that they left in ``returned``.
    """

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        g: Tensor | None,
        beta: Tensor,
        state: Tensor,
        returned: LateGradients,
    ) -> tuple[Tensor, Tensor, Tensor]:
        G = _sums(g)
        w, u, A = chunk_gated_delta_rule_fwd_intra(k, v, G, beta)
        h, d, final = chunk_gated_delta_rule_fwd_h(
            k, w, u, G, initial_state=state, output_final_state=True
        )
        o = chunk_fwd_o(q, k, d, h, G, scale=_scale(k))
        ctx.save_for_backward(q, k, v, G, beta, state, A)
        ctx.returned = returned
        return o, final, state.new_empty(0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_o: Tensor, grad_final: Tensor, _: Tensor) -> tuple[Any, ...]:
        q, k, v, G, beta, state, A = ctx.saved_tensors
        scale, grad_o = _scale(k), grad_o.contiguous()
        w, u = recompute_w_u_fwd(k, v, beta, A, G)
        h, d, _ = chunk_gated_delta_rule_fwd_h(k, w, u, G, initial_state=state)
        grad_d = chunk_bwd_dv_local(q, k, grad_o, G, scale=scale)
        grad_h, grad_state, grad_d = _reverse_scan(
            (q, k, w, grad_o, grad_d, G),
            state,
            grad_final,
            _by_chunk(ctx.returned.left, state),
            scale,
        )
        ctx.returned.left.clear()
        grad_q, grad_k, grad_w, grad_G = chunk_bwd_dqkwg(
            q, k, d, grad_o, h, grad_h, w, G, dv=grad_d, scale=scale
        )
        of_k, grad_v, grad_beta, of_G = prepare_wy_repr_bwd(k, v, beta, A, grad_w, grad_d, G)
        grad_g = None
        if G is not None:
            grad_g = chunk_local_cumsum(grad_G.add_(of_G), chunk_size=CHUNK, reverse=True)
        grads = grad_q.to(q), grad_k.add_(of_k).to(k), grad_v.to(v), grad_g, grad_beta.to(beta)
        return (*grads, grad_state, None)


class _StatesBefore(torch.autograd.Function):
    """The states before some chunks; their gradients are left for ``_Chunks``."""

    @staticmethod
    def forward(
        ctx: Any,
        link: Tensor,
        read: _Read,
        chunks: Sequence[Sequence[int]],
        returned: LateGradients,
    ) -> Tensor:
        ctx.link, ctx.chunks, ctx.returned = link, chunks, returned
        states = _forward_scan(read, sorted({chunk for row in chunks for chunk in row}))
        return torch.stack([states[c][row] for row, own in enumerate(chunks) for c in own])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        ctx.returned.left.append(_Gradient(ctx.chunks, grad))
        return torch.zeros_like(ctx.link), None, None, None


@dataclass(frozen=True, slots=True)
class _Rescanned(Memory):
    """The memories of a sequence that is scanned again up to where one is asked for."""

    read: _Read
    final: Tensor
    """[B, H, K, V], after the last token."""
    link: Tensor
    """[0], in the graph of ``_Chunks``."""
    returned: LateGradients

    @override
    def last(self) -> Tensor:
        return self.final

    @override
    def before(self, positions: Tensor) -> Tensor:
        chunks = [[position // CHUNK for position in row] for row in host_values(positions)]
        apply: Callable[..., Tensor] = _StatesBefore.apply
        return apply(self.link, self.read, chunks, self.returned)


@dataclass(frozen=True, slots=True)
class _Grouped(Memory):
    """The memories of groups of rows."""

    groups: tuple[Memory, ...]
    rows: tuple[int, ...]
    """How many rows each group has."""

    @override
    def last(self) -> Tensor:
        return torch.cat([group.last() for group in self.groups])

    @override
    def before(self, positions: Tensor) -> Tensor:
        own = zip(self.groups, positions.split(self.rows), strict=True)
        return torch.cat([group.before(positions) for group, positions in own])


def _in_groups(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor | None, beta: Tensor, state: Tensor | None
) -> tuple[Tensor, Memory]:
    """Run the rule over groups of rows, each of which fits into a grid."""
    rows = GRID_LIMIT // v.shape[1]
    count = -(-len(v) // rows)
    parts = [[None] * count if x is None else x.split(rows) for x in (q, k, v, g, beta, state)]
    outputs, memories = zip(
        *(gated_delta_rule(*own) for own in zip(*parts, strict=True)), strict=True
    )
    return torch.cat(outputs), _Grouped(memories, tuple(len(own) for own in outputs))


def _scale(k: Tensor) -> float:
    return float(k.shape[-1] ** -0.5)


def _sums(g: Tensor | None) -> Tensor | None:
    """Add up the logs of the decays within each chunk, to base 2 as the kernels take them."""
    if g is None:
        return None
    sums: Tensor = chunk_local_cumsum(g, chunk_size=CHUNK, scale=RCP_LN2)
    return sums


def _forward_scan(read: _Read, chunks: Iterable[int]) -> dict[int, Tensor]:
    """Return the states [B, H, K, V] before these chunks, which rise; fp32.

    The states between a scan's chunks are rounded to the dtype of the keys, the one after its last
    chunk is not: the scan is cut at each state that is wanted.
    """
    k, v, g, beta, state = read
    G = _sums(g)
    w, u, _ = chunk_gated_delta_rule_fwd_intra(k, v, G, beta)
    states, before = {}, 0
    for chunk in chunks:
        if chunk > before:
            own = (_cut(x, before, chunk) for x in (k, w, u, G))
            _, _, state = chunk_gated_delta_rule_fwd_h(
                *own, initial_state=state, output_final_state=True, save_new_value=False
            )
        states[chunk], before = state, chunk
    return states


def _reverse_scan(
    inputs: tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None],
    state: Tensor,
    grad_final: Tensor,
    returned: dict[int, Tensor],
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Scan in reverse, cut where gradients came back to states in between.

    Args:
        inputs: q, k, w, the gradients of o and (those of the outputs) of d, and the decays.
        state: [B, H, K, V], before the first token.
        grad_final: [B, H, K, V], of the state after the last token.
        returned: [B, H, K, V] each, of the state before a chunk.
        scale: factor on q.

    Returns:
        The gradients of all chunks' states, of the first state and of d.
    """
    chunks = -(-inputs[0].shape[1] // CHUNK)
    cuts = sorted({0, chunks, *returned})
    grad_state = grad_final + returned[chunks] if chunks in returned else grad_final.contiguous()
    grad_states: list[Tensor] = []
    grad_ds: list[Tensor] = []
    for first, end in reversed(list(pairwise(cuts))):
        q, k, w, grad_o, grad_d, G = (_cut(x, first, end) for x in inputs)
        of_states, grad_state, grad_d = chunk_gated_delta_rule_bwd_dhu(
            q, k, w, grad_o, grad_d, G, h0=state, dht=grad_state, scale=scale
        )
        if first in returned:
            grad_state += returned[first]
        grad_states.insert(0, of_states)
        grad_ds.insert(0, grad_d)
    if len(grad_ds) == 1:
        return grad_states[0], grad_state, grad_ds[0]
    return torch.cat(grad_states, dim=1), grad_state, torch.cat(grad_ds, dim=1)


def _cut(x: Tensor | None, first: int, end: int) -> Tensor | None:
    """Cut x [B, T, ...] to the tokens of chunks ``first`` … ``end`` - 1."""
    return None if x is None else x[:, first * CHUNK : end * CHUNK].contiguous()


def _by_chunk(returned: Sequence[_Gradient], like: Tensor) -> dict[int, Tensor]:
    """Add up the gradients that came back to the states before each chunk, [B, H, K, V] each."""
    sums: dict[int, Tensor] = {}
    for gradient in returned:
        numbered = ((row, c) for row, own in enumerate(gradient.chunks) for c in own)
        for (row, chunk), value in zip(numbered, gradient.values, strict=True):
            if chunk not in sums:
                sums[chunk] = torch.zeros_like(like)
            sums[chunk][row] += value
    return sums
