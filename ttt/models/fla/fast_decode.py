"""A few tokens through DeltaNet layers, in as few operations as it takes.

A token of so small a model as tiny costs what its operations cost beside their arithmetic, and the
layers as ``FlaCausalLM.block`` writes them, for any input and any fast weights, make hundreds of
operations each. This is for the common case: sequences go on from their states, requests own no
more than low-rank deltas, and nothing is differentiated.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refine_server.kernels import dispatch
from refine_server.kernels.delta_rule import CHUNK
from refine_server.ttt.fast_weights import FastWeights
from refine_server.ttt.models.fla.delta_layer import L2_EPS, log_decay
from refine_server.ttt.models.layers.packing import join, join_taps
from refine_server.ttt.models.state import DeltaState


@dataclass(frozen=True)
class RowNorm:
    """Rows divided by their length: x / sqrt(scale x x^T + eps), times a weight if there is one.

    weight: [D]. eps: [1], as an operation takes it.
    """

    scale: float
    eps: Tensor
    weight: Tensor | None

    def __call__(self, x: Tensor) -> Tensor:
        """x [..., D]."""
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        inverse = torch.addcmul(self.eps, length, length, value=self.scale).rsqrt_()
        return x * inverse if self.weight is None else (x * self.weight).mul_(inverse)


@dataclass(frozen=True)
class Projections:
    """Projections of one input, side by side.

    weight: [in, sum of out]. names, sizes: the modules', in order.
    """

    weight: Tensor
    names: tuple[str, ...]
    sizes: tuple[int, ...]

    def __call__(self, x: Tensor, fast: FastWeights, onto: Tensor | None = None) -> Tensor:
        """x [n, in] to [n, sum of out], the requests' deltas included, added to ``onto``."""
        y = torch.mm(x, self.weight) if onto is None else torch.addmm(onto, x, self.weight)
        delta = fast.joint_delta(self.names, self.sizes)
        if delta is not None:
            a, b = delta
            R = a.shape[0]
            y.view(R, -1, y.shape[1]).baddbmm_(torch.bmm(x.view(R, -1, x.shape[1]), a), b)
        return y


@dataclass(frozen=True)
class Sizes:
    """Heads of keys and of values, their channels, and what else is projected beside q, k and v.

    gate: V H or 0. beta: H or 0; what it is multiplied with: strongest.
    """

    key_heads: int
    heads: int
    K: int
    V: int
    gate: int
    beta: int
    decay: int
    strongest: float

    @property
    def q_k(self) -> int:
        """Channels of queries and keys."""
        return 2 * self.key_heads * self.K

    @property
    def v(self) -> int:
        """Channels of values."""
        return self.heads * self.V


@dataclass(frozen=True)
class DirectLayer:
    """One layer: its weights as the products take them, its norms and sizes.

    inputs: queries, keys, values, and where the layer has them output gate, write strengths and
    decays. taps: [W, C] of the convolutions. log_decay: from the decays' projection to g.
    """

    norm: RowNorm
    inputs: Projections
    taps: Tensor | None
    l2_norm: RowNorm
    sizes: Sizes
    log_decay: Callable[[Tensor, FastWeights], Tensor] | None
    o_norm: RowNorm
    o: Projections
    mlp_norm: RowNorm
    gate_up: Projections
    down: Projections

    def read(self, x: Tensor, state: DeltaState, fast: FastWeights) -> tuple[Tensor, DeltaState]:
        """x [B, T, D] after a state, and the state after x."""
        shape = x.shape
        x = x.view(-1, shape[2])  # [B T, D]
        y = self.inputs(self.norm(x), fast).view(shape[0], shape[1], -1)
        o, after = self._mix(y, state, fast)
        x = self.o(o, fast, onto=x)
        gate, up = self.gate_up(self.mlp_norm(x), fast).chunk(2, dim=1)
        x = self.down(F.silu(gate).mul_(up), fast, onto=x)
        return x.view(shape), after

    def _mix(self, y: Tensor, state: DeltaState, fast: FastWeights) -> tuple[Tensor, DeltaState]:
        """From the projections y [B, T, ...] to the normed and gated output [B T, H V]."""
        s, (B, T, _) = self.sizes, y.shape
        widths = s.q_k + s.v, s.gate, s.beta, s.decay
        qkv, gate, beta, decay = torch.split_with_sizes(y, widths, dim=2)
        qkv, conv = self._convolve(qkv, state.conv)
        q_k, v = torch.split_with_sizes(qkv, (s.q_k, s.v), dim=2)
        q_k = self.l2_norm(q_k.view(B, T, 2 * s.key_heads, s.K))
        q, k = q_k.view(B, T, 2, s.key_heads, s.K).unbind(2)  # [B, T, Hk, K]
        if s.heads > s.key_heads:
            q, k = (x.repeat_interleave(s.heads // s.key_heads, 2) for x in (q, k))
        strength = beta.sigmoid() if s.beta else y.new_ones(B, T, s.heads)
        strength.mul_(s.strongest)
        g = None if self.log_decay is None else self.log_decay(decay, fast)
        v = v.view(B, T, s.heads, s.V)
        o, memory = _delta_rule(q, k, v, strength, g, state.memory)
        o = self.o_norm(o).view(B * T, -1)
        if s.gate:
            o.mul_(F.silu(gate).reshape(o.shape))
        return o, DeltaState(memory, conv)

    def _convolve(self, x: Tensor, before: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """SiLU of the convolution over x [B, T, C], and its last inputs [B, W - 1, C]."""
        if self.taps is None or before is None:
            return F.silu(x), None
        T = x.shape[1]
        inputs = torch.cat([before, x], dim=1)  # [B, W - 1 + T, C]
        if T == 1:
            y = (inputs * self.taps).sum(1, keepdim=True)
        else:
            y = dispatch.short_conv(inputs, self.taps.T)
        return F.silu(y, inplace=True), inputs[:, T:].clone()


def _delta_rule(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, g: Tensor | None, memory: Tensor
) -> tuple[Tensor, Tensor]:
    """The rule over [B, T, H, ...] from a memory [B, H, K, V]: o, and the memory afterwards."""
    B, T, H, _ = v.shape
    if T == 1:
        q, k, v = (x.flatten(0, 2).unsqueeze(1) for x in (q, k, v))  # [B H, 1, ...]
        S = memory if g is None else memory * g.exp().view(B, H, 1, 1)
        o, S = _one(q, k, v, beta.view(-1, 1, 1), S.flatten(0, 1))
        return o, S.view(memory.shape)
    if g is None and T <= CHUNK:
        q, k, v = (x.transpose(1, 2).flatten(0, 1) for x in (q, k, v))  # [B H, T, ...]
        o, S = _few(q, k, v, beta.mT.reshape(-1, T, 1), memory.flatten(0, 1))
        return o.view(B, H, T, -1).transpose(1, 2).contiguous(), S.view(memory.shape)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    if g is None:
        o, states = dispatch.delta_rule(q, k, v, beta.mT, memory)
    else:
        o, states = dispatch.gated_delta_rule(q, k, v, g.transpose(1, 2), beta.mT, memory)
    return o.transpose(1, 2).contiguous(), states[:, :, -1].clone()


def _one(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, S: Tensor) -> tuple[Tensor, Tensor]:
    """One token of [L, 1, ...] and its memory [L, K, V]: the recurrence."""
    write = torch.baddbmm(v, k, S, alpha=-1).mul_(beta)
    after = torch.addcmul(S, k.mT, write)
    return torch.baddbmm(v, q, after, beta=0, alpha=k.shape[2] ** -0.5), after


def _few(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, S: Tensor) -> tuple[Tensor, Tensor]:
    """A few tokens of [L, T, ...]: the chunk of ``kernels.delta_rule``, solved for D itself."""
    scale = k.shape[2] ** -0.5
    A = torch.bmm(k * beta, k.mT)  # of which only what is below the diagonal is read
    D = torch.baddbmm(v, k, S, alpha=-1).mul_(beta)
    D = torch.linalg.solve_triangular(A, D, upper=False, unitriangular=True)
    P = torch.bmm(q, k.mT).tril_()
    o = torch.bmm(q, S).baddbmm_(P, D, beta=scale, alpha=scale)
    return o, torch.baddbmm(S, k.mT, D)


def direct_layers(model: Any) -> list[DirectLayer] | None:
    """The layers of a ``DeltaNet``, its weights laid side by side; None where they cannot be."""
    layers = [_direct_layer(model, index) for index in range(model.num_layers)]
    found = [layer for layer in layers if layer is not None]
    return found if len(found) == len(layers) else None


def row_norm(norm: Any, eps: float) -> RowNorm:
    """An RMS norm [D]."""
    weight = norm.weight.detach()
    return RowNorm(1 / weight.shape[0], weight.new_full((1,), eps), weight)


def _direct_layer(model: Any, index: int) -> DirectLayer | None:
    config, layer, name = model.config, model.model.layers[index], f"model.layers.{index}"
    attn, (H, K, V) = layer.attn, config.memory_shape
    inputs = ["q_proj", "k_proj", "v_proj"]
    inputs += [p for p in ("g_proj", "b_proj", "a_proj") if hasattr(attn, p)]
    joints = [
        _projections(attn, f"{name}.attn", inputs),
        _projections(attn, f"{name}.attn", ["o_proj"]),
        _projections(layer.mlp, f"{name}.mlp", ["gate_proj", "up_proj"]),
        _projections(layer.mlp, f"{name}.mlp", ["down_proj"]),
    ]
    found = [joint for joint in joints if joint is not None]
    if len(found) < len(joints):
        return None
    decays = hasattr(attn, "a_proj")
    return DirectLayer(
        norm=row_norm(layer.attn_norm, config.norm_eps),
        inputs=found[0],
        taps=join_taps([attn.q_conv1d, attn.k_conv1d, attn.v_conv1d])
        if config.use_short_conv
        else None,
        l2_norm=RowNorm(1.0, attn.o_norm.weight.new_full((1,), L2_EPS), None),
        sizes=Sizes(
            key_heads=config.key_heads,
            heads=H,
            K=K,
            V=V,
            gate=H * V * config.use_gate,
            beta=H * config.use_beta,
            decay=H * decays,
            strongest=2.0 if config.allow_neg_eigval else 1.0,
        ),
        log_decay=(lambda a, fast: log_decay(a, attn, fast, f"{name}.attn")) if decays else None,
        o_norm=row_norm(attn.o_norm, config.norm_eps),
        o=found[1],
        mlp_norm=row_norm(layer.mlp_norm, config.norm_eps),
        gate_up=found[2],
        down=found[3],
    )


def _projections(parent: Any, name: str, parts: Sequence[str]) -> Projections | None:
    modules: list[nn.Linear] = [getattr(parent, p) for p in parts]
    joined = join(modules)
    if joined is None:
        return None
    names = tuple(f"{name}.{p}" for p in parts)
    return Projections(joined.T, names, tuple(m.out_features for m in modules))
