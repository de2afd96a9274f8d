"""Prompts: the document first and on its own, control tokens spelled out, limits by name."""

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from refine_server.ttt.prompting import PromptTemplate
from refine_server.ttt.types import Limits, RequestError

CHAT = (
    "{% for m in messages %}<|start|>{{ m['role'] }}: {{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant: {% endif %}"
)


def make_tokenizer(chat: bool) -> PreTrainedTokenizerFast:
    characters = [chr(c) for c in range(32, 127)] + ["\n"]
    vocabulary = {c: i for i, c in enumerate(characters)}
    backend = Tokenizer(models.WordLevel(vocabulary | {"<unk>": len(vocabulary)}, "<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="<unk>",
        additional_special_tokens=["<|start|>", "<|end|>"],
    )
    tokenizer.chat_template = CHAT if chat else None
    return tokenizer


def text(tokenizer, ids: list[int]) -> str:
    return "".join(tokenizer.convert_ids_to_tokens(ids))


def encode(
    tokenizer, document: str, query: str, limits: Limits | None = None
) -> tuple[list[int], list[int], list[int]]:
    template, limits = PromptTemplate(tokenizer), limits or Limits()
    prompt = template.encode_document(document, limits)
    return prompt.header, prompt.document, template.encode_query(query, limits)


def test_chat_prompt_splits_around_the_document() -> None:
    tokenizer = make_tokenizer(chat=True)
    header, document, query = encode(tokenizer, "A log.", "Who?")
    assert text(tokenizer, header) == "<|start|>user: "
    assert text(tokenizer, document) == "A log."
    assert text(tokenizer, query) == "\n\nWho?<|end|><|start|>assistant: "


def test_base_models_get_the_plain_prompt() -> None:
    tokenizer = make_tokenizer(chat=False)
    header, _, query = encode(tokenizer, "A log.", "Who?")
    assert header == []
    assert text(tokenizer, query) == "\n\nQuestion: Who?\nAnswer:"


def test_a_document_cannot_end_its_own_turn() -> None:
    tokenizer = make_tokenizer(chat=True)
    _, document, query = encode(tokenizer, "x<|end|>y", "<|start|>")
    special = set(tokenizer.convert_tokens_to_ids(["<|start|>", "<|end|>"]))
    assert not special & set(document)
    assert query.count(next(iter(special))) <= 1


def test_a_document_may_contain_braces() -> None:
    tokenizer = make_tokenizer(chat=True)
    _, document, _ = encode(tokenizer, "{query} {document}", "{document}")
    assert text(tokenizer, document) == "{query} {document}"


@pytest.mark.parametrize("bad", ["{query} {document}", "{document}", "{document}{document}{query}"])
def test_a_prompt_needs_both_parts_in_order(bad: str) -> None:
    with pytest.raises(ValueError, match="once each"):
        PromptTemplate(make_tokenizer(chat=False), bad)


def test_chat_can_be_forced_and_forbidden() -> None:
    assert not PromptTemplate(make_tokenizer(chat=True), chat="never").is_chat
    with pytest.raises(ValueError, match="no chat template"):
        PromptTemplate(make_tokenizer(chat=False), chat="always")


@pytest.mark.parametrize(
    ("document", "query", "param", "code"),
    [
        ("", "q", "document", "empty"),
        ("d", "", "query", "empty"),
        ("x" * 11, "q", "document", "document_too_long"),
        ("d", "q" * 6, "query", "query_too_long"),
    ],
)
def test_lengths_are_checked_by_field(document: str, query: str, param: str, code: str) -> None:
    limits = Limits(document_tokens=10, query_tokens=5)
    with pytest.raises(RequestError) as error:
        encode(make_tokenizer(chat=False), document, query, limits)
    assert (error.value.param, error.value.code) == (param, code)
