"""The delta rule in chunks (arXiv 2406.06484, section 3.2), with gradients into boundary states.

flash-linear-attention's kernels return the gradients of the first and the last state only. A branch
starts from a state in between, so these kernels add every boundary state's gradient along the scan.

With M = (I + tril(beta K K^T, -1))^-1 a chunk has U = M beta V and W = M beta K, and then

    D = U - W S        S' = S + K^T D        o = (Q S + tril(Q K^T) D) / sqrt(K)

U, W and o are computed for all chunks in parallel; only S runs through the chunks in order, in
parallel over heads and columns. All arithmetic is fp32.
"""

from typing import Any

import torch
import triton
from torch import Tensor

from refine_server.kernels.delta_rule import CHUNK
from refine_server.kernels.delta_rule import triton_kernels as kernels
from refine_server.kernels.triton_support import GRID_LIMIT, check_dtype

COLUMNS = 32
"""Columns of the memory that one program scans: few, because the scan takes the longest."""


def delta_rule(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Compute ``naive.delta_rule`` in chunks; same arguments, same results."""
    check_dtype(q, k, v)
    B, H, T, K = q.shape
    V = v.shape[-1]
    if B * H > GRID_LIMIT:
        return _in_groups(q, k, v, beta, state)
    if state is None:
        state = torch.zeros(B, H, K, V, dtype=torch.float32, device=q.device)
    inputs = q, k, v, beta, state.to(torch.float32).expand(B, H, K, V)
    if T == 1 and not (torch.is_grad_enabled() and any(x.requires_grad for x in inputs)):
        return _step(*(x.contiguous() for x in inputs))
    o, states = _DeltaRule.apply(*inputs)
    return o, states


def _in_groups(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, state: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Run the rule over groups of rows, each of which fits into a grid."""
    rows = GRID_LIMIT // q.shape[1]
    states = [None] * -(-len(q) // rows) if state is None else state.split(rows)
    groups = zip(*(x.split(rows) for x in (q, k, v, beta)), states, strict=True)
    o, after = zip(*(delta_rule(*group) for group in groups), strict=True)
    return torch.cat(o), torch.cat(after)


def delta_states(k: Tensor, v: Tensor, beta: Tensor, state: Tensor | None = None) -> Tensor:
    """Compute ``naive.delta_states`` in chunks; same arguments, same results."""
    return delta_rule(k, k, v, beta, state)[1]


def _step(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """Process one token for a batch of states: the decode path."""
    B, H, K, V = state.shape
    o = torch.empty_like(v, dtype=q.dtype)
    states = torch.empty(B, H, 2, K, V, dtype=torch.float32, device=q.device)
    columns = min(64, triton.next_power_of_2(V))
    if B * H:
        kernels.step[(triton.cdiv(V, columns), B * H)](
            q, k, v, beta, state, o, states, K**-0.5, K=K, V=V,
            BLOCK_K=triton.next_power_of_2(K), BLOCK_V=columns, num_warps=4,
        )  # fmt: skip
    return o, states


class _Shape:
    """The sizes of one call, and those of the tiles that it is cut into."""

    def __init__(self, q: Tensor, v: Tensor) -> None:
        self.B, self.H, self.T, K = q.shape
        V = v.shape[-1]
        C = min(CHUNK, max(16, triton.next_power_of_2(self.T)))
        self.chunks = triton.cdiv(self.T, C)
        self.padded = self.chunks * C
        self.scale = K**-0.5
        columns = min(COLUMNS, max(16, triton.next_power_of_2(V)))
        self.column_blocks = triton.cdiv(V, columns)
        self.tile: dict[str, Any] = {
            "K": K,
            "V": V,
            "C": C,
            "BLOCK_K": max(16, triton.next_power_of_2(K)),
            "BLOCK_V": columns,
            "P": "tf32x3" if q.dtype == torch.float32 else "tf32",
        }

    @property
    def rows(self) -> int:
        """The number of sequences: one for each head of each row of the batch."""
        return self.B * self.H

    def scratch(self, like: Tensor, width: int) -> Tensor:
        """Return an uninitialised buffer [B H, chunks C, width]."""
        shape = self.rows, self.padded, width
        return torch.empty(*shape, dtype=torch.float32, device=like.device)


class _DeltaRule(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, beta: Tensor, state: Tensor
    ) -> tuple[Tensor, Tensor]:
        q, k, v, beta, state = (x.contiguous() for x in (q, k, v, beta, state))
        shape = _Shape(q, v)
        K, V, N, tile = q.shape[-1], v.shape[-1], shape.chunks, shape.tile
        inverse, w, d = (shape.scratch(q, width) for width in (tile["C"], K, V))
        states = torch.empty(shape.B, shape.H, N + 1, K, V, dtype=torch.float32, device=q.device)
        o = torch.empty_like(v, dtype=q.dtype)
        # Chunks are loaded ahead, as many as shared memory holds.
        stages = 3 if K * q.element_size() <= 256 else 1
        if shape.rows:
            kernels.solve[(N, shape.rows)](k, v, beta, inverse, w, d, shape.T, **tile, num_warps=4)
            kernels.scan[(shape.column_blocks, shape.rows)](
                k, w, d, state, states, shape.T, N, **tile, num_warps=4, num_stages=stages
            )
            kernels.read[(N, shape.column_blocks, shape.rows)](
                q, k, d, states, o, shape.T, shape.scale, **tile, num_warps=4
            )
        ctx.save_for_backward(q, k, v, beta, inverse, w, d, states)
        ctx.shape = shape
        return o, states

    @staticmethod
    def backward(ctx: Any, grad_o: Tensor, grad_states: Tensor) -> tuple[Tensor, ...]:
        q, k, v, beta, inverse, w, d, states = ctx.saved_tensors
        shape: _Shape = ctx.shape
        grad_o, grad_states = grad_o.contiguous(), grad_states.contiguous()
        grad_q, grad_k, grad_v, grad_beta = (torch.empty_like(x) for x in (q, k, v, beta))
        grad_d = shape.scratch(v, v.shape[-1])
        after = torch.empty_like(states[:, :, 1:], memory_format=torch.contiguous_format)
        grad_state = torch.empty_like(states[:, :, 0], memory_format=torch.contiguous_format)
        N, tile = shape.chunks, shape.tile
        K, C = tile["K"], tile["C"]
        warps = 8 if C > 16 else 4
        if shape.rows:
            kernels.read_backward[(N, shape.column_blocks, shape.rows)](
                q, k, grad_o, grad_d, shape.T, shape.scale, **tile, num_warps=4
            )
            kernels.scan_backward[(shape.column_blocks, shape.rows)](
                q, k, w, grad_o, grad_states, grad_d, after, grad_state,
                shape.T, N, shape.scale, **tile, num_warps=warps, num_stages=1,
            )  # fmt: skip
            grad_bk, grad_a, grad_p = (shape.scratch(q, width) for width in (K, C, C))
            kernels.solve_backward[(N, shape.rows)](
                k, v, beta, inverse, w, d, states, grad_o, grad_d, grad_v, grad_beta,
                grad_bk, grad_a, grad_p, shape.T, shape.scale,
                **(tile | {"BLOCK_V": 16}), num_warps=warps, num_stages=1,
            )  # fmt: skip
            part = min(64, tile["BLOCK_K"])
            kernels.chunk_backward[(N, triton.cdiv(K, part), shape.rows)](
                q, k, beta, d, states, grad_o, after, grad_bk, grad_a, grad_p, grad_q, grad_k,
                shape.T, shape.scale, **(tile | {"BLOCK_K": part}), num_warps=4,
            )  # fmt: skip
        return grad_q, grad_k, grad_v, grad_beta, grad_state
