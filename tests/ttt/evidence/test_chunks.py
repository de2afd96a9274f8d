"""Chunks: every token in one of them, cut where a reader would cut."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from refine_server.ttt.evidence.chunks import Chunk, cut
from refine_server.ttt.models import load

STEADY = settings(derandomize=True, deadline=None)

PROSE = (
    "The tenant pays the rent on the first day of every month. The landlord may raise it once a "
    "year, by letter, with three months of notice. Pets are allowed in the ground floor only."
)
LIST = "- flour: 500 g\n- butter: 250 g\n- sugar: 120 g\n- salt: a pinch\n- yeast: one cube\n"
TABLE = "".join(f"| row {n} | {n * 7} kg | ready |\n" for n in range(9))
CODE = "def area(w, h):\n    return w * h\n\n\ndef volume(w, h, d):\n    return area(w, h) * d\n"
HAN = "第一条规定租金。租户每月一日支付租金。房东每年可以提高一次租金。宠物只允许在一楼。"
THAI = "ผู้เช่าจ่ายค่าเช่าทุกวันที่หนึ่งของเดือนเจ้าของบ้านอาจขึ้นค่าเช่าปีละครั้ง"
EMOJI = "Fine 👩‍👩‍👧‍👦 weather 🌦️ today 🏴‍☠️ and e\u0301te\u0301 too. " * 3


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerBase:
    """A byte-level one, whose tokens may be parts of a character."""
    found: PreTrainedTokenizerBase = load("tiny").tokenizer
    return found


def offsets_of(tokenizer: PreTrainedTokenizerBase, text: str) -> list[tuple[int, int]]:
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    return list(encoded["offset_mapping"])


def texts_of(text: str, chunks: list[Chunk]) -> list[str]:
    return [text[chunk.first : chunk.last] for chunk in chunks]


@STEADY
@given(
    text=st.text(max_size=300) | st.sampled_from([PROSE, LIST, TABLE, CODE, HAN, THAI, EMOJI]),
    tokens=st.integers(1, 40),
)
def test_every_token_is_in_exactly_one_chunk(
    tokenizer: PreTrainedTokenizerBase, text: str, tokens: int
) -> None:
    offsets = offsets_of(tokenizer, text)
    chunks = cut(text, offsets, tokens)
    assert [n for c in chunks for n in range(c.start, c.end)] == list(range(len(offsets)))
    assert all(0 < c.end - c.start <= tokens for c in chunks)
    for chunk in chunks:
        own = offsets[chunk.start : chunk.end]
        assert (chunk.first, chunk.last) == (own[0][0], max(last for _, last in own))


@pytest.mark.parametrize("text", [HAN, THAI, EMOJI], ids=["han", "thai", "emoji"])
def test_no_character_is_cut(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    chunks = cut(text, offsets_of(tokenizer, text), 30)
    assert len(chunks) > 1
    assert "".join(texts_of(text, chunks)) == text


@pytest.mark.parametrize(
    ("text", "ends"),
    [
        (PROSE, (".",)),
        (LIST, ("g", "pinch", "cube", "\n")),
        (TABLE, ("|", "\n")),
        (CODE, ("h", "d", "\n", ":")),
        (HAN, ("。",)),
    ],
    ids=["prose", "list", "table", "code", "han"],
)
def test_a_chunk_ends_behind_a_sentence_a_line_or_a_row(
    tokenizer: PreTrainedTokenizerBase, text: str, ends: tuple[str, ...]
) -> None:
    offsets = offsets_of(tokenizer, text)
    chunks = cut(text, offsets, max(40, len(offsets) // 2))
    assert len(chunks) > 1
    for part in texts_of(text, chunks):
        assert part.rstrip(" ").endswith(ends), part


@st.composite
def arbitrary_offsets(draw: st.DrawFn) -> tuple[str, list[tuple[int, int]]]:
    """Tokens that overlap, leave characters out or have none at all."""
    text = draw(st.text(alphabet="ab .\n漢\u0301", max_size=30))
    place = st.integers(0, len(text))
    pairs = draw(st.lists(st.tuples(place, place), min_size=1, max_size=30))
    return text, sorted((min(pair), max(pair)) for pair in pairs)


@STEADY
@given(document=arbitrary_offsets(), tokens=st.integers(1, 9))
def test_every_token_is_in_one_chunk_whatever_the_tokenizer_says(
    document: tuple[str, list[tuple[int, int]]], tokens: int
) -> None:
    chunks = cut(*document, tokens)
    assert [n for c in chunks for n in range(c.start, c.end)] == list(range(len(document[1])))
    assert all(c.end - c.start <= tokens for c in chunks)


@pytest.mark.parametrize("text", [PROSE, LIST, TABLE, CODE, HAN])
def test_no_chunk_is_very_short(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    chunks = cut(text * 3, offsets_of(tokenizer, text * 3), 40)
    assert all(c.end - c.start >= 10 for c in chunks)


def test_a_paragraph_is_not_mixed_with_the_next_one(tokenizer: PreTrainedTokenizerBase) -> None:
    text = "It rained until late. " * 6 + "\n\n" + "The dogs barked. " * 6
    offsets = offsets_of(tokenizer, text)
    first, second = texts_of(text, cut(text, offsets, len(offsets) * 3 // 4))
    assert first.strip() == ("It rained until late. " * 6).strip()
    assert second.strip() == ("The dogs barked. " * 6).strip()


def test_an_accent_stays_with_its_letter() -> None:
    text = "e\u0301" * 20
    chunks = cut(text, [(n, n + 1) for n in range(len(text))], 5)
    assert [c.last - c.first for c in chunks] == [4] * 10


def test_a_character_of_many_tokens_is_cut_only_if_it_must_be() -> None:
    offsets = [(0, 1), (1, 2), (1, 2), (1, 2), (2, 3)]
    assert [(c.start, c.end) for c in cut("a漢b", offsets, 4)] == [(0, 4), (4, 5)]
    assert [(c.first, c.last) for c in cut("a漢b", offsets, 2)] == [(0, 1), (1, 2), (1, 3)]


@pytest.mark.parametrize("text", ["!" * 100_000, '("' * 50_000, " " * 100_000, "漢" * 100_000])
def test_repetitive_documents_take_linear_time(text: str) -> None:
    began = time.monotonic()
    chunks = cut(text, [(n, n + 1) for n in range(len(text))], 128)
    assert chunks[-1].last == len(text)
    assert time.monotonic() - began < 20  # it is under one; quadratic time would be minutes


def test_no_document_has_no_chunks() -> None:
    assert cut("", [], 16) == []
