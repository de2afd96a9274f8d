"""Generated texts depend only on the seed, and questions need the document."""

import random
import re

import pytest

from refine_server.ttt.training import corpus, words


@pytest.mark.parametrize("make", [corpus.make_sample, corpus.make_drill])
def test_a_sample_depends_on_its_seed_alone(make):
    assert make(random.Random("1"), 300) == make(random.Random("1"), 300)
    assert make(random.Random("1"), 300) != make(random.Random("2"), 300)


def test_values_occur_in_no_filler_and_in_no_key():
    filler = [*words.SUBJECTS, *words.ACTIONS, *words.PLACES, *words.TIMES, *words.REMARKS]
    other = " ".join([*filler, *words.HEADINGS, *words.MODIFIERS, *words.NOUNS]).lower()
    used = set(re.findall(r"\w+", other))
    assert not [v for v in (*words.VALUES, *words.SURNAMES) if v.lower() in used]
    assert len(set(words.VALUES)) == len(words.VALUES)


@pytest.mark.parametrize("seed", range(20))
def test_a_test_document_states_every_answer_once(seed):
    document, questions = corpus.make_test(random.Random(f"once:{seed}"), 400, 10, 8)
    assert len({fact.key for fact in document.facts}) == 10
    for fact in document.facts:
        assert document.text.count(fact.value) == 1
    values = {fact.key: fact.value for fact in document.facts}
    for question in questions:
        asked = [key for key in values if key in question.query.lower()]
        assert [values[key] for key in asked] == [question.answer]


def test_documents_have_about_the_length_that_was_asked_for():
    for tokens in (250, 1000, 2000):
        document, _ = corpus.make_test(random.Random("length"), tokens, 10, 1)
        assert 0.8 * tokens < corpus.count_tokens(document.text) < 1.15 * tokens


@pytest.mark.parametrize("make", [corpus.make_sample, corpus.make_drill])
def test_marked_spans_are_values(make):
    for seed in range(10):
        sample = make(random.Random(f"spans:{seed}"), 400)
        for begin, end in sample.retrieved:
            value = sample.text[begin:end].removesuffix(corpus.EOS)
            assert value.startswith(" ")
            assert value.split()[0] in words.VALUES


def test_some_keys_share_a_word():
    facts = corpus.make_facts(random.Random("twins"), 16)
    parts = [fact.key.split() for fact in facts]
    assert len({fact.key for fact in facts}) == 16
    assert len({modifier for modifier, _ in parts}) < 16 or len({noun for _, noun in parts}) < 16
