"""English words from the package wonderwords, as in the official generator."""

import random
from functools import cache
from importlib.resources import files


def compound(rng: random.Random) -> str:
    """Return a random ``adjective-noun`` pair."""
    return f"{rng.choice(_read('adjective'))}-{rng.choice(_read('noun'))}"


@cache
def words() -> list[str]:
    """Return all nouns, adjectives and verbs, sorted."""
    return sorted({*_read("noun"), *_read("adjective"), *_read("verb")})


@cache
def _read(kind: str) -> list[str]:
    lists = files("wonderwords").joinpath("assets")
    lines = lists.joinpath(f"{kind}list.txt").read_text("utf-8").splitlines()
    return [line.strip() for line in lines if line.strip()]
