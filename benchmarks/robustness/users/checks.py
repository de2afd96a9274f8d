"""Checks of what a user sees, by name."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass(kw_only=True, slots=True)
class Checks:
    """Records what held and what did not, in the order in which it was looked at."""

    passed: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    def check(self, what: str, holds: object, seen: object = None) -> None:
        """Record whether something holds.

        Args:
            what: what a user expects.
            holds: whether it does.
            seen: what the user sees instead, if that helps.
        """
        if holds:
            self.passed.append(what)
        else:
            self.failed.append(what if seen is None else f"{what}: {seen!r}")

    @contextmanager
    def step(self, what: str) -> Iterator[None]:
        """Record a step of a user as failed if it raises, and go on with the next one."""
        try:
            yield
        except Exception as error:
            self.failed.append(f"{what}: {error!r}")
