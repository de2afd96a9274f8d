"""Oversized texts are refused after little encoding; texts that fit are encoded as usual."""

import random
from collections.abc import Callable
from typing import Any

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from refine_server.ttt.decoding.prompts.prompt import PromptTemplate
from refine_server.ttt.decoding.prompts.token_limit import TokenLimit
from refine_server.ttt.decoding.token_bytes import BYTE_ALPHABET
from refine_server.ttt.interface.errors import RequestError
from refine_server.ttt.interface.requests import Limits, Message
from refine_server.ttt.models import load

BYTES = 3_900_000
"""Size of the largest text that fits into a request's body with its other fields."""

ENGLISH = "The lighthouse keeper writes the weather into a blue book every evening at eight. "
OVERSIZED = {
    "spaces": " " * BYTES,
    "newlines": "\n" * BYTES,
    "English": ENGLISH * (BYTES // len(ENGLISH)),
    "one letter": "a" * BYTES,
    "emoji": "\U0001f980" * (BYTES // 4),
    "Chinese": "\u6f22\u5b57\u4e2d\u6587" * (BYTES // 12),
}

FITTING = [
    "x",
    " ",
    " " * 500,
    ENGLISH * 40,
    "a" * 3000,
    "\U0001f980 \u6f22\u5b57 <|endoftext|> e\u0301 \r\n\t",
    "<|endoftext|>" * 50,
    "3.14159 " * 300,
    "def f(x):\n    return x\n" * 100,
]


class CountingTokenizer:
    """A tokenizer that records how many characters it encoded and how often it was listed."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.characters = 0
        self.vocabularies = 0

    def __call__(self, text: str | list[str], **options: bool) -> Any:
        self.characters += len(text) if isinstance(text, str) else sum(map(len, text))
        return self._tokenizer(text, **options)

    def get_vocab(self) -> Any:
        self.vocabularies += 1
        return self._tokenizer.get_vocab()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)


def byte_level_bpe(merged: list[tuple[str, str]]) -> PreTrainedTokenizerFast:
    """Make a byte-level tokenizer without a word boundary, from its merges in order."""
    tokens = [*BYTE_ALPHABET, *(left + right for left, right in merged)]
    vocabulary = {token: id for id, token in enumerate(dict.fromkeys(tokens))}
    backend = Tokenizer(models.BPE(vocabulary, merged))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def merges_to(token: str) -> list[tuple[str, str]]:
    """Return the merges that build a token of power-of-two length from its halves."""
    if len(token) == 1:
        return []
    half = len(token) // 2
    return [*merges_to(token[:half]), (token[:half], token[half:])]


def indented() -> PreTrainedTokenizerFast:
    """Make a tokenizer with a token of 128 spaces, as large vocabularies have."""
    (space,) = (character for character, byte in BYTE_ALPHABET.items() if byte == ord(" "))
    return byte_level_bpe(merges_to(space * 128))


@pytest.fixture(scope="module", params=["tiny", "indented"])
def tokenizer(request: pytest.FixtureRequest) -> Any:
    return load("tiny").tokenizer if request.param == "tiny" else indented()


ROUTES: dict[str, Callable[[PromptTemplate, str, Limits], object]] = {
    "document": lambda template, text, limits: template.encode_document(text, limits),
    "query": lambda template, text, limits: template.encode_query(text, limits),
    "prompt": lambda template, text, limits: template.encode_prompt(text, limits),
    "message": lambda template, text, limits: template.encode_messages(
        [Message("user", text)], limits
    ),
    "many messages": lambda template, text, limits: template.encode_messages(
        [Message("user", text[at : at + 4000]) for at in range(0, len(text), 4000)], limits
    ),
}


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("kind", OVERSIZED)
def test_an_oversized_text_is_refused_before_it_is_encoded_whole(
    tokenizer: Any, route: str, kind: str
) -> None:
    counting = CountingTokenizer(tokenizer)
    template = PromptTemplate(counting)
    limits = Limits(document_tokens=16_384)
    counting.characters = 0
    with pytest.raises(RequestError, match=r"at most \d+ are accepted") as refused:
        ROUTES[route](template, OVERSIZED[kind], limits)
    assert refused.value.code in ("document_too_long", "query_too_long", "context_length_exceeded")
    # The limit's tokens at this text's density, and one piece more.
    longest = template._token_limit.longest_token
    per_token = {"spaces": longest, "English": 4}.get(kind, 1)
    assert counting.characters <= 2 * max(limits.prompt_tokens, 2 * longest**2) * per_token


def test_words_alone_show_that_a_text_is_oversized(tokenizer: Any) -> None:
    counting = CountingTokenizer(tokenizer)
    template, limits = PromptTemplate(counting), Limits(document_tokens=20_000)
    counting.characters = 0
    with pytest.raises(RequestError, match="more than 20000 tokens"):
        template.encode_document("no " * 20_002, limits)
    assert counting.characters <= 2 * limits.document_tokens


def test_a_text_has_at_most_so_many_characters_for_each_token_of_its_limit(tokenizer: Any) -> None:
    counting = CountingTokenizer(tokenizer)
    template = PromptTemplate(counting)
    counting.characters = 0
    with pytest.raises(RequestError, match="400001 characters; at most 400000 are accepted"):
        template.encode_document("a" + " " * 400_000, Limits(document_tokens=50_000))
    assert counting.characters == 0


def test_a_text_of_fewer_characters_than_the_limit_does_not_copy_the_vocabulary(
    tokenizer: Any,
) -> None:
    counting = CountingTokenizer(tokenizer)
    token_limit = TokenLimit(counting)
    assert not token_limit.is_exceeded(["Who keeps ", "the light?"], 20, len)
    assert counting.vocabularies == 0
    assert not token_limit.is_exceeded(["Who keeps ", "the light?"], 19, len)
    assert counting.vocabularies > 0


@pytest.mark.parametrize("text", FITTING)
def test_texts_that_fit_are_encoded_as_the_tokenizer_does(tokenizer: Any, text: str) -> None:
    template = PromptTemplate(tokenizer, "{document}{query}")
    plain = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    exact = Limits(document_tokens=len(plain), query_tokens=len(plain))
    assert template.encode_document(text, exact).document == plain
    assert template.encode_query(text, exact) == plain
    whole = tokenizer(text)["input_ids"]
    assert template.encode_prompt(text, Limits(len(whole), 0)) == whole
    short = Limits(document_tokens=len(plain) - 1)
    with pytest.raises(RequestError, match=rf"tokens; at most {len(plain) - 1} are"):
        template.encode_document(text, short)


def test_a_text_in_pieces_is_encoded_as_the_tokenizer_does(tokenizer: Any) -> None:
    text = "".join(FITTING) * 20
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    limit = Limits(document_tokens=len(ids))
    template = PromptTemplate(tokenizer, "{document}{query}")
    assert template.encode_document(text, limit).document == ids


@pytest.mark.parametrize("seed", range(30))
def test_no_text_within_the_limit_is_refused(seed: int) -> None:
    """For any merges, the pieces' tokens differ from the whole text's by at most the allowance."""
    rng = random.Random(seed)
    tokens, merges = ["a", "b", "c"], []
    for _ in range(rng.randrange(2, 14)):
        pair = rng.choice(tokens), rng.choice(tokens)
        if len("".join(pair)) <= 9 and pair not in merges:
            merges.append(pair)
            tokens.append("".join(pair))
    tokenizer = byte_level_bpe(merges)
    token_limit = TokenLimit(tokenizer)

    def count(text: str) -> int:
        return len(tokenizer(text)["input_ids"])

    for _ in range(20):
        pattern = "".join(rng.choices("abc", weights=[rng.random() for _ in "abc"], k=50))
        text = (pattern[: rng.randrange(1, 50)] * 4000)[: rng.randrange(1, 4000)]
        assert not token_limit.is_exceeded([text], count(text), count)
        assert not token_limit.is_exceeded([text[:100], text[100:]], count(text) + 1, count)


@pytest.mark.parametrize("repeats", [1, 100_000])
def test_tokenizers_that_drop_characters_are_not_judged_by_characters(repeats: int) -> None:
    backend = Tokenizer(models.WordLevel({"a": 0, "<unk>": 1}, "<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.normalizer = normalizers.Strip()
    template = PromptTemplate(PreTrainedTokenizerFast(tokenizer_object=backend))
    text = " " * repeats + "a" + " " * repeats
    assert template.encode_document(text, Limits(document_tokens=1)).document == [0]
    with pytest.raises(RequestError, match=r"at most (10|262144) are accepted"):
        template.encode_document("a " * 1000 * repeats, Limits(document_tokens=10))
