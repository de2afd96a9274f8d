"""Passages: the best chunks within a budget, as they stand in the document."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refine_server.ttt.evidence.chunks import Chunk, cut
from refine_server.ttt.evidence.passages import SEPARATOR_TOKENS, fit, join
from refine_server.ttt.models import load

STEADY = settings(derandomize=True, deadline=None)


def chunks_of(*texts: str, tokens: int = 10) -> tuple[str, list[Chunk]]:
    chunks, place = [], 0
    for number, text in enumerate(texts):
        first, place = place, place + len(text)
        start = number * tokens
        chunks.append(Chunk(start=start, end=start + tokens, first=first, last=place))
    return "".join(texts), chunks


def test_what_fits_is_chosen_by_score_and_put_in_order() -> None:
    _, chunks = chunks_of("a", "b", "c", "d")
    two = 2 * (10 + SEPARATOR_TOKENS)
    assert fit(chunks, [1.0, 0.0, 3.0, 2.0], two) == [chunks[2], chunks[3]]
    assert fit(chunks, [3.0, 0.0, 1.0, 2.0], two) == [chunks[0], chunks[3]]
    assert fit(chunks, [0.0] * 4, two) == chunks[:2]
    assert fit(chunks, [1.0] * 4, 9) == []


def test_a_chunk_that_does_not_fit_makes_way_for_a_shorter_one() -> None:
    long = Chunk(start=0, end=50, first=0, last=9)
    short = Chunk(start=50, end=55, first=9, last=12)
    assert fit([long, short], [2.0, 1.0], 20) == [short]


def test_neighbours_are_one_passage() -> None:
    text, chunks = chunks_of("It rained. ", "He slept.\n\n", "They ate. ", "It was late.")
    assert join(text, chunks)[0] == text
    assert join(text, [chunks[0], chunks[2]])[0] == "It rained.\n\nThey ate."
    assert join(text, chunks[1:3])[0] == "He slept.\n\nThey ate."
    assert join(text, []) == ("", [])


def test_code_keeps_its_indentation() -> None:
    text, chunks = chunks_of("if x:\n", "\n    go()\n", "    stop(); ", " wait()\n")
    assert join(text, chunks[1:2])[0] == "    go()"
    assert join(text, [chunks[1], chunks[3]])[0] == "    go()\n\nwait()"
    assert join(text, chunks[2:])[0] == "    stop();  wait()"


@pytest.mark.parametrize("budget", [20, 60, 200])
def test_passages_stay_within_the_budget_when_they_are_encoded(budget: int) -> None:
    tokenizer = load("tiny").tokenizer
    text = "The old man 漢字 walked.\n\n- it rained, 👩‍👩‍👧 again\n\tx = 3.14\n" * 9
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    chunks = cut(text, encoded["offset_mapping"], 16)
    chosen = fit(chunks, [float(n * 7 % 5) for n in range(len(chunks))], budget)
    passages = tokenizer(join(text, chosen)[0], add_special_tokens=False)
    assert len(passages["input_ids"]) <= budget


@STEADY
@given(st.lists(st.text(alphabet="ab \n", min_size=1), min_size=1, max_size=6), st.data())
def test_places_are_those_of_the_chunks_but_for_white_space(
    texts: list[str], data: st.DataObject
) -> None:
    document, chunks = chunks_of(*texts)
    chosen = data.draw(st.lists(st.sampled_from(chunks), unique=True))
    chosen.sort(key=lambda chunk: chunk.start)
    text, places = join(document, chosen)
    for chunk, (first, last, source) in zip(chosen, places, strict=True):
        assert text[first:last] == document[source : source + last - first]
        assert text[first:last].split() == document[chunk.first : chunk.last].split()
    kept = "".join(text[first:last] for first, last, _ in places)
    assert "".join(kept.split()) == "".join(text.split())
