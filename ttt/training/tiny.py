"""The recipe of the tiny DeltaNet that answers from documents (``refine-server train tiny``)."""

import json
import math
import random
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from typing_extensions import override

from refine_server.ttt.models import CausalLM
from refine_server.ttt.models.families.fla.delta_net import DeltaNet, DeltaNetConfig
from refine_server.ttt.training import corpus, evaluate
from refine_server.ttt.training.run import CHECKPOINT, Run, StepLoss
from refine_server.ttt.training.tokenizer import train_tokenizer


@dataclass(frozen=True)
class Recipe:
    """Everything that the result depends on."""

    seed: int = 0
    steps: int = 900
    tokens_per_step: int = 8192
    longest: int = 1980
    learning_rate: float = 3e-3
    final_learning_rate: float = 1e-4
    warmup_steps: int = 50
    drill_steps: int = 200
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    retrieved_weight: float = 8.0
    share_of_others: float = 0.25
    vocab_size: int = 2560
    hidden_size: int = 128
    num_hidden_layers: int = 3
    num_heads: int = 2
    intermediate_size: int = 256
    tied: bool = False

    def model_config(self) -> DeltaNetConfig:
        """The model's configuration."""
        return DeltaNetConfig(
            hidden_size=self.hidden_size,
            num_hidden_layers=self.num_hidden_layers,
            num_heads=self.num_heads,
            vocab_size=self.vocab_size,
            intermediate_size=self.intermediate_size,
            tie_word_embeddings=self.tied,
            eos_token_id=0,
        )

    def rate(self, step: int) -> float:
        """Return the learning rate: linear warm-up, then cosine decay."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        done = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        span = self.learning_rate - self.final_learning_rate
        return self.final_learning_rate + span * (1 + math.cos(math.pi * done)) / 2

    def drill(self, step: int) -> float:
        """Return the share of steps on bare facts: 1 at first, then decreasing."""
        return max(0.15, min(1.0, 1.5 - step / self.drill_steps))

    def twins(self, step: int, rng: random.Random) -> float:
        """Return the share of keys with a common word: low until retrieval begins, then varied."""
        return 0.1 if step < self.drill_steps else rng.choice((0.1, 0.25, 0.5))

    def length(self, step: int, rng: random.Random) -> int:
        """Return the length of this step's texts in tokens: short at first, mixed later."""
        lengths = (112, 232, 480, 980, 1980)  # just under multiples of a chunk, as lengths vary
        done = step / self.steps
        if step < self.drill_steps:
            weights = (1, 0, 0, 0, 0)
        elif done < 0.3:
            weights = (3, 3, 2, 0, 0)
        else:
            weights = (2, 3, 3, 2, 2)
        return min(rng.choices(lengths, weights)[0], self.longest)


@dataclass(frozen=True)
class Batch:
    """Token ids [B, T + 1]; for each of the last T its weight and whether it is retrieved: [B, T].

    A random share of the tokens that are not retrieved counts, with a weight that makes up for the
    rest.
    """

    ids: Tensor
    weights: Tensor
    retrieved: Tensor
    tokens: int


def init_model(recipe: Recipe) -> DeltaNet:
    """Initialise weights: convolutions uniform over all taps as in fla, the rest N(0, 0.02).

    Retrieval is learned only with these convolutions: when they were initialised as identities, the
    model had not learned it after three times as many steps as it takes otherwise.
    """
    model = DeltaNet(recipe.model_config())
    generator = torch.Generator().manual_seed(recipe.seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Conv1d):
                bound = module.kernel_size[0] ** -0.5
                module.weight.uniform_(-bound, bound, generator=generator)
            elif isinstance(module, nn.Linear | nn.Embedding):
                module.weight.normal_(0.0, 0.02, generator=generator)
    if model.config.tie_word_embeddings:
        model.lm_head.weight = model.embedding.weight
    return model.requires_grad_(True)


def make_batch(recipe: Recipe, step: int, tokenizer: Any) -> Batch:
    """Make the batch of a step; it depends on (seed, step) only."""
    rng = random.Random(f"train:{recipe.seed}:{step}")
    length = recipe.length(step, rng)
    make = corpus.make_drill if rng.random() < recipe.drill(step) else corpus.make_sample
    rows = max(1, recipe.tokens_per_step // length)
    twins = recipe.twins(step, rng)
    samples = [make(rng, length, twins) for _ in range(rows)]
    encodings = tokenizer.backend_tokenizer.encode_batch([s.text for s in samples])
    width = max(len(e.ids) for e in encodings)
    ids = torch.zeros(rows, width, dtype=torch.long)
    share = recipe.share_of_others
    chosen = torch.Generator().manual_seed(rng.getrandbits(62))
    weights = (torch.rand(rows, width, generator=chosen) < share) / share
    retrieved = torch.zeros(rows, width, dtype=torch.bool)
    for row, (sample, encoding) in enumerate(zip(samples, encodings, strict=True)):
        n = len(encoding.ids)
        ids[row, :n] = torch.tensor(encoding.ids)
        weights[row, n:] = 0.0
        for begin, end in sample.retrieved:
            first, last = encoding.char_to_token(begin + 1), encoding.char_to_token(end - 1)
            retrieved[row, first : last + 1] = True
    weights[retrieved] = recipe.retrieved_weight
    return Batch(ids, weights[:, 1:], retrieved[:, 1:], sum(len(e.ids) for e in encodings))


def loss_of(model: CausalLM, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return the weighted next-token loss, and the share of retrieved tokens predicted correctly.

    The head runs only where the weight is not zero, because it costs as much as the layers here.
    """
    weights = batch.weights.flatten()
    counted = weights.nonzero()[:, 0]
    weights, targets = weights[counted], batch.ids[:, 1:].flatten()[counted]
    output = model(batch.ids[:, :-1])
    logits = output.hidden.flatten(0, 1)[counted] @ output.head.mT
    loss = (F.cross_entropy(logits, targets, reduction="none") * weights).sum() / weights.sum()
    with torch.no_grad():
        retrieved = batch.retrieved.flatten()[counted]
        right = (logits[retrieved].argmax(-1) == targets[retrieved]).float().mean()
    return loss, right


class Trainer(Run):
    """The tiny model's training run."""

    def __init__(self, recipe: Recipe, out: Path, *, resume: bool = False) -> None:
        self.tokenizer = train_tokenizer(recipe.seed, recipe.vocab_size)
        self.model = init_model(recipe)
        super().__init__(recipe, out, dict(self.model.named_parameters()))
        if resume:
            self.restore()

    @override
    def loss(self) -> StepLoss:
        batch = make_batch(self.recipe, self.step, self.tokenizer)
        loss, retrieved = loss_of(self.model, batch)
        figures = {"retrieved": retrieved.item(), "length": batch.ids.shape[1]}
        return StepLoss(loss, figures, batch.tokens)

    def finish(self, documents: int = 25) -> dict[str, Any]:
        """Write the model in HF layout, measure it and return what ``training.json`` records."""
        self.model.requires_grad_(False).eval()
        write_model(self.model, self.tokenizer, self.out)
        self.model.tokenizer = self.tokenizer
        summary = {
            "command": "refine-server train tiny",
            **self.summary(),
            "parameters": self.model.num_parameters,
            **evaluate.by_length(self.model, documents=documents),
        }
        (self.out / "training.json").write_text(json.dumps(summary, indent=2) + "\n")
        (self.out / CHECKPOINT).unlink(missing_ok=True)
        return summary


def write_model(model: DeltaNet, tokenizer: Any, out: Path) -> None:
    """Write config, weights and tokenizer as ``models.load`` reads them."""
    out.mkdir(parents=True, exist_ok=True)
    config = {"model_type": "delta_net", "architectures": ["DeltaNetForCausalLM"]}
    config |= asdict(model.config) | {"dtype": "float32"}
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    tied = model.config.tie_word_embeddings
    weights = {n: w.detach().contiguous() for n, w in model.state_dict().items()}
    if tied:
        weights.pop("lm_head.weight")
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    (out / "model.safetensors").chmod(0o644)  # it is packaged; save_file makes it private
    tokenizer.save_pretrained(out)
