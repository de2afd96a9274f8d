"""Nested post-training: inner adaptation, outer task loss (``refine-server train nested``).

Every step makes fresh documents, adapts a copy of the fast weights to each of them by the server's
own loop, and lowers the loss of answers to questions about them: from memory (adapted weights only)
and in context (from the state after the document). The gradient is of first order (arXiv
1803.02999, 1703.03400): it is taken at the adapted weights and applied to the base weights. Batches
of pre-training texts are part of every step.
"""

import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from refine_server.ttt.fast_weights import FastWeights
from refine_server.ttt.interface.config import (
    AdaptConfig,
    FastWeightConfig,
    LossConfig,
    OptimizerConfig,
    RolloutConfig,
)
from refine_server.ttt.models import CausalLM
from refine_server.ttt.models.state import State
from refine_server.ttt.refine.inputs.rows import Rows
from refine_server.ttt.refine.inputs.step_inputs import StepInputs
from refine_server.ttt.refine.loss import step_losses
from refine_server.ttt.refine.optimizer import FastWeightOptimizer
from refine_server.ttt.training import corpus, tiny
from refine_server.ttt.training.errors import TrainingError
from refine_server.ttt.training.run import Run, StepLoss, warm_cosine

ADAPT = AdaptConfig(
    rollouts=RolloutConfig(positions=8, per_position=4, tokens=2, select="surprise"),
    loss=LossConfig(grpo=0.2),
    optimizer=OptimizerConfig(learning_rate=0.012, max_grad_norm=1e4, steps=5),
    fast_weights=FastWeightConfig(targets="fast_weights", rank=64),
    guard="none",
)
"""Adaptation in the first stage of ``tiny-nested``: answering from memory."""

CONTEXT = ADAPT.updated(
    rollouts={"demonstration": True, "positions": 32, "per_position": 1},
    loss={"grpo": 0.5},
    optimizer={"learning_rate": 0.0015},
    fast_weights={"targets": "all"},
)
"""Adaptation in its second stage: answering in context, from documents of many facts."""

BEST = {
    "memory": CONTEXT.updated(
        loss={"grpo": 0.2},
        optimizer={"learning_rate": 0.008, "steps": 10},
        fast_weights={"targets": "fast_weights"},
    ),
    "context": CONTEXT.updated(loss={"grpo": 0.2}),
}
"""Best adaptation of ``tiny-nested`` for each regime (benchmarks/results/tiny-nested.md)."""


@dataclass(frozen=True)
class Recipe:
    """Everything that the result depends on, except for the initial weights.

    ``decay_steps``: number of steps over which the learning rate decays; a run may end earlier.
    ``sizes``: tokens and facts of a step's documents, in increasing order. ``refine_share``: share
    of steps that adapt with REFINE; the others adapt with its next-token loss only.
    ``pretraining_tokens``: number of tokens of pre-training texts in a step.
    """

    seed: int = 0
    steps: int = 320
    decay_steps: int = 400
    learning_rate: float = 1e-3
    final_learning_rate: float = 1e-4
    warmup_steps: int = 20
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    adapt: AdaptConfig = field(default_factory=lambda: ADAPT)
    refine_share: float = 0.5
    sizes: tuple[tuple[int, int], ...] = (
        (56, 6),
        (112, 8),
        (220, 16),
        (220, 8),
        (440, 16),
        (440, 32),
    )
    first_steps: int = 25
    tokens_per_step: int = 1792
    most_documents: int = 16
    questions: int = 6
    memory_weight: float = 1.0
    context_weight: float = 0.5
    pretraining_weight: float = 1.0
    pretraining_tokens: int = 2048

    def rate(self, step: int) -> float:
        """Return the learning rate: linear warm-up, then cosine decay."""
        return warm_cosine(
            step, self.decay_steps, self.warmup_steps, self.learning_rate, self.final_learning_rate
        )

    def size(self, step: int, rng: random.Random) -> tuple[int, int]:
        """Return tokens and facts of this step's documents: one of the last four available sizes.

        Every ``first_steps`` steps, the next size becomes available.
        """
        return rng.choice(self.sizes[: 1 + step // self.first_steps][-4:])


MANY_FACTS = Recipe(
    seed=1,
    steps=80,
    decay_steps=80,
    warmup_steps=5,
    adapt=CONTEXT,
    refine_share=0.75,
    sizes=((220, 16), (440, 32), (500, 40)),
    first_steps=1,
    tokens_per_step=1760,
    questions=12,
    memory_weight=0.5,
    context_weight=1.0,
    pretraining_weight=2.0,
)
"""The second stage, which starts from the weights of the first."""

RECIPES = {"first": Recipe(), "many_facts": MANY_FACTS}
"""The stages of ``tiny-nested`` by name."""


@dataclass(frozen=True)
class Episode:
    """R documents of T tokens, truncated to a common length, and Q questions about each.

    ids: [R, T]. queries: [R Q, L], question and answer, padded. at: [R Q, A], positions in a query
    where its answer's tokens are predicted. targets: [R Q, A], those tokens. counted: [R Q, A],
    False in the padding of shorter answers.
    """

    ids: Tensor
    queries: Tensor
    at: Tensor
    targets: Tensor
    counted: Tensor


def make_episode(
    rng: random.Random, tokenizer: Any, tokens: int, facts: int, documents: int, questions: int
) -> Episode:
    """Make fresh documents, and questions that their first T tokens answer."""
    backend = tokenizer.backend_tokenizer
    made = [
        corpus.make_document(rng, corpus.make_facts(rng, facts), tokens) for _ in range(documents)
    ]
    encodings = backend.encode_batch([document.text for document in made])
    T = min(len(encoding.ids) for encoding in encodings)
    asked, answers = [], []
    for document, encoding in zip(made, encodings, strict=True):
        end = encoding.offsets[T - 1][0]
        stated = [f for f in document.facts if document.text.index(f.value) + len(f.value) <= end]
        for question in corpus.make_questions(rng, stated or document.facts[:1], questions):
            asked.append(f"{corpus.BETWEEN}{question.query}{corpus.AFTER}")
            answers.append(f" {question.answer}{corpus.EOS}")
    asked_ids = [encoding.ids for encoding in backend.encode_batch(asked)]
    answer_ids = [encoding.ids for encoding in backend.encode_batch(answers)]
    ids = torch.tensor([encoding.ids[:T] for encoding in encodings])
    return Episode(ids, *encode_queries(asked_ids, answer_ids))


def encode_queries(
    asked: list[list[int]], answers: list[list[int]]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the last four fields of an ``Episode``."""
    A = max(map(len, answers))
    L = max(len(q) + len(a) for q, a in zip(asked, answers, strict=True))
    queries = torch.zeros(len(asked), L, dtype=torch.long)
    targets = torch.zeros(len(asked), A, dtype=torch.long)
    counted = torch.zeros(len(asked), A, dtype=torch.bool)
    for row, (question, answer) in enumerate(zip(asked, answers, strict=True)):
        queries[row, : len(question) + len(answer)] = torch.tensor(question + answer)
        targets[row, : len(answer)] = torch.tensor(answer)
        counted[row, : len(answer)] = True
    first = torch.tensor([len(question) - 1 for question in asked])
    at = (first[:, None] + torch.arange(A)).clamp_max(L - 1)
    return queries, at, targets, counted


def adapt_copies(model: CausalLM, ids: Tensor, config: AdaptConfig) -> FastWeights:
    """Make a copy of the fast weights for each row of ids [R, T], adapted to it alone; no graph.

    The rows are one batch of the server's loop. Its losses are means over rows, so they are
    multiplied by R to give every row the gradient that it would have alone.
    """
    if config.on.kind != "document":
        raise TrainingError(f"on: nested training adapts on documents, not on {config.on.kind}")
    R = ids.shape[0]
    own = model.new_fast_weights(config.fast_weights.targets, config.fast_weights.rank, config.seed)
    fast = FastWeights.stack([own] * R)
    rows = Rows(model, ids, fast, positions=config.rollouts.positions)
    inputs, optimizer = StepInputs.of(rows, fast, config), FastWeightOptimizer(config, fast)
    for _ in range(config.optimizer.steps):
        [loss] = step_losses([inputs])
        optimizer.zero_grad()
        (loss.total * R).backward()
        optimizer.step(loss.total.detach().isfinite())
    return fast.detach()


def through_base(model: CausalLM, adapted: FastWeights) -> FastWeights:
    """Put the same values into the graph of the base weights that they are copies of, if any."""
    base = dict(model.named_parameters())
    return FastWeights(
        {
            name: base[name][None] + (own - base[name][None]).detach() if name in base else own
            for name, own in adapted.tensors.items()
        }
    )


def ask(
    model: CausalLM, episode: Episode, state: State | None, fast: FastWeights
) -> tuple[Tensor, Tensor]:
    """Return the answers' loss from a state (None: from memory), [], and which are right, [R Q]."""
    hidden = model(episode.queries, state, fast).hidden  # [R Q, L, D]
    row = torch.arange(hidden.shape[0])[:, None]
    logits = model.head_logits(hidden[row, episode.at].flatten(0, 1), fast)
    log_prob = logits.log_softmax(-1).view(*episode.at.shape, -1)  # [R Q, A, V]
    counted = episode.counted
    at_target = log_prob.gather(-1, episode.targets[..., None])[..., 0]
    right = ((log_prob.argmax(-1) == episode.targets) | ~counted).all(-1)
    return -at_target[counted].mean(), right


class Trainer(Run):
    """A nested post-training run of any small model that has the tiny model's tokenizer."""

    def __init__(self, recipe: Recipe, model: CausalLM, out: Path, *, resume: bool = False) -> None:
        self.model = model
        self.pretraining = tiny.Recipe(
            seed=recipe.seed + 1, tokens_per_step=recipe.pretraining_tokens
        )
        super().__init__(recipe, out, dict(model.named_parameters()))
        if resume:
            self.restore()

    @override
    def loss(self) -> StepLoss:
        recipe, model = self.recipe, self.model
        rng = random.Random(f"nested:{recipe.seed}:{self.step}")
        tokens, facts = recipe.size(self.step, rng)
        R = min(recipe.most_documents, recipe.tokens_per_step // tokens)
        episode = make_episode(rng, model.tokenizer, tokens, facts, R, recipe.questions)
        objective = "refine" if rng.random() < recipe.refine_share else "ntp"
        config = recipe.adapt.updated(objective=objective, seed=rng.getrandbits(62))
        model.requires_grad_(False)
        adapted = adapt_copies(model, episode.ids, config)
        model.requires_grad_(True)
        fast = through_base(model, adapted)

        memory, recalled = ask(model, episode, None, fast)
        read = model(episode.ids, None, fast).state.repeat(recipe.questions)
        context, answered = ask(model, episode, read, fast)
        batch = tiny.make_batch(self.pretraining, self._late(rng), model.tokenizer)
        plain, retrieved = tiny.loss_of(model, batch)
        total = (
            recipe.memory_weight * memory
            + recipe.context_weight * context
            + recipe.pretraining_weight * plain
        )
        figures = {
            "memory": recalled.float().mean().item(),
            "context": answered.float().mean().item(),
            "retrieved": retrieved.item(),
            "memory_loss": memory.item(),
            "context_loss": context.item(),
            "plain": plain.item(),
            "tokens": tokens,
            "refine": float(objective == "refine"),
        }
        return StepLoss(total, figures, episode.ids.numel() + batch.tokens)

    def _late(self, rng: random.Random) -> int:
        """Draw a step of the second half of pre-training, where texts have all lengths."""
        return rng.randrange(self.pretraining.steps // 2, self.pretraining.steps)
