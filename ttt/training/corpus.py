"""Synthetic documents with questions that can only be answered from the document.

A document is plain-English filler with facts ("The harbour code is amber.") at random positions.
Keys and values are paired anew in every document, and keys share words, so that nothing can be
memorised: a model has to learn retrieval.
"""

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle

from refine_server.ttt.training import words

EOS = "<|endoftext|>"
BETWEEN, AFTER = "\n\nQuestion: ", "\nAnswer:"  # as in prompting.PLAIN_PROMPT

PLAIN_FACTS = (
    ("The {key} is", 10),
    ("The {key} was", 1),
    ("Remember that the {key} is", 1),
    ("We were told that the {key} is", 1),
    ("As everyone knows, the {key} is", 1),
    ("Note that the {key} is", 1),
    ("It is written that the {key} is", 1),
)
LIST_FACTS = (
    ("The {key} is", 3),
    ("{key}:", 3),
    ("{Key}:", 2),
    ("**{key}**:", 1),
    ("**{Key}**:", 1),
    ("The **{key}** is", 1),
    ("the {key} is", 1),
)
QUESTIONS = (
    ("What is the {key}?", 8),
    ("What is {key}?", 2),
    ("What was the {key}?", 1),
    ("What is the {key}", 1),
    ("what is the {key}?", 1),
    ("what is {key}", 1),
    ("What's the {key}?", 1),
    ("Tell me the {key}.", 1),
    ("Which is the {key}?", 1),
    ("Who or what is the {key}?", 1),
    ("{key}", 1),
    ("{key}?", 1),
    ("{Key}?", 1),
    ("the {key}", 1),
    ("The {key} is what?", 1),
    ("Do you know the {key}?", 1),
)
_WORDS = re.compile(r"\w+|\S|\n+")


@dataclass(frozen=True)
class Fact:
    """A key and its value."""

    key: str
    value: str


@dataclass(frozen=True)
class Question:
    """A question about a document, and its only right answer."""

    query: str
    answer: str


@dataclass(frozen=True)
class Document:
    """A text, the facts that it states, and character spans where it states one again."""

    text: str
    facts: tuple[Fact, ...]
    repeats: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Sample:
    """A training text, and the character spans that can only be predicted by retrieval."""

    text: str
    retrieved: tuple[tuple[int, int], ...]


def make_facts(rng: random.Random, count: int, twins: float = 0.15) -> list[Fact]:
    """Make facts with distinct keys, a share of which have a common word, and distinct values."""
    keys: list[str] = []
    modifiers = cycle(rng.sample(words.MODIFIERS, len(words.MODIFIERS)))
    nouns = cycle(rng.sample(words.NOUNS, len(words.NOUNS)))
    while len(keys) < count:
        modifier, noun = next(modifiers), next(nouns)
        if keys and rng.random() < twins:
            near = rng.choice(keys).split()
            modifier, noun = (modifier, near[1]) if rng.random() < 0.5 else (near[0], noun)
        key = f"{modifier} {noun}"
        if key not in keys and modifier != noun:
            keys.append(key)
    surnames = iter(rng.sample(words.SURNAMES, len(words.SURNAMES)))
    values = rng.sample(words.VALUES, count)
    named = set(words.FIRST_NAMES)
    for i, value in enumerate(values):
        if value in named and rng.random() < 0.7 and (surname := next(surnames, None)):
            values[i] = f"{value} {surname}"
    return [Fact(k, v) for k, v in zip(keys, values, strict=True)]


def make_document(
    rng: random.Random, facts: Sequence[Fact], tokens: int, repeats: int = 0
) -> Document:
    """Make a document of about ``tokens`` tokens: every fact once, ``repeats`` of them again."""
    markdown = rng.random() < 0.35
    again = [rng.choice(facts) for _ in range(repeats)]
    stated = [*facts, *again]
    pieces: list[Fact | str] = list(stated)
    budget = tokens - 9 * len(stated)
    while budget > 0:
        sentence = filler(rng)
        pieces.append(sentence)
        budget -= count_tokens(sentence)
    rng.shuffle(pieces)
    return _Writer(rng, markdown).write(pieces, tuple(facts))


def make_questions(rng: random.Random, facts: Sequence[Fact], count: int) -> list[Question]:
    """Make questions about the facts; a fact is asked again only when all have been asked."""
    asked: list[Fact] = []
    while len(asked) < count:
        asked += rng.sample(list(facts), min(len(facts), count - len(asked)))
    return [Question(_fill(_pick(rng, QUESTIONS), fact.key), fact.value) for fact in asked]


def make_drill(rng: random.Random, tokens: int, twins: float = 0.15) -> Sample:
    """Make a text of facts only, stated and asked in a single form, to teach retrieval.

    With varied texts only, the loss did not fall below what filler can teach in any run tried.
    """
    facts = make_facts(rng, rng.randint(2, max(2, min(24, tokens // 16))), twins)
    text, retrieved = "", []
    stated: set[Fact] = set()
    order = [*facts, *rng.choices(facts, k=max(1, (tokens * 2 // 3) // 7 - len(facts)))]
    rng.shuffle(order)
    for fact in order:
        text += f"{' ' if text else ''}The {fact.key} is"
        begin = len(text)
        text += f" {fact.value}"
        if fact in stated:
            retrieved.append((begin, len(text)))
        stated.add(fact)
        text += "."
    for fact in rng.choices(sorted(stated, key=lambda f: f.key), k=max(1, tokens // 39)):
        text += f"{BETWEEN}What is the {fact.key}?{AFTER}"
        begin = len(text)
        text += f" {fact.value}{EOS}"
        retrieved.append((begin, len(text)))
    return Sample(text, tuple(retrieved))


def make_sample(rng: random.Random, tokens: int, twins: float = 0.15) -> Sample:
    """Make a document and questions with answers, of about ``tokens`` tokens together."""
    most = max(2, min(32, tokens // 24))
    facts = make_facts(rng, rng.randint(max(2, most // 2), most), twins)
    count = max(1, min(rng.randint(4, 16), 2 * len(facts), tokens // 26))
    repeats = rng.randint(0, max(1, len(facts) // 2))
    document = make_document(rng, facts, tokens - 13 * count, repeats)
    text = document.text + ("\n" if rng.random() < 0.1 else "")
    retrieved = list(document.repeats)
    closed = (
        rng.random() < 0.85
    )  # otherwise the answers in a text do not end, as in few-shot prompts
    for i, question in enumerate(make_questions(rng, facts, count)):
        text += BETWEEN + question.query + AFTER
        begin = len(text)
        text += f" {question.answer}" + (EOS if closed or i == count - 1 else "")
        retrieved.append((begin, len(text)))
    return Sample(text, tuple(retrieved))


def make_test(
    rng: random.Random, tokens: int, facts: int, questions: int
) -> tuple[Document, list[Question]]:
    """Make a document that states every fact exactly once, and questions about it."""
    document = make_document(rng, make_facts(rng, facts), tokens)
    return document, make_questions(rng, document.facts, questions)


def filler(rng: random.Random) -> str:
    """Make a sentence that states no fact."""
    kind = rng.random()
    if kind < 0.25:
        return rng.choice(words.REMARKS)
    subject, action = rng.choice(words.SUBJECTS), rng.choice(words.ACTIONS)
    place = rng.choice(words.PLACES)
    if kind < 0.45:
        return f"{rng.choice(words.TIMES)}, {subject} {action} {place}."
    subject = _capital(subject)
    if kind < 0.6:
        other, same_time = rng.choice(words.SUBJECTS), rng.choice(words.ACTIONS)
        return f"{subject} {action}, and {other} {same_time}."
    if kind < 0.7:  # words of keys occur in filler, too
        return f"{subject} said something about the {rng.choice(words.MODIFIERS)} road, {place}."
    if kind < 0.78:
        return f"{subject} asked about the {rng.choice(words.NOUNS)}, but nobody knew."
    return f"{subject} {action} {place}."


def count_tokens(text: str) -> int:
    """Estimate how many tokens the tiny model's tokenizer makes of a text."""
    return len(_WORDS.findall(text))


def tokenizer_texts(seed: int, count: int) -> Iterator[str]:
    """Yield texts to train a tokenizer on: samples, and every word in each form that occurs."""
    every = {*words.MODIFIERS, *words.NOUNS, *words.VALUES, *words.SURNAMES}
    for word in sorted(every):
        yield from [f"the {word}"] * 24
    for word in sorted(words.MODIFIERS):
        yield from [word, _capital(word)] * 16
    rng = random.Random(f"tokenizer:{seed}")
    for _ in range(count):
        yield make_sample(rng, 256).text.replace(EOS, "")


class _Writer:
    """Joins sentences and records where a fact is stated again."""

    def __init__(self, rng: random.Random, markdown: bool) -> None:
        self.rng, self.markdown = rng, markdown
        self.text = ""
        self.stated: set[Fact] = set()
        self.repeats: list[tuple[int, int]] = []

    def write(self, pieces: Sequence[Fact | str], facts: tuple[Fact, ...]) -> Document:
        at = 0
        if self.markdown:
            self.text = f"# {self.rng.choice(words.HEADINGS)}\n\n"
        while at < len(pieces):
            if at:
                self._break()
            as_list = self.markdown and self.rng.random() < 0.4
            size = self.rng.randint(2, 5)
            for i, piece in enumerate(pieces[at : at + size]):
                self.text += ("\n- " if i else "- ") if as_list else (" " if i else "")
                self._state(piece, as_list) if isinstance(piece, Fact) else self._say(piece)
            at += size
        return Document(self.text, facts, tuple(self.repeats))

    def _break(self) -> None:
        self.text += "\n\n"
        if self.markdown and self.rng.random() < 0.3:
            self.text += f"## {self.rng.choice(words.HEADINGS)}\n\n"

    def _say(self, sentence: str) -> None:
        self.text += sentence

    def _state(self, fact: Fact, as_list: bool) -> None:
        self.text += _fill(_pick(self.rng, LIST_FACTS if as_list else PLAIN_FACTS), fact.key)
        begin = len(self.text)
        self.text += f" {fact.value}"
        if fact in self.stated:
            self.repeats.append((begin, len(self.text)))
        self.stated.add(fact)
        if not (as_list and self.rng.random() < 0.4):
            self.text += "."


def _pick(rng: random.Random, choices: Sequence[tuple[str, int]]) -> str:
    return rng.choices([c for c, _ in choices], [w for _, w in choices])[0]


def _fill(template: str, key: str) -> str:
    return template.format(key=key, Key=_capital(key))


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]
