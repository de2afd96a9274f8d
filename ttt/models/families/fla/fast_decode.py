"""The fast decode path of DeltaNet and Gated DeltaNet: a few tokens in few operations.

In a small model a token costs what its operations cost beside their arithmetic, and
``FlaCausalLM.block``, which serves any input and any fast weights, makes hundreds of operations a
layer. This is for what ``DeltaNet._can_decode_fast`` accepts. One ``FastLayer`` computes the layer
of ``delta_net`` from packed weights:

    y = rms_norm(x) W_in + LoRA                # q, k, v, gate, beta and decay in one product
    q, k, v = silu(conv(y_qkv));  q, k = q / |q|, k / |k|
    o, S = delta rule over q, k, v from S      # recurrent for one token, one solve for a few
    x = x + (rms_norm(o) * silu(y_gate)) W_o
    x = x + (silu(gate) * up) W_down           # gate and up in one product
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refine_server.kernels import dispatch
from refine_server.kernels.delta_rule import CHUNK
from refine_server.ttt.fast_weights import FastWeights
from refine_server.ttt.models.families.fla.base import RMSNorm
from refine_server.ttt.models.layers.delta_rule import L2_EPS, log_decay
from refine_server.ttt.models.layers.packing import pack, pack_taps
from refine_server.ttt.models.state import DeltaState


@dataclass(frozen=True, slots=True)
class FastNorm:
    """Rows scaled by their length: x / sqrt(scale x x^T + eps), times a weight if there is one."""

    scale: float
    """1 / D for an RMS norm, 1 for an L2 norm."""
    eps: Tensor
    """[1], as an operation takes it."""
    weight: Tensor | None
    """[D]."""

    @classmethod
    def of(cls, norm: RMSNorm, eps: float) -> "FastNorm":
        """Take over an RMS norm [D]."""
        weight = norm.weight.detach()
        return cls(1 / weight.shape[0], weight.new_full((1,), eps), weight)

    def __call__(self, x: Tensor) -> Tensor:
        """Norm x [..., D]."""
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        inverse = torch.addcmul(self.eps, length, length, value=self.scale).rsqrt_()
        return x * inverse if self.weight is None else (x * self.weight).mul_(inverse)


@dataclass(frozen=True, slots=True)
class PackedProjections:
    """Projections of one input in one matrix."""

    weight: Tensor
    """[in, sum of out]."""
    names: tuple[str, ...]
    """The modules' names, in order."""
    sizes: tuple[int, ...]
    """The modules' out, in order."""

    def __call__(self, x: Tensor, fast: FastWeights, onto: Tensor | None = None) -> Tensor:
        """Project x [n, in] to [n, sum of out], with the requests' LoRA, added to ``onto``."""
        y = torch.mm(x, self.weight) if onto is None else torch.addmm(onto, x, self.weight)
        lora = fast.joint_lora(self.names, self.sizes)
        if lora is not None:
            a, b = lora
            R = a.shape[0]
            y.view(R, -1, y.shape[1]).baddbmm_(torch.bmm(x.view(R, -1, x.shape[1]), a), b)
        return y


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """Heads and channels of a layer, and the widths of what its input projection holds."""

    key_heads: int
    """Hk, heads of queries and keys."""
    heads: int
    """H, heads of values, a multiple of Hk."""
    K: int
    """Channels of a head's key."""
    V: int
    """Channels of a head's value."""
    gate: int
    """H V, or 0 for a layer without output gate."""
    beta: int
    """H, or 0 for a layer that writes everything with the same strength."""
    decay: int
    """H, or 0 for a layer whose memory does not decay."""
    max_beta: float
    """What the sigmoid of beta is multiplied with."""

    @property
    def q_k(self) -> int:
        """Channels of queries and keys."""
        return 2 * self.key_heads * self.K

    @property
    def v(self) -> int:
        """Channels of values."""
        return self.heads * self.V

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the projections of a layer's input, in the order of their outputs."""
        optional = {"g_proj": self.gate, "b_proj": self.beta, "a_proj": self.decay}
        return ("q_proj", "k_proj", "v_proj", *(name for name, size in optional.items() if size))


@dataclass(frozen=True, kw_only=True, slots=True)
class FastLayer:
    """One layer, its weights as the products take them."""

    sizes: Sizes
    norm: FastNorm
    inputs: PackedProjections
    """To queries, keys, values, gate, beta and decay."""
    taps: Tensor | None
    """[W, C], of the convolution of queries, keys and values."""
    l2_norm: FastNorm
    log_decay: Callable[[Tensor, FastWeights], Tensor] | None
    """From the decay's projection [B, T, H] to g [B, T, H, 1]."""
    o_norm: FastNorm
    o: PackedProjections
    mlp_norm: FastNorm
    gate_up: PackedProjections
    down: PackedProjections

    def decode(self, x: Tensor, state: DeltaState, fast: FastWeights) -> tuple[Tensor, DeltaState]:
        """Run the layer over x [B, T, D] from a state; return the state after x as well."""
        shape = x.shape
        x = x.view(-1, shape[2])  # [B T, D]
        y = self.inputs(self.norm(x), fast).view(shape[0], shape[1], -1)
        o, after = self._mix(y, state, fast)
        x = self.o(o, fast, onto=x)
        gate, up = self.gate_up(self.mlp_norm(x), fast).chunk(2, dim=1)
        x = self.down(F.silu(gate).mul_(up), fast, onto=x)
        return x.view(shape), after

    def _mix(self, y: Tensor, state: DeltaState, fast: FastWeights) -> tuple[Tensor, DeltaState]:
        """Run the delta rule over projections y [B, T, ...] to normed, gated output [B T, H V]."""
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
        strength.mul_(s.max_beta)
        g = None if self.log_decay is None else self.log_decay(decay, fast)
        v = v.view(B, T, s.heads, s.V)
        o, memory = _delta_rule(q, k, v, strength, g, state.memory)
        o = self.o_norm(o).view(B * T, -1)
        if s.gate:
            o.mul_(F.silu(gate).reshape(o.shape))
        return o, DeltaState(memory, conv)

    def _convolve(self, x: Tensor, before: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Convolve x [B, T, C] and apply SiLU; return the last inputs [B, W - 1, C] as well."""
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
    """Run the rule over [B, T, H, ...] from a memory [B, H, K, V]; return o and the new memory."""
    B, T, H, _ = v.shape
    if T == 1:
        q, k, v = (x.flatten(0, 2).unsqueeze(1) for x in (q, k, v))  # [B H, 1, ...]
        S = memory if g is None else memory * g.exp().view(B, H, 1, 1)
        o, S = _recurrent(q, k, v, beta.view(-1, 1, 1), S.flatten(0, 1))
        return o, S.view(memory.shape)
    if g is None and T <= CHUNK:
        q, k, v = (x.transpose(1, 2).flatten(0, 1) for x in (q, k, v))  # [B H, T, ...]
        o, S = _one_chunk(q, k, v, beta.mT.reshape(-1, T, 1), memory.flatten(0, 1))
        return o.view(B, H, T, -1).transpose(1, 2).contiguous(), S.view(memory.shape)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    if g is None:
        o, states = dispatch.delta_rule(q, k, v, beta.mT, memory)
    else:
        o, states = dispatch.gated_delta_rule(q, k, v, g.transpose(1, 2), beta.mT, memory)
    return o.transpose(1, 2).contiguous(), states[:, :, -1].clone()


def _recurrent(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, S: Tensor) -> tuple[Tensor, Tensor]:
    """Write and read one token of [L, 1, ...], memory [L, K, V], by the recurrence."""
    write = torch.baddbmm(v, k, S, alpha=-1).mul_(beta)
    after = torch.addcmul(S, k.mT, write)
    return torch.baddbmm(v, q, after, beta=0, alpha=k.shape[2] ** -0.5), after


def _one_chunk(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, S: Tensor) -> tuple[Tensor, Tensor]:
    """Write and read a few tokens of [L, T, ...] as one chunk of ``kernels.delta_rule``.

    The triangular system is solved for D itself, so its inverse is never made.
    """
    scale = k.shape[2] ** -0.5
    A = torch.bmm(k * beta, k.mT)  # of which only what is below the diagonal is read
    D = torch.baddbmm(v, k, S, alpha=-1).mul_(beta)
    D = torch.linalg.solve_triangular(A, D, upper=False, unitriangular=True)
    P = torch.bmm(q, k.mT).tril_()
    o = torch.bmm(q, S).baddbmm_(P, D, beta=scale, alpha=scale)
    return o, torch.baddbmm(S, k.mT, D)


def fast_layers(
    blocks: Iterable[Any], sizes: Sizes, *, norm_eps: float, short_conv: bool
) -> list[FastLayer] | None:
    """Pack the weights of ``FlaBlock``s of delta-rule layers; None where they cannot be packed.

    Args:
        blocks: the parameters of all layers, in order.
        sizes: of every layer.
        norm_eps: of every RMS norm.
        short_conv: whether queries, keys and values are convolved.
    """
    layers = [
        _fast_layer(block, f"model.layers.{index}", sizes, norm_eps, short_conv)
        for index, block in enumerate(blocks)
    ]
    packed = [layer for layer in layers if layer is not None]
    return packed if len(packed) == len(layers) else None


def _fast_layer(
    block: Any, name: str, sizes: Sizes, norm_eps: float, short_conv: bool
) -> FastLayer | None:
    attn, mlp = block.attn, block.mlp
    inputs = _packed(attn, f"{name}.attn", sizes.inputs)
    o = _packed(attn, f"{name}.attn", ("o_proj",))
    gate_up = _packed(mlp, f"{name}.mlp", ("gate_proj", "up_proj"))
    down = _packed(mlp, f"{name}.mlp", ("down_proj",))
    if inputs is None or o is None or gate_up is None or down is None:
        return None
    return FastLayer(
        sizes=sizes,
        norm=FastNorm.of(block.attn_norm, norm_eps),
        inputs=inputs,
        taps=pack_taps([attn.q_conv1d, attn.k_conv1d, attn.v_conv1d]) if short_conv else None,
        l2_norm=FastNorm(1.0, attn.o_norm.weight.new_full((1,), L2_EPS), None),
        log_decay=partial(_log_decay, attn, f"{name}.attn") if sizes.decay else None,
        o_norm=FastNorm.of(attn.o_norm, norm_eps),
        o=o,
        mlp_norm=FastNorm.of(block.mlp_norm, norm_eps),
        gate_up=gate_up,
        down=down,
    )


def _log_decay(attn: Any, name: str, a: Tensor, fast: FastWeights) -> Tensor:
    return log_decay(a, attn, fast, name)


def _packed(parent: nn.Module, name: str, parts: Sequence[str]) -> PackedProjections | None:
    modules: list[Any] = [parent.get_submodule(part) for part in parts]
    packed = pack(modules)
    if packed is None:
        return None
    names = tuple(f"{name}.{part}" for part in parts)
    return PackedProjections(packed.T, names, tuple(m.weight.shape[0] for m in modules))
