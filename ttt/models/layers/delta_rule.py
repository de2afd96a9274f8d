"""What delta-rule layers share: the short convolution before the rule, and the rule itself."""

from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refine_server.kernels import dispatch
from refine_server.ttt.fast_weights import FastWeights
from refine_server.ttt.models.layers.functional import own_parameter, per_row
from refine_server.ttt.models.state import DeltaState, DeltaTrace, with_past_inputs

L2_EPS = 1e-6
"""As in fla's l2norm."""


class DecayParameters(Protocol):
    """A layer whose memory decays: the parameters of the decay, [H] each."""

    A_log: nn.Parameter
    dt_bias: nn.Parameter


def convolve(
    x: Tensor, convs: Sequence[tuple[str, nn.Conv1d]], state: DeltaState | None, fast: FastWeights
) -> tuple[Tensor, Tensor]:
    """Apply a causal convolution and SiLU over x [B, T, C].

    Args:
        x: the channels of all convolutions, side by side.
        convs: name and module (a depthwise ``Conv1d`` without bias) of each.
        state: what came before; None: nothing.
        fast: the requests' own taps, if they have them.

    Returns:
        [B, T, C], and the convolution's inputs with those before x: [B, W - 1 + T, C].
    """
    W = convs[0][1].weight.shape[-1]
    inputs = with_past_inputs(None if state is None else state.conv, x, W)
    taps = torch.cat([_taps(c.weight, fast, name, x.shape[0]) for name, c in convs], dim=-2)
    return dispatch.short_conv_silu(inputs, taps.to(x.dtype)), inputs


def delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    g: Tensor | None,
    state: DeltaState | None,
    initial: Tensor | None,
    conv_inputs: Tensor | None,
) -> tuple[Tensor, DeltaTrace]:
    """Read and rewrite the memory, with keys and queries scaled to norm 1.

    Args:
        q, k: [B, T, Hk, K]. v: [B, T, H, V], H a multiple of Hk: heads share keys in groups.
        beta: [B, T, H]. g: [B, T, H, 1 | K], or None: nothing decays.
        state: what came before; without it the memory starts from ``initial`` [R, H, K, V], or
            from zeros.
        conv_inputs: for the trace.

    Returns:
        o: [B, T, H, V], and the trace.
    """
    q, k = (dispatch.l2_norm(x, L2_EPS) for x in (q, k))
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    beta = beta.mT
    g = None if g is None else g.transpose(1, 2)
    before = initial if state is None else state.memory
    if before is not None:
        before = per_row(before, q.shape[0])
    o, memory = dispatch.delta_memory(q, k, v, g, beta, before)
    trace = DeltaTrace(k=k, v=v, beta=beta, memory=memory, conv_inputs=conv_inputs, g=g)
    return o.transpose(1, 2), trace


def log_decay(a: Tensor, attn: DecayParameters, fast: FastWeights, name: str) -> Tensor:
    """Compute g [B, T, H, 1] = -exp(A_log) softplus(a + dt_bias) from its projection a."""
    wide = torch.promote_types(a.dtype, torch.float32)
    rate = own_parameter(attn.A_log, fast, f"{name}.A_log", a).to(wide).exp()
    bias = own_parameter(attn.dt_bias, fast, f"{name}.dt_bias", a).to(wide)
    return -(rate * F.softplus(a.to(wide) + bias))[..., None]


def _taps(weight: Tensor, fast: FastWeights, name: str, rows: int) -> Tensor:
    """Return a convolution's taps: [C, W], or [rows, C, W] when the requests own them."""
    own = fast.get(f"{name}.weight")
    return weight[:, 0] if own is None else per_row(own[:, :, 0], rows)
