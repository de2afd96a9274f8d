"""Every op that has a Triton form, at the shapes of real models: inputs and minimum cost."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from refine_server.kernels.fast_weight_optim import OptimState

Form = Callable[..., Any]
Run = Callable[[Form], list[Tensor]]


@dataclass(frozen=True, slots=True)
class Maker:
    """Makes random inputs."""

    device: str = "cpu"
    """Device of the inputs; on ``meta`` they have no values."""

    values: torch.dtype = torch.float32
    """The model's dtype, to which values are rounded."""

    computed: torch.dtype | None = None
    """Dtype of the tensors if it differs from ``values``, e.g. fp64 for a precise comparison."""

    def normal(self, *shape: int, scale: float = 1.0) -> Tensor:
        """Draw from a normal distribution, in the model's dtype."""
        return self._make(torch.randn, shape, self.values, scale)

    def single(self, *shape: int, scale: float = 1.0) -> Tensor:
        """Draw in fp32: states, optimiser moments and log-probabilities always have it."""
        return self._make(torch.randn, shape, torch.float32, scale)

    def uniform(self, *shape: int) -> Tensor:
        """Draw from [0, 1) in fp32."""
        return self._make(torch.rand, shape, torch.float32, 1.0)

    def integers(self, high: int, *shape: int) -> Tensor:
        """Draw integers from [0, high)."""
        return torch.randint(0, high, shape).to(self.device)

    def _make(
        self, draw: Callable[..., Tensor], shape: tuple[int, ...], dtype: torch.dtype, scale: float
    ) -> Tensor:
        if self.device == "meta":
            return torch.empty(shape, dtype=dtype, device="meta")
        x = (draw(*shape) * scale).to(dtype)
        return x.to(self.device, self.computed or dtype)


def with_gradients(call: Callable[[Form], Any], leaves: list[Tensor]) -> Run:
    """Return a run of the call: its outputs, and gradients of their sum for the leaves."""
    for leaf in leaves:
        leaf.requires_grad_()

    def run(form: Form) -> list[Tensor]:
        outputs = call(form)
        outputs = list(outputs) if isinstance(outputs, tuple) else [outputs]
        inside = [o for o in outputs if o.requires_grad]
        ones = [torch.ones_like(o) for o in inside]
        return [o.detach() for o in outputs] + list(torch.autograd.grad(inside, leaves, ones))

    return run


def token_stats(m: Maker, N: int, D: int, V: int) -> Run:
    """Make document tokens under the LM head, with the gradient of the hidden states."""
    hidden, weight, targets = m.normal(N, D), m.normal(V, D, scale=D**-0.5), m.integers(V, N)
    return with_gradients(lambda form: form(hidden, weight, targets), [hidden])


def select_positions(m: Maker, T: int, chunks: int) -> Run:
    """Make one document's entropies."""
    scores, noise = m.uniform(1, T), m.uniform(1, chunks, T // chunks)
    return lambda form: [form(scores, noise, chunks=chunks, kernel=5, rule="sample")]


def rollout_reward(m: Maker, T: int, positions: int, rollouts: int, k: int, D: int) -> Run:
    """Make one document's rollouts, for the hybrid reward."""
    N = positions * rollouts
    tokens, hidden = m.integers(4, N, k), m.normal(N, k, D)
    document, document_hidden = m.integers(4, 1, T), m.normal(1, T, D)
    starts = m.integers(T - k, 1, positions)
    return lambda form: list(form("hybrid", tokens, hidden, document, document_hidden, starts))


def grpo_loss(m: Maker, N: int, k: int) -> Run:
    """Make one step's rollouts, for surrogate and KL."""
    log_prob, old, base = (m.single(N, k, scale=0.3) for _ in range(3))
    advantages = m.single(N)
    return with_gradients(lambda form: form(log_prob, old, advantages, base), [log_prob])


def batched_low_rank(m: Maker, R: int, T: int, width: int, out: int, rank: int) -> Run:
    """Make one adapted projection of R requests, with gradients of A, B and x."""
    x, weight = m.normal(R, T, width), m.normal(out, width, scale=width**-0.5)
    a, b = m.normal(R, width, rank, scale=width**-0.5), m.normal(R, rank, out)
    return with_gradients(lambda form: form(x, weight, a, b), [x, a, b])


def delta_rule(m: Maker, B: int, H: int, T: int, K: int) -> Run:
    """Make one layer, with gradients of q, k, v, beta and the first state."""
    q, k = (m.normal(B, H, T, K, scale=K**-0.5) for _ in "qk")
    v, beta, state = m.normal(B, H, T, K), m.normal(B, H, T, scale=0.3), m.single(B, H, K, K)
    return with_gradients(lambda form: form(q, k, v, beta, state), [q, k, v, beta, state])


def delta_rule_step(m: Maker, B: int, H: int, K: int) -> Run:
    """Make one decoded token of B sequences."""
    q, k = (m.normal(B, H, 1, K, scale=K**-0.5) for _ in "qk")
    v, beta, state = m.normal(B, H, 1, K), m.normal(B, H, 1), m.single(B, H, K, K)
    return lambda form: list(form(q, k, v, beta, state))


def fast_weight_optim(m: Maker, R: int, layers: int, width: int, out: int, rank: int) -> Run:
    """Make one AdamW step of R requests' LoRA."""
    shapes = [(R, width, rank), (R, rank, out)] * layers
    params, grads = ([m.single(*shape) for shape in shapes] for _ in range(2))
    state = OptimState.new(params)
    rate, limit, decay = m.uniform(R), m.uniform(R), torch.zeros(R, device=m.device)
    active = torch.ones(R, dtype=torch.bool, device=m.device)

    def run(form: Form) -> list[Tensor]:
        norm, _ = form(params, grads, state, rate, limit, decay, active)
        return [norm, *params]

    return run


def lact_apply(m: Maker, B: int, H: int, T: int, D: int, F: int) -> Run:
    """Make one chunk that reads the memory, with all gradients."""
    q = m.normal(B, H, T, D)
    weights = _memory(m, B, H, D, F)
    return with_gradients(lambda form: form(q, *weights), [q, *weights])


def lact_gradient(m: Maker, B: int, H: int, T: int, D: int, F: int) -> Run:
    """Make one chunk that is written to the memory, with all gradients."""
    k, v, weights = m.normal(B, H, T, D), m.normal(B, H, T, D), _memory(m, B, H, D, F)
    rates = [m.uniform(B, H, T, 1) for _ in range(3)]
    return with_gradients(lambda form: form(k, v, *rates, *weights), [k, v, *rates, *weights])


def lact_update(m: Maker, B: int, H: int, D: int, F: int, muon: bool = False) -> Run:
    """Make a chunk's steps, added to the memory with momentum, with all gradients."""
    steps, before, momentum = (_memory(m, B, H, D, F) for _ in range(3))
    norms = [m.uniform(*w.shape[:-1], 1) for w in before]
    keep = m.uniform(B, H, 1, 1)

    def call(form: Form) -> tuple[Tensor, ...]:
        new = form(steps, before, norms, momentum, keep, muon=muon)
        return (*new.weights, *new.momentum)

    return with_gradients(call, [*steps, *before, *norms, *momentum, keep])


def lact_update_muon(m: Maker, B: int, H: int, D: int, F: int) -> Run:
    """Make the same with orthogonalised steps."""
    return lact_update(m, B, H, D, F, muon=True)


def _memory(m: Maker, B: int, H: int, D: int, F: int) -> list[Tensor]:
    shapes = ((F, D), (D, F), (F, D))
    return [m.single(B, H, *shape, scale=shape[1] ** -0.5) for shape in shapes]


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One op: how to call it, at which sizes, and its minimum cost."""

    name: str
    """Name of the case in reports."""

    folder: str
    """Folder of the op in ``kernels``."""

    op: str
    """Name of the op's function."""

    build: Callable[..., Run]
    """Makes the inputs of the given sizes and returns the call."""

    models: dict[str, dict[str, int]]
    """Sizes of real models, by name."""

    odd: dict[str, int]
    """Small, uneven sizes at which errors are measured."""

    cpu: dict[str, int]
    """Sizes for timing on a CPU."""

    work: Callable[..., tuple[float, float]]
    """Returns the minimum number of floating-point operations and bytes at given sizes, forward and
    backward, in bf16 where the model uses it."""


CASES = [
    Case(
        name="token_stats",
        folder="token_stats",
        op="token_stats",
        build=token_stats,
        models={
            "SmolLM2-135M": {"N": 2048, "D": 576, "V": 49152},
            "DeltaNet-1.3B": {"N": 2048, "D": 2048, "V": 32000},
            "LaCT-760M": {"N": 2048, "D": 1536, "V": 32000},
        },
        odd={"N": 65, "D": 72, "V": 257},
        cpu={"N": 512, "D": 576, "V": 16384},
        work=lambda N, D, V: (6.0 * N * D * V, 2.0 * (2 * V * D + 3 * N * D)),
    ),
    Case(
        name="select_positions",
        folder="select_positions",
        op="select_positions",
        build=select_positions,
        models={"any": {"T": 2047, "chunks": 8}},
        odd={"T": 257, "chunks": 3},
        cpu={"T": 8192, "chunks": 8},
        work=lambda T, chunks: (8.0 * T, 8.0 * T),
    ),
    Case(
        name="rollout_reward",
        folder="rollout_reward",
        op="rollout_reward",
        build=rollout_reward,
        models={
            "DeltaNet-1.3B": {"T": 2048, "positions": 8, "rollouts": 4, "k": 5, "D": 2048},
        },
        odd={"T": 63, "positions": 3, "rollouts": 2, "k": 5, "D": 100},
        cpu={"T": 2048, "positions": 8, "rollouts": 4, "k": 5, "D": 576},
        work=lambda T, positions, rollouts, k, D: (
            6.0 * positions * rollouts * k * D,
            2.0 * positions * (rollouts + 1) * k * D,
        ),
    ),
    Case(
        name="grpo_loss",
        folder="grpo_loss",
        op="grpo_loss",
        build=grpo_loss,
        models={"any": {"N": 32, "k": 5}},
        odd={"N": 63, "k": 5},
        cpu={"N": 512, "k": 5},
        work=lambda N, k: (30.0 * N * k, 4.0 * 6 * N * k),
    ),
    Case(
        name="batched_low_rank",
        folder="batched_low_rank",
        op="batched_low_rank",
        build=batched_low_rank,
        models={
            "SmolLM2-135M": {"R": 1, "T": 2048, "width": 1536, "out": 576, "rank": 16},
            "DeltaNet-1.3B": {"R": 8, "T": 256, "width": 2048, "out": 2048, "rank": 16},
            "SmolLM2-135M decoding": {"R": 8, "T": 1, "width": 1536, "out": 576, "rank": 16},
        },
        odd={"R": 3, "T": 63, "width": 100, "out": 65, "rank": 5},
        cpu={"R": 4, "T": 256, "width": 1536, "out": 576, "rank": 16},
        work=lambda R, T, width, out, rank: (
            R * T * (4.0 * width * out + 6.0 * rank * (width + out)),
            2.0 * (2 * width * out + 3 * R * T * (width + out) + 3 * R * rank * (width + out)),
        ),
    ),
    Case(
        name="delta_rule",
        folder="delta_rule",
        op="delta_rule",
        build=delta_rule,
        models={
            "DeltaNet-1.3B": {"B": 1, "H": 16, "T": 2048, "K": 128},
            "DeltaNet-1.3B branches": {"B": 32, "H": 16, "T": 5, "K": 128},
        },
        odd={"B": 1, "H": 2, "T": 70, "K": 20},
        cpu={"B": 1, "H": 4, "T": 512, "K": 64},
        work=lambda B, H, T, K: (
            B * H * T * (18.0 * K * K + 24.0 * 64 * K),
            B * H * T * 2.0 * 11 * K + B * H * (T / 64 + 2) * 8.0 * K * K,
        ),
    ),
    Case(
        name="delta_rule_step",
        folder="delta_rule",
        op="delta_rule",
        build=delta_rule_step,
        models={"DeltaNet-1.3B": {"B": 32, "H": 16, "K": 128}},
        odd={"B": 3, "H": 2, "K": 33},
        cpu={"B": 32, "H": 4, "K": 64},
        work=lambda B, H, K: (6.0 * B * H * K * K, B * H * 12.0 * K * K),
    ),
    Case(
        name="fast_weight_optim",
        folder="fast_weight_optim",
        op="fast_weight_optim",
        build=fast_weight_optim,
        models={
            "SmolLM2-135M": {"R": 8, "layers": 7, "width": 1536, "out": 576, "rank": 16},
            "DeltaNet-1.3B": {"R": 1, "layers": 96, "width": 2048, "out": 2048, "rank": 16},
        },
        odd={"R": 3, "layers": 2, "width": 63, "out": 257, "rank": 5},
        cpu={"R": 8, "layers": 7, "width": 1536, "out": 576, "rank": 16},
        work=lambda R, layers, width, out, rank: (
            15.0 * R * layers * rank * (width + out),
            4.0 * 8 * R * layers * rank * (width + out),
        ),
    ),
    Case(
        name="lact_apply",
        folder="lact_swiglu",
        op="lact_apply",
        build=lact_apply,
        models={"LaCT-760M": {"B": 1, "H": 4, "T": 2048, "D": 384, "F": 384}},
        odd={"B": 2, "H": 2, "T": 63, "D": 40, "F": 65},
        cpu={"B": 1, "H": 4, "T": 256, "D": 128, "F": 128},
        work=lambda B, H, T, D, F: (
            18.0 * B * H * T * D * F,
            2.0 * B * H * (5 * T * D + 9 * D * F),
        ),
    ),
    Case(
        name="lact_gradient",
        folder="lact_swiglu",
        op="lact_gradient",
        build=lact_gradient,
        models={"LaCT-760M": {"B": 1, "H": 4, "T": 2048, "D": 384, "F": 384}},
        odd={"B": 2, "H": 2, "T": 63, "D": 40, "F": 65},
        cpu={"B": 1, "H": 4, "T": 256, "D": 128, "F": 128},
        work=lambda B, H, T, D, F: (
            36.0 * B * H * T * D * F,
            2.0 * B * H * (7 * T * D + 18 * D * F),
        ),
    ),
    Case(
        name="lact_update",
        folder="lact_swiglu",
        op="lact_update",
        build=lact_update,
        models={"LaCT-760M": {"B": 1, "H": 4, "D": 384, "F": 384}},
        odd={"B": 1, "H": 2, "D": 40, "F": 65},
        cpu={"B": 1, "H": 4, "D": 128, "F": 128},
        work=lambda B, H, D, F: (57.0 * B * H * D * F, 4.0 * 3 * B * H * D * F * 10),
    ),
    Case(
        name="lact_update_muon",
        folder="lact_swiglu",
        op="lact_update",
        build=lact_update_muon,
        models={"LaCT-760M": {"B": 1, "H": 4, "D": 384, "F": 384}},
        odd={"B": 1, "H": 1, "D": 31, "F": 20},
        cpu={"B": 1, "H": 4, "D": 128, "F": 128},
        work=lambda B, H, D, F: (
            3 * B * H * 5 * (10.0 * D * F * min(D, F) + 4.0 * min(D, F) ** 3),
            4.0 * 3 * B * H * D * F * 10,
        ),
    ),
]
