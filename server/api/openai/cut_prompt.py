"""Prompts that seem to have lost their beginning before they were sent.

lm-evaluation-harness cuts prompts from the left and says so in its own log only: to 2,047 tokens
with the answer, unless its model argument ``max_length`` is given. The server cannot see what is
missing, but it can see the traces of cutting, and says so in a response header.
"""

from collections.abc import Sequence

HARNESS_TOKENS = 2_047
"""What lm-evaluation-harness leaves of a prompt and its answer unless ``max_length`` is given."""
TURNS = (
    ("<|im_start|>", "<|im_end|>"),
    ("<|start_header_id|>", "<|eot_id|>"),
    ("<start_of_turn>", "<end_of_turn>"),
    ("[INST]", "[/INST]"),
)
"""What begins and ends a turn in common chat templates."""

Prompt = str | Sequence[int]


def warning_of(prompts: Sequence[Prompt], max_tokens: int, longest: int) -> str | None:
    """Describe the first prompt that seems to be cut at its beginning; None if none does.

    A prompt of token ids is compared with the lengths to which lm-evaluation-harness cuts. A text
    is cut if a turn of a chat template ends in it before any begins. A prompt that is cut
    elsewhere cannot be told from a whole one.

    Args:
        prompts: texts or token ids.
        max_tokens: the longest answer.
        longest: the longest prompt and its answer together, as ``/v1/models`` tells it.
    """
    for number, prompt in enumerate(prompts):
        if isinstance(prompt, str):
            reason = _cut_turn(prompt)
        else:
            reason = _cut_length(len(prompt), max_tokens, longest)
        if reason is not None:
            return f"prompt {number} may be cut at its beginning: {reason}"
    return None


def _cut_length(tokens: int, max_tokens: int, longest: int) -> str | None:
    ends = {tokens, tokens + max_tokens}
    if HARNESS_TOKENS in ends:
        return "2047 tokens are what lm-evaluation-harness leaves; give it max_length"
    if longest - 1 in ends:
        return f"it has exactly the {longest - 1} tokens that fit below max_model_len"
    return None


def _cut_turn(text: str) -> str | None:
    for begins, ends in TURNS:
        first_end = text.find(ends)
        if first_end >= 0 and begins not in text[:first_end]:
            return f"it has {ends} before any {begins}"
    return None
