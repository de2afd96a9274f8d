"""A prompt made of parts has the tokens that the tokenizer gives to the whole prompt."""

from functools import cache
from typing import Any

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from refine_server.ttt.decoding.prompts.control_tokens import BREAK, SLOT
from refine_server.ttt.decoding.prompts.prompt import PLAIN_PROMPT, PromptTemplate
from refine_server.ttt.decoding.prompts.text_encoder import LONGEST_TAIL, WINDOW
from refine_server.ttt.interface.requests import Limits, Message
from support.tokenizers import TOKENIZERS

FEW = settings(max_examples=30, derandomize=True, deadline=None)
LIMITS = Limits(100_000, 100_000)
TEMPLATES = {
    # As Llama 2 and Mistral: the first space belongs to the template.
    "trimmed": "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token }}[INST] "
    "{{ m.content | trim }} [/INST]{% else %} {{ m.content.strip() }}{{ eos_token }}{% endif %}"
    "{% endfor %}",
    # As ChatML, whose messages stand as they are.
    "lines": "{% for m in messages %}{{ bos_token }}{{ m.role }}\n{{ m.content }}{{ eos_token }}\n"
    "{% endfor %}{% if add_generation_prompt %}{{ bos_token }}assistant\n{% endif %}",
    # As Qwen 3 and DeepSeek R1: earlier answers lose their reasoning.
    "reasoning": "{% for m in messages %}{{ bos_token }}{{ m.role }}\n\n"
    "{{ m.content.split('</think>')[-1].lstrip('\n') if m.role == 'assistant' else m.content }}"
    "{{ eos_token }}{% endfor %}{{ bos_token }}assistant\n\n",
}
CHATS = [name for name in TOKENIZERS if name != "word_piece"]  # no chat model is of its kind

WORDS = [
    "The keeper writes",
    "Who",
    " amber",
    "isn't",
    "'s",
    "12",
    "3.14",
    "def f(x):",
    "Question:",
]
MARKS = [".", ",", "?", "!", "?!", "...", ":", "-", "_", "[INST]", "\nAnswer:", "\n    return x"]
SPACES = [" ", "  ", "\n", "\n\n", "\t", "\r\n", "\u200b", "\u00a0"]
OTHERS = ["\u00e9", "e\u0301", "\u6f22\u5b57", "\U0001f980", "\u00df"]
fragments = st.sampled_from([*WORDS, *MARKS, *SPACES, *OTHERS])
characters = st.characters(codec="utf-8", exclude_characters=[BREAK, SLOT])
texts = st.lists(fragments, max_size=12).map("".join) | st.text(characters, max_size=12)
# A document of which no token is its own cannot be cut: one question mark before a line break.
documents = texts.map(lambda text: f"A log{text}")


@cache
def tokenizer(kind: str, chat: str | None) -> Any:
    made = TOKENIZERS[kind]()
    made.chat_template = None if chat is None else TEMPLATES[chat]
    return made


@cache
def template(kind: str, chat: str | None = None) -> PromptTemplate:
    return PromptTemplate(tokenizer(kind, chat))


def plain_ids(kind: str, text: str) -> list[int]:
    """Return what the tokenizer makes of a text, without the token that ends it."""
    made = tokenizer(kind, None)
    ids: list[int] = made(text, split_special_tokens=True)["input_ids"]
    ends = made("a")["input_ids"][-1] in (made.eos_token_id, made.sep_token_id)
    return ids[:-1] if ends else ids


def chat_ids(kind: str, chat: str, *turns: tuple[str, str]) -> list[int]:
    messages = [{"role": role, "content": content} for role, content in turns]
    made = tokenizer(kind, chat)
    ids: list[int] = made.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    return ids


def is_text(kind: str, text: str) -> bool:
    return bool(tokenizer(kind, None)(text.strip(), add_special_tokens=False)["input_ids"])


@pytest.mark.parametrize("kind", TOKENIZERS)
@FEW
@given(document=documents, query=texts)
@example(document="The code is amber.", query="What is it?")
@example(document="a line\n", query=" who")
@example(document=" spaces at both ends  ", query="\n\nwho\n")
def test_a_base_models_prompt_has_the_tokens_of_the_whole_text(
    kind: str, document: str, query: str
) -> None:
    assume(is_text(kind, query))
    prompt = template(kind).encode_document(document, LIMITS)
    asked = template(kind).encode_query(query, LIMITS, tail=prompt.tail)
    whole = PLAIN_PROMPT.format(document=document, query=query)
    assert prompt.header + prompt.document + asked == plain_ids(kind, whole)
    assert document.endswith(prompt.tail)
    assert prompt.document


@pytest.mark.parametrize("chat", TEMPLATES)
@pytest.mark.parametrize("kind", CHATS)
@FEW
@given(document=documents, query=texts)
@example(document="The code is amber.", query="What is it?")
@example(document="\n a line\n", query=" who\n")
def test_a_chats_prompt_has_the_tokens_of_its_chat_template(
    kind: str, chat: str, document: str, query: str
) -> None:
    assume(is_text(kind, query))
    prompt = template(kind, chat).encode_document(document, LIMITS)
    asked = template(kind, chat).encode_query(query, LIMITS, tail=prompt.tail)
    whole = chat_ids(kind, chat, ("user", f"{document}\n\n{query}"))
    assert prompt.header + prompt.document + asked == whole
    assert prompt.document


@pytest.mark.parametrize("chat", TEMPLATES)
@pytest.mark.parametrize("kind", CHATS)
@FEW
@given(question=texts, answer=texts, after=texts)
@example(question=" Who?\n", answer="<think>\nHm.\n</think>\n\nInes.", after="Sure? ")
def test_a_conversation_has_the_tokens_of_its_chat_template(
    kind: str, chat: str, question: str, answer: str, after: str
) -> None:
    assume(question + answer + after)
    turns = ("user", question), ("assistant", answer), ("user", after)
    messages = [Message(role, content) for role, content in turns]  # type: ignore[arg-type]
    ids = template(kind, chat).encode_messages(messages, LIMITS)
    assert ids == chat_ids(kind, chat, *turns)


@pytest.mark.parametrize("chat", [None, *TEMPLATES])
@pytest.mark.parametrize("kind", CHATS)
@FEW
@given(document=documents, queries=st.lists(texts, min_size=2, max_size=4))
def test_what_an_adaptation_reads_is_the_same_for_every_later_query(
    kind: str, chat: str | None, document: str, queries: list[str]
) -> None:
    assume(all(is_text(kind, query) for query in queries))
    made = template(kind, chat)
    prompt = made.encode_document(document, LIMITS)
    read = prompt.header + prompt.document
    for query in queries:
        assert made.encode_document(document, LIMITS) == prompt
        turns = [Message("user", query)]
        asked = made.encode_query(query, LIMITS, tail=prompt.tail)
        assert made.encode_messages_after_document(turns, LIMITS, tail=prompt.tail) == asked
        if chat is not None:
            assert chat_ids(kind, chat, ("user", f"{document}\n\n{query}"))[: len(read)] == read


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("end", ["", ".", "\n", ".\n", "?!", " \n "])
def test_a_long_documents_tail_is_found_among_its_last_characters(kind: str, end: str) -> None:
    document = "The keeper writes it into a book, isn't it 12?\n\n" * (3 * WINDOW // 40) + end
    prompt = template(kind).encode_document(document, LIMITS)
    asked = template(kind).encode_query("What?", LIMITS, tail=prompt.tail)
    whole = PLAIN_PROMPT.format(document=document, query="What?")
    assert prompt.header + prompt.document + asked == plain_ids(kind, whole)
    assert len(prompt.tail) <= LONGEST_TAIL


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_document_is_never_left_to_the_query_whole(kind: str) -> None:
    for document in ("?", ".", "\u6f22", "?!"):
        prompt = template(kind).encode_document(document, LIMITS)
        assert prompt.document
        assert len(prompt.tail) < len(document)


def test_tails_are_short() -> None:
    """Only what merges with the line break behind the document is left to the query."""
    for kind, document, tail in [
        ("gpt2_like", "The code is amber.", ""),
        ("llama3_like", "The code is amber.", "."),
        ("llama3_like", "The code is amber", ""),
        ("mistral_like", "The code is amber", ""),
        ("gemma_like", "The code is amber.\n", "\n"),
        ("unigram", "The code is amber", ""),
        ("word_piece", "The code is amber.\n", ""),
    ]:
        assert template(kind).encode_document(document, LIMITS).tail == tail, kind


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_continuation_of_a_document_has_the_tokens_of_the_whole_text(kind: str) -> None:
    document, text = "The code is amber.\n", "\n\nQuestion: What?"
    prompt = template(kind).encode_document(document, LIMITS)
    continued = template(kind).encode_continuation(text, LIMITS, tail=prompt.tail)
    assert prompt.header + prompt.document + continued == plain_ids(kind, document + text)


@pytest.mark.parametrize("chat", TEMPLATES)
@pytest.mark.parametrize("kind", CHATS)
@FEW
@given(before=texts, after=texts, data=st.data())
def test_control_tokens_of_requests_are_spelled_out(
    kind: str, chat: str, before: str, after: str, data: st.DataObject
) -> None:
    made, control = template(kind, chat), set(tokenizer(kind, None).all_special_ids)
    spelled = tokenizer(kind, None).all_special_tokens
    evil = before + "".join(data.draw(st.lists(st.sampled_from(spelled), min_size=1))) + after
    harmless = "amber"

    def controls(document: str, query: str, answer: str) -> int:
        prompt = made.encode_document(document, LIMITS)
        ids = made.encode_query(query, LIMITS, tail=prompt.tail)
        turns = [Message("system", query), Message("user", document), Message("assistant", answer)]
        ids += prompt.header + prompt.document + made.encode_messages(turns, LIMITS)
        unknown = tokenizer(kind, None).unk_token_id  # a character's, not a control token's
        return sum(id in control and id != unknown for id in ids)

    assert controls(evil, evil, evil) == controls(harmless, harmless, harmless)
