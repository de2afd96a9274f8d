"""Exact match of greedy answers, with the server's prompt."""

import random
from collections.abc import Iterable
from typing import Any

from refine_server.ttt.models import CausalLM
from refine_server.ttt.training import corpus

LENGTHS = ((250, 8), (500, 12), (1000, 16), (2000, 20), (3000, 24))
"""Approximate lengths of the test documents in tokens, and the number of facts in each."""


def exact_match(
    model: CausalLM, tokens: int, facts: int, *, documents: int, questions: int = 8, seed: int = 0
) -> float:
    """Return the share of questions whose greedy answer equals the value in the document."""
    rng = random.Random(f"test:{seed}:{tokens}:{facts}")
    right = 0
    for _ in range(documents):
        document, asked = corpus.make_test(rng, tokens, facts, questions)
        answers = greedy_answers(model, document.text, [q.query for q in asked])
        right += sum(a == q.answer for a, q in zip(answers, asked, strict=True))
    return right / (documents * questions)


def by_length(model: CausalLM, *, documents: int, seed: int = 0) -> dict[str, Any]:
    """Measure exact match for each of ``LENGTHS``, as ``training.json`` records it."""
    return {
        "exact_match": {
            str(tokens): exact_match(model, tokens, facts, documents=documents, seed=seed)
            for tokens, facts in LENGTHS
        },
        "exact_match_facts": {str(tokens): facts for tokens, facts in LENGTHS},
        "exact_match_questions": 8 * documents,
    }


def greedy_answers(
    model: CausalLM, document: str, queries: Iterable[str], max_tokens: int = 12
) -> list[str]:
    """Read the document once and answer each query from its state, without adapting."""
    import torch

    def encode(text: str) -> torch.Tensor:
        ids = model.tokenizer(text, add_special_tokens=False, split_special_tokens=True)
        return torch.tensor([ids["input_ids"]])

    answers = []
    with torch.no_grad():
        read = model(encode(document)).state
        for query in queries:
            prompt = [encode(corpus.BETWEEN), encode(query), encode(corpus.AFTER)]
            ids, state, answer = torch.cat(prompt, dim=1), read, []
            for _ in range(max_tokens):
                output = model(ids, state)
                state, token = output.state, int(output.logits[0, -1].argmax())
                if token == model.tokenizer.eos_token_id:
                    break
                answer.append(token)
                ids = torch.tensor([[token]])
            answers.append(str(model.tokenizer.decode(answer)).strip())
    return answers
