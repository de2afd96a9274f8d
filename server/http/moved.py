"""What became of the fields that requests of earlier versions had."""

MOVED = {
    "adapt": {
        "prefix": "on.kind",
        "ntp_on": "on.ntp_on",
        "spans_as": "on.learn_as",
        "span_tokens": "on.tokens",
        "selection": "rollouts.select, for spans on.choose, and for query spans on.kind",
        "chunks": "rollouts.positions",
        "rollouts": "rollouts.per_position",
        "rollout_tokens": "rollouts.tokens",
        "rollout_temperature": "rollouts.temperature",
        "demonstration": "rollouts.demonstration",
        "reward": "rollouts.reward",
        "grpo_coef": "loss.grpo",
        "ntp_coef": "loss.ntp",
        "kl_coef": "loss.kl",
        "steps": "optimizer.steps",
        "learning_rate": "optimizer.learning_rate",
        "max_grad_norm": "optimizer.max_grad_norm",
        "max_seconds": "optimizer.max_seconds",
        "targets": "fast_weights.targets",
        "rank": "fast_weights.rank",
    },
    "evidence": {"query": "words"},
}
"""The new place of a field under an object, by the object's name and the field's former one."""

REMOVED = {
    "clip_ratio": "removed, because it never had an effect: each rollout is used for one update",
    "optimizer": "must be an object; the choice of an optimizer was removed, it is always AdamW",
}
"""Why there is no such field, or no such value of it, under ``adapt``."""
